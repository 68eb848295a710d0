"""What holds the user's own scores of old tasks within a tolerance."""

from cl_callbacks.retention.retention_guard import RetentionGuard

__all__ = ["RetentionGuard"]
