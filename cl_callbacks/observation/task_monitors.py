"""Lets callbacks of Lightning, such as ModelCheckpoint, monitor the metrics of the task matrix."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cl_callbacks.guards.few import few
from cl_callbacks.training import log_keys
from cl_callbacks.training.lightning_private import (
    looks_at_epoch_end,
    looks_within_epochs,
    monitored_metrics,
)

_PREFIX = log_keys.task("")


def monitors_of(trainer: Trainer) -> list[tuple[Callback, str]]:
    """The callbacks of a Trainer that monitor a metric of the task matrix, with its key."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    named = [(callback, str(getattr(callback, "monitor", ""))) for callback in callbacks]
    return [(callback, key) for callback, key in named if key.startswith(f"{_PREFIX}/")]


def monitored_at_epoch_end(trainer: Trainer) -> bool:
    """Whether some callback looks when an epoch ends, whether or not there was a validation."""
    return any(looks_at_epoch_end(callback, trainer) for callback, _ in monitors_of(trainer))


def look_last(trainer: Trainer) -> None:
    """Moves early stopping that monitors a metric of the task matrix behind all that is to be seen by it."""
    late = [callback for callback, _ in monitors_of(trainer) if isinstance(callback, EarlyStopping)]
    others = [callback for callback in trainer.callbacks if callback not in late]  # type: ignore[attr-defined]
    first = next((i for i, c in enumerate(others) if isinstance(c, Checkpoint)), len(others))
    # In a new list: Lightning is iterating over the old one.
    trainer.callbacks = [*others[:first], *late, *others[first:]]  # type: ignore[attr-defined]


def publish(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Makes metrics known to the callbacks that monitor them, and to ``trainer.callback_metrics``."""
    device = trainer.strategy.root_device
    # Filled on the device: for a copy of each number the host would wait.
    found = {key: torch.full((), value, device=device) for key, value in values.items()}
    monitored_metrics(trainer).update(found)


def refuse_monitors(trainer: Trainer, known: Collection[str], complete: bool, first: bool) -> None:
    """Refuses callbacks that monitor what will not be there, or look when it is not up to date.

    Args:
        trainer: with the callbacks.
        known: the keys that there will be.
        complete: whether those with names of tasks are among them.
        first: whether no task has ended yet.

    Raises:
        MisconfigurationException: such a callback.
    """
    for callback, key in monitors_of(trainer):
        what = f"{type(callback).__name__}(monitor={key!r})"
        of_one_task = any(part in key for part in ("/score/", "/forgetting/"))
        if key not in known and (complete or not of_one_task):
            nearest = difflib.get_close_matches(key, known, n=1)
            hint = f"the nearest is {nearest[0]!r} of" if nearest else "there are"
            raise MisconfigurationException(
                f"{what}: TaskEvaluation gives no such metric; {hint} {few(sorted(known))}."
            )
        if looks_within_epochs(callback):
            raise MisconfigurationException(
                f"{what} looks after a number of steps or seconds, when tasks have not been scored: let it "
                f"look after validations or epochs, with every_n_epochs."
            )
        undefined = first and "/score/" not in key and not key.endswith(("/average", "/learning"))
        if undefined and isinstance(callback, EarlyStopping) and callback.check_finite:
            raise MisconfigurationException(
                f"{what} would stop the training at its first look, since this is not a number before the "
                f"second task: give it check_finite=False, or monitor {log_keys.task('average')!r}."
            )
