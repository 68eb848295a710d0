"""The equations of every rule and metric: tensors in, tensors out.

A trailing underscore means in place, as in torch. Lists of tensors are aligned: entry ``i`` of each
belongs to the same parameter. Nothing here imports Lightning, keeps state between calls or runs a network.
"""

# fmt: off
# isort: off
from cl_callbacks.functional.anchoring import (
    add_quadratic_pull_, distances, largest_importance, merge_each_, merge_latest_, quadratic_penalty,
    relax_to_anchor_,
)
from cl_callbacks.functional.averaging import (
    average_, average_square_, draw_back_, merge_weights_, newest_share,
)
from cl_callbacks.functional.beakers import (
    beaker_memory_trace, capacities, conductances, flow_, flow_matrix, largest_coupling, level_differences,
    timescales,
)
from cl_callbacks.functional.cascade import (
    cascade_, cascade_memory_trace, deepen_probabilities, switch_probabilities, switch_weights_,
    transition_matrix,
)
from cl_callbacks.functional.distillation import distillation_loss, positions_with_label
from cl_callbacks.functional.fisher import (
    check_fisher,
    fisher_cotangents,
    reading_of_losses,
    sample_losses,
)
from cl_callbacks.functional.grid import as_importance_adds_up, best_on_grid, smoothed_on_grid
from cl_callbacks.functional.isometry import isometry_scale, nearest_isometry
from cl_callbacks.functional.kronecker import (
    Eigen, Factors, curvature_bound, decompose, kronecker_diagonal, kronecker_pull, kronecker_trace,
    nearest_sum, paired, relax_kronecker,
)
from cl_callbacks.functional.labels import are_targets, is_distribution
from cl_callbacks.functional.likelihood import Reading, check_likelihood, decide_reading, read_labels
from cl_callbacks.functional.metaplasticity import metaplastic_gate, resist_shrinking_
from cl_callbacks.functional.normalization import sum_and_number
from cl_callbacks.functional.path_integral import (
    add_path_, add_path_pull_, add_score_, min_max, path_importance, without_decay,
)
from cl_callbacks.functional.replay import stored_output_loss
from cl_callbacks.functional.representation import effective_rank, stable_rank
from cl_callbacks.functional.reservoir import fullest, reservoir_keys
from cl_callbacks.functional.sensitivity import sensitivity_cotangent
from cl_callbacks.functional.shrinking import shrink_and_perturb_
from cl_callbacks.functional.task_matrix import (
    average_accuracy, backward_transfer, forgetting, forgetting_per_task, forward_transfer, intransigence,
    last_tasks_accuracy, learning_accuracy, tasks_learned,
)
from cl_callbacks.functional.units import (
    bias_shift, debiased, held_magnitude, incoming_magnitude, outgoing_magnitude, relative_activity,
    silence_log_probability,
)
from cl_callbacks.functional.uncertainty import bgd_, draw_, keep_noise_gradients_, mesu_, relative_variance
from cl_callbacks.functional.utility import add_utility_, upgd_, utility_gates

__all__ = [
    "Eigen", "Factors", "Reading", "add_path_", "add_path_pull_", "add_quadratic_pull_", "add_score_",
    "add_utility_", "are_targets", "as_importance_adds_up", "average_", "average_accuracy",
    "average_square_", "backward_transfer", "beaker_memory_trace", "best_on_grid", "bgd_", "bias_shift",
    "capacities", "cascade_", "cascade_memory_trace", "check_fisher", "check_likelihood", "conductances",
    "curvature_bound", "debiased", "decide_reading", "decompose", "deepen_probabilities", "distances",
    "distillation_loss", "draw_", "draw_back_", "effective_rank", "fisher_cotangents", "flow_",
    "flow_matrix", "forgetting", "forgetting_per_task", "forward_transfer", "fullest", "held_magnitude",
    "incoming_magnitude",
    "intransigence", "is_distribution", "isometry_scale", "keep_noise_gradients_", "kronecker_diagonal",
    "kronecker_pull", "kronecker_trace", "largest_coupling", "largest_importance", "last_tasks_accuracy",
    "learning_accuracy", "level_differences", "merge_each_", "merge_latest_", "merge_weights_", "mesu_",
    "metaplastic_gate", "min_max", "nearest_isometry", "nearest_sum", "newest_share", "outgoing_magnitude",
    "paired", "path_importance", "positions_with_label", "quadratic_penalty", "read_labels",
    "reading_of_losses", "relative_activity", "relative_variance", "relax_kronecker", "relax_to_anchor_",
    "reservoir_keys", "resist_shrinking_", "sample_losses", "sensitivity_cotangent", "shrink_and_perturb_",
    "silence_log_probability", "smoothed_on_grid", "stable_rank", "stored_output_loss", "sum_and_number",
    "switch_probabilities", "switch_weights_", "tasks_learned", "timescales", "transition_matrix", "upgd_",
    "utility_gates", "without_decay",
]
