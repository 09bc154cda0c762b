"""Time and memory of a training step."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from .networks import NUM_CLASSES
from .timing import measure_interleaved

LEARNING_RATE = 1e-4
WEIGHT_DECAY = 0.05
EMA_MOMENTUM = 1e-4


@dataclass(frozen=True)
class Variant:
    """How a network is trained: one column of the table.

    Attributes:
        channels_last: Memory format of images and weights.
        amp: Whether the forward pass runs in bfloat16 where autocast allows it.
        compiled: Whether ``torch.compile`` has seen the network.
    """

    channels_last: bool = False
    amp: bool = False
    compiled: bool = False

    @property
    def name(self) -> str:
        """Heading of the column."""
        return f'{"channels_last" if self.channels_last else "contiguous"} {self.mode}'

    @property
    def mode(self) -> str:
        """What columns that differ in the memory format alone have in common."""
        return ('bf16' if self.amp else 'float32') + ' compiled' * self.compiled

    @property
    def memory_format(self) -> torch.memory_format:
        """Memory format of images and weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


@dataclass
class StepTimes:
    """Times of one network's step in one variant, in milliseconds.

    Attributes:
        step: Forward and backward pass, and what ``update`` counts.
        update: LAMB and EMA, if they were asked for.
        peak_mib: Peak memory of a step on a GPU, in MiB.
    """

    step: float
    update: float | None = None
    peak_mib: float | None = field(default=None)


class TrainingStep:
    """A network with all that a training step needs.

    Args:
        model: The network; logits from images.
        images: Batch of shape (B, 3, H, W).
        variant: How to train.
        with_update: Whether a step goes on to LAMB and EMA.
    """

    def __init__(
        self, model: nn.Module, images: Tensor, variant: Variant, with_update: bool = False
    ) -> None:
        device = images.device
        model = model.train().to(device, memory_format=variant.memory_format)
        self.images = images.contiguous(memory_format=variant.memory_format)
        self.labels = torch.arange(len(images), device=device) % NUM_CLASSES
        self.parameters = list(model.parameters())
        self.forward: Callable[[Tensor], Tensor] = model
        if variant.compiled:
            self.forward = torch.compile(model)
        self.amp = variant.amp
        self.model = model
        self.optimizer = self.average = None
        if with_update:
            from mmgnv3.engine.fused_ema import FusedEMA
            from mmgnv3.engine.optimizers import Lamb

            # A group of every parameter, norms and biases without decay: what mmengine makes of
            # the recipe's paramwise_cfg, without its line of log about each.
            groups = [
                dict(params=[p], weight_decay=WEIGHT_DECAY if p.ndim > 1 else 0.0)
                for p in self.parameters
            ]
            self.optimizer = Lamb(groups, lr=LEARNING_RATE)
            self.average = FusedEMA(model, momentum=EMA_MOMENTUM)

    def run_forward(self) -> Tensor:
        """Compute the loss."""
        device = self.images.device.type
        with torch.autocast(device, torch.bfloat16) if self.amp else nullcontext():
            logits = self.forward(self.images)
            if isinstance(logits, tuple | list):
                logits = logits[-1]
            return F.cross_entropy(logits.float(), self.labels)

    def update(self) -> None:
        """Let LAMB and EMA make their step with the gradients that are there."""
        self.optimizer.step()
        self.average.update_parameters(self.model)

    def __call__(self) -> None:
        """Make a training step."""
        for parameter in self.parameters:
            parameter.grad = None
        self.run_forward().backward()
        if self.optimizer is not None:
            self.update()


def measure_training(
    builders: dict[str, Callable[[], nn.Module]],
    variants: Sequence[Variant],
    images: Tensor,
    rounds: int,
    with_update: bool = False,
) -> dict[tuple[str, Variant], StepTimes]:
    """Measure the training step of networks, all of them in turn.

    Args:
        builders: Functions that build the networks, by name.
        variants: In which ways to train each.
        images: Batch of shape (B, 3, H, W) on the device to measure.
        rounds: The median is taken over them.
        with_update: Adds LAMB and EMA to the step and measures them by themselves, too.

    Returns:
        Times by network and variant.
    """
    device = images.device
    steps = {}
    for name, build in builders.items():
        for variant in variants:
            torch.manual_seed(0)
            steps[name, variant] = TrainingStep(build(), images, variant, with_update)
    peaks = {}
    if device.type == 'cuda':
        peaks = {key: _peak_mib(step, device) for key, step in steps.items()}
    times = measure_interleaved(steps, rounds, device)
    updates = {}
    if with_update:
        updates = measure_interleaved(
            {key: step.update for key, step in steps.items()}, rounds, device
        )
    return {key: StepTimes(times[key], updates.get(key), peaks.get(key)) for key in steps}


def _peak_mib(step: TrainingStep, device: torch.device) -> float:
    """Peak memory of a step beyond what all networks hold before it, in MiB."""
    step()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def measure_saved_activations(
    model: nn.Module, images: Tensor, variant: Variant | None = None
) -> float:
    """Measure what the forward pass of a training step keeps for the way back.

    Args:
        model: The network.
        images: Batch of shape (B, 3, H, W).
        variant: How to train; None for channels_last in float32.

    Returns:
        Size in MiB of all storages that autograd saves, each counted once, without parameters,
        buffers and the images.
    """
    step = TrainingStep(model, images, variant or Variant(channels_last=True))
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    own.add(step.images.untyped_storage().data_ptr())
    # The storages are held, so that no address is given out twice.
    kept: dict[int, torch.UntypedStorage] = {}

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(record, lambda tensor: tensor):
        step.run_forward()
    return sum(storage.nbytes() for storage in kept.values()) / 2**20
