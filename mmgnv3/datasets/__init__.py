"""The embedded data set. Needs numpy and cv2 only."""

from mmgnv3.datasets.toy_shapes import CLASSES, ToyShapes, draw_scene

__all__ = ['CLASSES', 'ToyShapes', 'draw_scene']
