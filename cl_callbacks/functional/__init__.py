"""The equations: tensors in, tensors out. Nothing here knows Lightning."""

from cl_callbacks.functional.anchoring import (
    add_quadratic_pull_,
    merge_each_,
    merge_latest_,
    quadratic_penalty,
    relax_to_anchor_,
)
from cl_callbacks.functional.fisher import fisher_cotangents
from cl_callbacks.functional.kronecker import KroneckerFactors
from cl_callbacks.functional.path_integral import add_path_, path_importance
from cl_callbacks.functional.sensitivity import sensitivity_cotangent
from cl_callbacks.functional.task_matrix import (
    average_accuracy,
    backward_transfer,
    forgetting,
    forgetting_per_task,
    forward_transfer,
    intransigence,
    last_tasks_accuracy,
    learning_accuracy,
    tasks_learned,
)
from cl_callbacks.gradients.per_sample import PerSampleGradients

__all__ = [
    "KroneckerFactors",
    "PerSampleGradients",
    "add_path_",
    "add_quadratic_pull_",
    "average_accuracy",
    "backward_transfer",
    "fisher_cotangents",
    "forgetting",
    "forgetting_per_task",
    "forward_transfer",
    "intransigence",
    "last_tasks_accuracy",
    "learning_accuracy",
    "merge_each_",
    "merge_latest_",
    "path_importance",
    "quadratic_penalty",
    "relax_to_anchor_",
    "sensitivity_cotangent",
    "tasks_learned",
]
