"""The equations: tensors in, tensors out. Nothing here knows Lightning."""

from cl_callbacks.functional.anchoring import (
    add_quadratic_pull_,
    merge_each_,
    merge_latest_,
    quadratic_penalty,
)
from cl_callbacks.functional.fisher import fisher_cotangents
from cl_callbacks.functional.per_sample import PerSampleGradients

__all__ = [
    "PerSampleGradients",
    "add_quadratic_pull_",
    "fisher_cotangents",
    "merge_each_",
    "merge_latest_",
    "quadratic_penalty",
]
