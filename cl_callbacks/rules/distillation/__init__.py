"""Rules that hold a network to the outputs of an earlier one, on the data of the present task."""

from cl_callbacks.rules.distillation.distillation import Distillation

__all__ = ["Distillation"]
