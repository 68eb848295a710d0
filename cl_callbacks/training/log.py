"""Sends metrics, figures and hyperparameters to all loggers of a Trainer."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_warn

from cl_callbacks.training.lightning_private import is_logging_step, logged_step

_PACKAGE = __name__.partition(".")[0]
"""Log key of the configuration, and the module prefix of this package's callbacks."""


def is_due(trainer: Trainer) -> bool:
    """Whether this batch completes a step that is logged, and there is a logger."""
    return bool(trainer.loggers) and is_logging_step(trainer)


def log(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Logs numbers to all loggers, with the same step as Lightning's own metrics."""
    step = logged_step(trainer)
    tell(trainer, lambda logger: logger.log_metrics(dict(values), step=step))


class _Failed(DummyLogger):
    """Replaces a logger that has failed; files are still written to its folder."""

    def __init__(self, folder: Path | None) -> None:
        super().__init__()
        self.folder = folder


def tell(trainer: Trainer, say: Callable[[Logger], None]) -> None:
    """Calls a function with each logger; one that raises is replaced, and training continues."""
    for index, logger in enumerate(trainer.loggers):
        try:
            say(logger)
        except Exception as error:  # of any type, as its service raises
            # Replaced and not removed: whether there are loggers must be the same on all processes.
            trainer.loggers[index] = _Failed(folder_of(logger))
            rank_zero_warn(
                f"{type(logger).__name__} has failed ({type(error).__name__}: {error}), so from here on "
                f"nothing is logged to it; the training goes on."
            )


def offer(trainer: Trainer, write: Callable[[Logger], None]) -> None:
    """Calls a function with each logger for optional output such as figures; an error is only a warning."""
    for logger in trainer.loggers:
        with unless_it_fails(f"something for {type(logger).__name__}", Exception):
            write(logger)


@contextmanager
def unless_it_fails(what: str, error: type[Exception]) -> Iterator[None]:
    """Within, turns errors of a type into warnings that ``what`` could not be written."""
    try:
        yield
    except error as found:
        rank_zero_warn(
            f"{what} could not be written ({type(found).__name__}: {found}); the training goes on."
        )


def log_folder(trainer: Trainer) -> Path | None:
    """Folder of this run: that of the first logger that has one; ``None`` without.

    Call it on rank zero only. For W&B it is that of the run's files, which are uploaded with it.
    """
    folders = (folder_of(logger) for logger in trainer.loggers)
    return next((folder for folder in folders if folder is not None), None)


def folder_of(logger: Logger) -> Path | None:
    """Folder of a logger for the files of this run; ``None`` if it has none."""
    if isinstance(logger, DummyLogger):
        return logger.folder if isinstance(logger, _Failed) else None
    if isinstance(logger, WandbLogger):
        return Path(logger.experiment.dir)
    own = getattr(logger, "log_dir", None)  # TensorBoard's and CSV's
    if own is None and logger.save_dir is not None:
        return Path(logger.save_dir, str(logger.name), str(logger.version))
    return None if own is None else Path(own)


def log_configuration(trainer: Trainer) -> None:
    """Logs the arguments of this package's callbacks to all loggers, as hyperparameters."""
    found: dict[str, Any] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if is_of_this_package(callback):
            name = getattr(callback, "name", None) or type(callback).__name__.lower()
            number = sum(key.partition(" ")[0] == name for key in found)
            found[f"{name} {number + 1}" if number else name] = configuration(callback)
    offer(trainer, lambda logger: _configure(logger, found))


def is_of_this_package(made: Any) -> bool:
    """Whether the class of an object is of this package or derived from one that is."""
    return any(kind.__module__.startswith(f"{_PACKAGE}.") for kind in type(made).__mro__)


def _configure(logger: Logger, found: dict[str, Any]) -> None:
    if isinstance(logger, TensorBoardLogger):
        # It shows only the first hyperparameters that are logged, and these should be the user's own.
        logger.hparams[_PACKAGE] = found
        logger.experiment.add_text(_PACKAGE, f"```json\n{json.dumps(found, indent=1)}\n```")
    else:
        logger.log_hyperparams({_PACKAGE: found})


def configuration(made: Any) -> dict[str, Any]:
    """Class and constructor arguments of an object, as far as it has attributes of their names.

    Example:
        >>> from cl_callbacks import EpochBoundaries
        >>> configuration(EpochBoundaries(5))
        {'class': 'EpochBoundaries', 'every_n_epochs': 5}
    """
    names = inspect.signature(type(made)).parameters
    kept = {name: getattr(made, name) for name in names if hasattr(made, name)}
    return {"class": type(made).__name__} | {name: _plain(value) for name, value in kept.items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (torch.dtype, PathLike)):
        return str(value)
    if isinstance(value, torch.nn.Module):  # whose arguments may be tensors, or anything
        return type(value).__name__
    return configuration(value)
