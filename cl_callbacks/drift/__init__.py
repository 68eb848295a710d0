"""Detectors of change in a stream of numbers, with the protocol of the river library.

A detector has ``update(x)`` and, after it, ``drift_detected``. Acting on an alarm is up to ``boundaries/``.
"""

from cl_callbacks.drift.cusum import CUSUM
from cl_callbacks.drift.feature_shift import FeatureShift
from cl_callbacks.drift.plateau import Plateau
from cl_callbacks.drift.rise_monitor import RiseMonitor
from cl_callbacks.drift.scoring import BoundaryScore, score_boundaries

__all__ = ["CUSUM", "BoundaryScore", "FeatureShift", "Plateau", "RiseMonitor", "score_boundaries"]
