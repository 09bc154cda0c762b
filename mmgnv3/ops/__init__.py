"""Compiled code: what PyTorch's operators cannot do in one pass over a map."""

from .library import load_library

__all__ = ['load_library']
