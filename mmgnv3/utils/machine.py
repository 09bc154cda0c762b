"""What a figure was measured on."""

import platform
from pathlib import Path

import torch


def describe_machine(device: str | torch.device = 'cpu') -> str:
    """Name processor, threads and torch's version, the GPU first if ``device`` is one.

    Args:
        device: Where the measured network was.
    """
    parts = [cpu_name(), f'threads: {torch.get_num_threads()}', f'torch {torch.__version__}']
    if torch.device(device).type == 'cuda':
        parts.insert(0, torch.cuda.get_device_name(device))
    return ', '.join(parts)


def cpu_name() -> str:
    """Name the CPU as Linux knows it."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()
