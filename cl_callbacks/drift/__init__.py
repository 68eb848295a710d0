"""Detectors of change on a stream of numbers, behind the protocol of the river library.

A detector has ``update(x)`` and, after it, ``drift_detected``.
"""

from cl_callbacks.drift.plateau import Plateau

__all__ = ["Plateau"]
