"""Rules that measure importance at the end of a task and pull important weights back."""

from cl_callbacks.consolidation.ewc import EWC

__all__ = ["EWC"]
