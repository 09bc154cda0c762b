"""Pictures of training runs and of what a detector sees."""

from .ablation import draw_ablation
from .curves import draw_curves
from .detections import draw_detections

__all__ = ['draw_ablation', 'draw_curves', 'draw_detections']
