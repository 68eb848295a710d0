"""Figures from plain arrays, made without pyplot: no backend is needed and no figure stays open.

They have an opaque light background, so that they are as readable on a dark page as on a white one.
"""

from cl_callbacks.observation.figures.layers import importance_by_layer, plasticity_by_layer
from cl_callbacks.observation.figures.loss_and_drift import loss_and_drift
from cl_callbacks.observation.figures.strength_curve import strength_curve
from cl_callbacks.observation.figures.task_curves import task_curves
from cl_callbacks.observation.figures.task_matrix import accuracy_matrix

__all__ = [
    "accuracy_matrix",
    "importance_by_layer",
    "loss_and_drift",
    "plasticity_by_layer",
    "strength_curve",
    "task_curves",
]
