"""Fits inside a running Trainer, after which it is as if they had never been."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from cl_callbacks.guards.process_wide import ProcessWide
from cl_callbacks.guards.uninterrupted import uninterrupted
from cl_callbacks.training.generators import isolated_rng
from cl_callbacks.training.lightning_private import metrics_kept
from cl_callbacks.training.module_state import ModuleState
from cl_callbacks.training.silent_logger import SilentLogger
from cl_callbacks.training.waiting_saves import saves_wait

_ANNOUNCEMENTS = logging.getLogger("lightning.pytorch.utilities.rank_zero")


@contextmanager
def quiet_fits(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Within, the Trainer's loop, callbacks and optimizers may be replaced, and training may run.

    Afterwards these are as before, also after an exception or Ctrl-C: all attributes of the Trainer (its
    loops with their progress, callbacks, loggers), metrics, optimizers, schedulers and scaler; the module
    (see :class:`~cl_callbacks.training.module_state.ModuleState`); the random numbers of torch, NumPy and
    Python. Loggers hear nothing, and checkpoints that are asked for are of afterwards. The loop and the
    optimizers at hand are not to be used: make others, with
    :func:`~cl_callbacks.training.lightning_private.new_fit_loop` and
    ``trainer.strategy.setup_optimizers(trainer)``. All processes have to enter it.

    Args:
        trainer: before a fit, or in its ``on_fit_start``.
        pl_module: that is to be trained.
    """
    module, strategy, precision = ModuleState(pl_module), trainer.strategy, trainer.precision_plugin
    optimizers, schedulers = strategy.optimizers, strategy.lr_scheduler_configs
    scale = copy.deepcopy(precision.state_dict())
    with ExitStack() as stack:
        stack.enter_context(saves_wait(trainer))
        stack.enter_context(isolated_rng(trainer, pl_module))
        stack.enter_context(attributes_kept(trainer, trainer.state))
        stack.enter_context(metrics_kept(trainer))
        trainer.loggers = [SilentLogger(logger) for logger in trainer.loggers]
        try:
            yield
        finally:
            with uninterrupted():
                strategy.optimizers, strategy.lr_scheduler_configs = optimizers, schedulers
                precision.load_state_dict(scale)
                module.restore()


@contextmanager
def attributes_kept(*objects: Any) -> Iterator[None]:
    """Restores the attributes of objects: each is the object that it was, whatever happened in that one.

    Example:
        >>> trainer = Trainer(logger=False, enable_checkpointing=False)
        >>> with attributes_kept(trainer):
        ...     trainer.should_stop, trainer.mine = True, 1
        >>> trainer.should_stop, hasattr(trainer, "mine")
        (False, False)
    """
    kept = [dict(vars(each)) for each in objects]
    try:
        yield
    finally:
        for each, attributes in zip(objects, kept, strict=True):
            vars(each).clear()
            vars(each).update(attributes)


@contextmanager
def _quiet_announcements() -> Iterator[None]:
    level = _ANNOUNCEMENTS.level
    _ANNOUNCEMENTS.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        _ANNOUNCEMENTS.setLevel(level)


UNANNOUNCED = ProcessWide(_quiet_announcements)
"""Keeps Lightning from saying why a fit has stopped."""
