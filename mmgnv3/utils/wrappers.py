"""Networks inside the wrappers of data-parallel training and of test-time augmentation."""

from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """Take a network out of its data-parallel wrapper, if it is in one."""
    return model.module if is_model_wrapper(model) else model


def unwrap_wholly(model: nn.Module) -> nn.Module:
    """Take a network out of these wrappers, and out of test-time augmentation."""
    model = unwrap(model)
    return unwrap(model.module) if isinstance(model, BaseTTAModel) else model


def replace_model(runner: Runner, model: nn.Module) -> None:
    """Put a network in the place of a runner's, into the wrapper if there is one."""
    if is_model_wrapper(runner.model):
        runner.model.module = model
    else:
        runner.model = model
