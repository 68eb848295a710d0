"""Settings that are found by short trainings before the training: the strength of rules.

Here lives what searches and chooses. What runs training inside a Trainer without a trace is in ``training``,
and the choice itself, a function of numbers, in ``functional``.
"""

from cl_callbacks.tuning.find_strength import find_strength
from cl_callbacks.tuning.found_strength import FoundStrength
from cl_callbacks.tuning.strength_finder import StrengthFinder

__all__ = ["FoundStrength", "StrengthFinder", "find_strength"]
