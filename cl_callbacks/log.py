"""Numbers for whatever loggers a Trainer has."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch import Trainer


def is_due(trainer: Trainer) -> bool:
    """Whether this batch completes one of the steps that are logged."""
    if not trainer.loggers or not trainer._logger_connector.should_update_logs:
        return False
    return not trainer.fit_loop.epoch_loop._should_accumulate()


def log(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Gives numbers to all loggers, at the x axis of Lightning's own metrics."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=trainer.fit_loop.epoch_loop._batches_that_stepped)
