"""The size of networks."""

from torch import nn


def count_params(model: nn.Module) -> int:
    """Count the parameters of a network, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
