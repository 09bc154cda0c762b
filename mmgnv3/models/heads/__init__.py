"""Heads."""

from .kd_cls_head import KDClsHead

__all__ = ['KDClsHead']
