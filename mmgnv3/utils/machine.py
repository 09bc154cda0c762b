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
    return cpu_info('model name') or platform.processor() or platform.machine()


def cpu_info(*fields: str) -> str:
    """What Linux says of the first processor in the first of some fields, '' if nothing."""
    try:
        lines = Path('/proc/cpuinfo').read_text(errors='replace').splitlines()
    except OSError:
        lines = []
    found = (line.partition(':') for line in lines)
    return next((value.strip() for name, _, value in found if name.strip() in fields), '')
