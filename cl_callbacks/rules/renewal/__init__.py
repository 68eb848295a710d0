"""Rules that keep the ability to learn."""

from cl_callbacks.rules.renewal.fire import FIRE
from cl_callbacks.rules.renewal.l2_init import L2Init
from cl_callbacks.rules.renewal.shrink_and_perturb import ShrinkAndPerturb
from cl_callbacks.rules.renewal.upgd import UPGD

__all__ = ["FIRE", "UPGD", "L2Init", "ShrinkAndPerturb"]
