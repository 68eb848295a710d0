"""Numbers for whatever loggers a Trainer has."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_warn


def is_due(trainer: Trainer) -> bool:
    """Whether this batch completes one of the steps that are logged."""
    if not trainer.loggers or not trainer._logger_connector.should_update_logs:
        return False
    return not trainer.fit_loop.epoch_loop._should_accumulate()


def log(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Gives numbers to all loggers, at the x axis of Lightning's own metrics."""
    step = trainer.fit_loop.epoch_loop._batches_that_stepped
    tell(trainer, lambda logger: logger.log_metrics(dict(values), step=step))


class _Failed(DummyLogger):
    """Stands where a logger has failed; what goes into files beside its log still does."""

    def __init__(self, folder: Path | None) -> None:
        super().__init__()
        self.folder = folder


def tell(trainer: Trainer, say: Callable[[Logger], None]) -> None:
    """Says something to each logger; one that fails at it is told nothing more, and training goes on.

    Args:
        trainer: whose loggers they are.
        say: what is to be said.
    """
    for index, logger in enumerate(trainer.loggers):
        try:
            say(logger)
        except Exception as error:  # of whatever kind its service has
            # Another in its place: whether there are loggers stays the same on all processes.
            trainer.loggers[index] = _Failed(folder_of(logger))
            rank_zero_warn(
                f"{type(logger).__name__} has failed ({type(error).__name__}: {error}), so from here on "
                f"nothing is logged to it; the training goes on."
            )


def log_folder(trainer: Trainer) -> Path | None:
    """The folder of this run: of its first logger that has one; ``None`` without.

    To be asked on rank zero alone. For W&B it is that of the run's files, which are uploaded with it.
    """
    folders = (folder_of(logger) for logger in trainer.loggers)
    return next((folder for folder in folders if folder is not None), None)


def folder_of(logger: Logger) -> Path | None:
    """Where a logger keeps what belongs to this run."""
    if isinstance(logger, DummyLogger):
        return logger.folder if isinstance(logger, _Failed) else None
    if isinstance(logger, WandbLogger):
        return Path(logger.experiment.dir)
    own = getattr(logger, "log_dir", None)  # TensorBoard's and CSV's
    if own is None and logger.save_dir is not None:
        return Path(logger.save_dir, str(logger.name), str(logger.version))
    return None if own is None else Path(own)


def log_configuration(trainer: Trainer) -> None:
    """Gives all loggers the arguments of this package's callbacks, as hyperparameters."""
    found = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if any(kind.__module__.startswith(f"{__package__}.") for kind in type(callback).__mro__):
            found[getattr(callback, "name", type(callback).__name__.lower())] = configuration(callback)
    tell(trainer, lambda logger: logger.log_hyperparams({__package__: found}))


def configuration(callback: Callback) -> dict[str, Any]:
    """The arguments a callback was made with, as far as it keeps them under their names.

    Example:
        >>> from cl_callbacks import EpochBoundaries
        >>> configuration(EpochBoundaries(5))
        {'class': 'EpochBoundaries', 'every_n_epochs': 5}
    """
    names = inspect.signature(type(callback).__init__).parameters
    kept = {name: getattr(callback, name) for name in names if name != "self" and hasattr(callback, name)}
    return {"class": type(callback).__name__} | {name: _plain(value) for name, value in kept.items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else repr(value)
