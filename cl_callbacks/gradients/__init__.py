"""Per-sample gradients of any network, and sums over them: usable without a Trainer.

Here live closed forms of the per-sample gradients of common layers, slower ways for all others, and sums of
squares, magnitudes or Kronecker factors over samples. No Lightning.
"""

from cl_callbacks.gradients.fisher_information import fisher_information
from cl_callbacks.gradients.kronecker_factors import KroneckerFactors
from cl_callbacks.gradients.per_sample import PerSampleGradients
from cl_callbacks.gradients.sharded_gradients import ShardedGradients

__all__ = ["KroneckerFactors", "PerSampleGradients", "ShardedGradients", "fisher_information"]
