"""Classifiers."""

from .kd_classifier import KDClassifier
from .teacher import Teacher

__all__ = ['KDClassifier', 'Teacher']
