"""Callbacks of which one object serves one Trainer at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary, ref

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.exceptions import MisconfigurationException

_LOCK = threading.RLock()
_TRAINERS: WeakKeyDictionary[Callback, ref[Trainer]] = WeakKeyDictionary()
"""The Trainer that has started last with each callback; not in the callback, so that copies have none."""

if hasattr(os, "register_at_fork"):  # what another process has is a copy
    os.register_at_fork(after_in_child=_TRAINERS.clear)


class OfOneTrainer(Callback):
    """Base of the callbacks that keep state.

    A Trainer that starts with an object of them which another Trainer is running with, in a fit around this
    one or in another thread, is refused before its first step, and the other training does not notice. After
    that one has ended, in whatever way, the object may be given to any other.

    Raises:
        MisconfigurationException: when a Trainer starts, another one is running with this object.

    Example:
        >>> class Counting(OfOneTrainer):
        ...     def setup(self, trainer, pl_module, stage):
        ...         print(f"begins to {stage}")
        >>> trainer = Trainer(logger=False, enable_checkpointing=False)
        >>> Counting().setup(trainer, LightningModule(), "fit")
        begins to fit
    """

    def __init_subclass__(cls, **options: Any) -> None:
        """Extends the hooks of each subclass by which a Trainer begins and ends, whether they call super."""
        super().__init_subclass__(**options)
        for name, extend in _EXTENDED.items():
            hook = getattr(cls, name)  # its own, or that of a mixin
            if not hasattr(hook, _MARK):
                setattr(cls, name, extend(hook))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a second Trainer at a time."""
        _claim(self, trainer)


def _claiming(hook: Callable[..., None]) -> Callable[..., None]:
    @wraps(hook)
    def claim_and_begin(self: OfOneTrainer, trainer: Trainer, *args: Any, **options: Any) -> None:
        _refuse_class(self)
        _claim(self, trainer)
        hook(self, trainer, *args, **options)

    setattr(claim_and_begin, _MARK, True)
    return claim_and_begin


def _of_its_trainer(hook: Callable[..., None]) -> Callable[..., None]:
    @wraps(hook)
    def end_if_own(self: OfOneTrainer, trainer: Trainer, *args: Any, **options: Any) -> None:
        a_class = isinstance(self, Trainer)  # that was refused
        if not a_class and _running_with(self) in (None, trainer):  # a refused Trainer ends, too
            hook(self, trainer, *args, **options)

    setattr(end_if_own, _MARK, True)
    return end_if_own


_MARK = "_of_one_trainer"
_EXTENDED = {"setup": _claiming, "teardown": _of_its_trainer, "on_exception": _of_its_trainer}


def _refuse_class(callback: object) -> None:
    """Refuses a class among the callbacks: its hooks get the Trainer in the place of the object."""
    if isinstance(callback, Trainer):
        listed: list[Any] = callback.callbacks  # type: ignore[attr-defined]
        names = [kind.__name__ for kind in listed if isinstance(kind, type)]
        raise MisconfigurationException(
            f"callbacks has the class {names[0]} and not an object of it: write {names[0]}()."
        )


def _claim(callback: Callback, trainer: Trainer) -> None:
    with _LOCK:
        other = _running_with(callback)
        if other is None or other is trainer:
            _TRAINERS[callback] = ref(trainer)
            return
    if trainer.lightning_module is other.lightning_module:  # to which it says by now that it is this one's
        other.lightning_module.trainer = other
    kind, name = type(callback).__name__, getattr(callback, "name", None)
    raise MisconfigurationException(
        f"{kind}{f' {name!r}' if name else ''} is in use by another Trainer that has not ended, in a fit "
        f"around this one or in another thread, and its state belongs to that training: make one {kind} for "
        f"each Trainer."
    )


def _running_with(callback: Callback) -> Trainer | None:
    """The Trainer that is running with a callback, as its own state says: whatever ends it, changes that."""
    with _LOCK:
        known = _TRAINERS.get(callback)
    trainer = None if known is None else known()
    return trainer if trainer is not None and trainer.state.status == TrainerStatus.RUNNING else None
