"""Rules that average weights with those after earlier tasks."""

from cl_callbacks.rules.averaging.weight_merging import WeightMerging

__all__ = ["WeightMerging"]
