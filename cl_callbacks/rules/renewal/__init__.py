"""Rules that keep the ability to learn: weights, matrices or units of a network are renewed."""

from cl_callbacks.rules.renewal.continual_backprop import ContinualBackprop
from cl_callbacks.rules.renewal.fire import FIRE
from cl_callbacks.rules.renewal.l2_init import L2Init
from cl_callbacks.rules.renewal.redo import ReDo
from cl_callbacks.rules.renewal.self_normalized_resets import SelfNormalizedResets
from cl_callbacks.rules.renewal.shrink_and_perturb import ShrinkAndPerturb
from cl_callbacks.rules.renewal.upgd import UPGD

__all__ = ["FIRE", "UPGD", "ContinualBackprop", "L2Init", "ReDo", "SelfNormalizedResets", "ShrinkAndPerturb"]
