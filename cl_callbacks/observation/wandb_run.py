"""Logging that only W&B supports; other loggers are ignored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from cl_callbacks.training import log_keys


def define_task_axis(logger: Logger) -> None:
    """Makes the task the x axis of all per-task metrics."""
    if isinstance(logger, WandbLogger):
        logger.experiment.define_metric(log_keys.TASK_INDEX, hidden=True)
        logger.experiment.define_metric(log_keys.TASK_AXIS, step_metric=log_keys.TASK_INDEX)


def log_table(logger: Logger, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Logs a table of ``rows`` under ``key``."""
    if isinstance(logger, WandbLogger):
        logger.log_table(key, columns=list(columns), data=[list(row) for row in rows])


def log_artifact(logger: Logger, files: Sequence[Path], name: str = "") -> None:
    """Logs files as one artifact of the run, ``task-matrix-ID``, or ``task-matrix-ID-NAME``."""
    if isinstance(logger, WandbLogger):
        import wandb

        artifact = wandb.Artifact(
            "-".join(filter(None, ("task-matrix", logger.experiment.id, name))), type="task-matrix"
        )
        for file in files:
            artifact.add_file(str(file))
        logger.experiment.log_artifact(artifact)
