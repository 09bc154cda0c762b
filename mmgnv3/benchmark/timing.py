"""Timing several things beside each other."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

Key = TypeVar('Key', bound=Hashable)


def measure_interleaved(
    tasks: Mapping[Key, Callable[[], object]],
    rounds: int,
    device: torch.device,
    warm_up: int = 2,
    settle: bool = False,
) -> dict[Key, float]:
    """Measure tasks in turn, so that a change of the machine's pace hits all of them alike.

    Args:
        tasks: What to run.
        rounds: How often each is measured.
        device: Device that does the work.
        warm_up: Rounds before those that count.
        settle: Runs every task once, untimed, before each time it is measured: brings weights
            that the others have displaced back into the caches.

    Returns:
        Median time of every task in milliseconds.
    """
    times: dict[Key, list[float]] = {key: [] for key in tasks}
    for _ in range(warm_up + rounds):
        for key, task in tasks.items():
            if settle:
                task()
            times[key].append(time_once(task, device))
    return {key: statistics.median(series[warm_up:]) for key, series in times.items()}


def time_once(task: Callable[[], object], device: torch.device) -> float:
    """Run a task and return the milliseconds until its device has done it."""
    wait_for(device)
    start = time.perf_counter()
    task()
    wait_for(device)
    return 1000 * (time.perf_counter() - start)


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
