"""Sends metrics, figures and hyperparameters to all loggers of a Trainer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_warn

from cl_callbacks.guards.once import first_time
from cl_callbacks.guards.safe_names import readable_key
from cl_callbacks.training.configuration import configuration, configuration_name, is_of_this_package
from cl_callbacks.training.lightning_private import is_logging_step, logged_step

_PACKAGE = __name__.partition(".")[0]
"""Log key of the configuration."""


def is_due(trainer: Trainer) -> bool:
    """Whether this batch completes a step that is logged, and there is a logger."""
    return bool(trainer.loggers) and is_logging_step(trainer)


def log(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Logs numbers to all loggers, with the same step as Lightning's own metrics.

    Keys of which a part is a name that a logger cannot write are changed as little as needed.
    """
    step = logged_step(trainer)
    found = {readable_key(key): value for key, value in values.items()}
    tell(trainer, lambda logger: logger.log_metrics(dict(found), step=step))


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
            trainer.loggers[index] = _Failed(_folder_if_known(logger))
            rank_zero_warn(
                f"{type(logger).__name__} has failed ({type(error).__name__}: {error}), so from here on "
                f"nothing is logged to it; the training goes on."
            )


def offer(trainer: Trainer, write: Callable[[Logger], None]) -> None:
    """Calls a function with each logger for optional output such as figures; an error is only a warning."""
    for logger in trainer.loggers:
        with unless_it_fails(trainer, f"something for {type(logger).__name__}"):
            write(logger)


@contextmanager
def unless_it_fails(trainer: Trainer, what: str) -> Iterator[None]:
    """Within, turns an error into a warning that ``what`` could not be written, which comes once.

    Where a file cannot be written others fail likewise, after every task: each cause is said once.
    """
    try:
        yield
    except Exception as error:  # of any type, as a user's names or a logger's service raise
        cause = f"errno {error.errno}" if isinstance(error, OSError) and error.errno else what
        if first_time(trainer, f"not written: {type(error).__name__}, {cause}"):
            rank_zero_warn(
                f"{what} could not be written ({type(error).__name__}: {error}); the training goes on, and "
                f"this is not said again."
            )


def log_folder(trainer: Trainer) -> Path | None:
    """Folder of this run: that of the first logger that has one; ``None`` without.

    Call it on rank zero only. For W&B it is that of the run's files, which are uploaded with it.
    """
    for logger in trainer.loggers:
        with unless_it_fails(trainer, f"files beside the log of {type(logger).__name__}"):
            folder = folder_of(logger)
            if folder is not None:
                return folder
    return None


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


def _folder_if_known(logger: Logger) -> Path | None:
    """Folder of a logger that has failed; ``None`` also where asking for it fails as well."""
    try:
        return folder_of(logger)
    except Exception:  # that the logger has failed is about to be said
        return None


def log_configuration(trainer: Trainer) -> None:
    """Logs the arguments of this package's callbacks to all loggers, as hyperparameters."""
    found: dict[str, Any] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if is_of_this_package(callback):
            name, number = configuration_name(callback), 2
            key = name
            while key in found:
                key, number = f"{name} {number}", number + 1
            found[key] = configuration(callback)
    offer(trainer, lambda logger: _configure(logger, found))


def _configure(logger: Logger, found: dict[str, Any]) -> None:
    if isinstance(logger, TensorBoardLogger):
        # It shows only the first hyperparameters that are logged, and these should be the user's own.
        logger.hparams[_PACKAGE] = found
        logger.experiment.add_text(_PACKAGE, f"```json\n{json.dumps(found, indent=1)}\n```")
    else:
        logger.log_hyperparams({_PACKAGE: found})
