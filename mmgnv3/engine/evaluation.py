"""Evaluating other weights in the middle of somebody else's evaluation."""

from typing import Any

import torch
from mmengine.runner import BaseLoop, Runner
from torch import nn


def evaluate_silently(
    runner: Runner, loop: BaseLoop, model: nn.Module | None = None
) -> dict[str, Any]:
    """Run an evaluation loop that neither hooks nor the training take notice of.

    No line of progress is logged, no picture drawn, no best checkpoint saved, and no random number
    taken from the training. The model is left in eval mode, as by any evaluation.

    Args:
        runner: The runner that the loop belongs to.
        loop: Its validation or test loop.
        model: Evaluated in place of the runner's model.

    Returns:
        The metrics by name.
    """
    trained = runner.model
    runner.call_hook = lambda *args, **kwargs: None
    runner.model = trained if model is None else model
    try:
        # Data loaders draw a seed for their workers from the global generator.
        with torch.random.fork_rng(devices=[]):
            return loop.run()
    finally:
        runner.model = trained
        del runner.call_hook
