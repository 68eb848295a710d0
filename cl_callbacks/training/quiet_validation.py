"""The Trainer's own validation, run in the middle of training without side effects."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from cl_callbacks.gradients.modes import modes_kept
from cl_callbacks.guards.waiting_signals import Section
from cl_callbacks.tensors.shards import reshard
from cl_callbacks.training.generators import generators_kept, isolated_rng
from cl_callbacks.training.lightning_private import metrics_kept, validation_loop_kept
from cl_callbacks.training.progress import Advance, progress
from cl_callbacks.training.quiet import unremembered
from cl_callbacks.training.silent_logger import SilentLogger


def quiet_validation(
    trainer: Trainer, what: str = "validation", *, averaged: bool = True
) -> dict[str, Tensor]:
    """Runs the validation loop of a Trainer that is fitting, and returns the metrics it has logged.

    The module's ``validation_step``, hooks and metrics run as in any validation, over the same loaders and as
    many batches. No validation hooks of callbacks are called, except of those that average weights and swap
    them in for validation; nothing reaches a logger. Afterwards these are restored: modes, buffers, metrics,
    random numbers, progress, gradients, ``trainer.callback_metrics``. Other effects of the module's hooks (an
    attribute that they change, a scheduler that they step) remain. All processes have to call it.

    Args:
        trainer: that is fitting, and not validating.
        what: description for the progress bar.
        averaged: whether averaged weights are swapped in.

    Returns:
        Metrics by name, as in ``trainer.callback_metrics``: with several loaders ``val_acc/dataloader_idx_0``
        and so on; empty if there is no validation.
    """
    pl_module, loop = trainer.lightning_module, trainer.fit_loop.epoch_loop.val_loop
    batches = sum(loop.max_batches)  # 0 before the first validation
    total = int(batches) if 0 < batches < math.inf else None
    with (
        Section(),
        progress(trainer, what, total) as advance,
        _unnoticed(trainer, _Counting(advance), averaged),
    ):
        before = dict(trainer.callback_metrics)
        with modes_kept(pl_module), unremembered(pl_module):
            loop.run()
        after = dict(trainer.callback_metrics)
    reshard(pl_module)  # a forward without backward leaves parameters gathered
    return {name: value for name, value in after.items() if value is not before.get(name)}


class _Counting(Callback):
    """Counts the batches for the progress bar."""

    def __init__(self, advance: Advance) -> None:
        self.advance = advance

    def on_validation_batch_end(self, *args: Any) -> None:
        self.advance(1)


@contextmanager
def _unnoticed(trainer: Trainer, counting: Callback, averaged: bool) -> Iterator[None]:
    loop, loggers = trainer.fit_loop.epoch_loop.val_loop, trainer.loggers
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    trainer.loggers = [SilentLogger(logger) for logger in loggers]
    trainer.callbacks = [counting, *callbacks]  # type: ignore[attr-defined]
    trainer.validating = True
    try:
        with ExitStack() as stack:
            stack.enter_context(metrics_kept(trainer))
            for callback in callbacks:
                if not (averaged and isinstance(callback, WeightAveraging)):
                    stack.enter_context(_deaf(callback))
            stack.enter_context(isolated_rng(trainer, trainer.lightning_module))
            stack.enter_context(_as_before(loop))
            yield
    finally:
        trainer.training = True
        trainer.callbacks, trainer.loggers = callbacks, loggers  # type: ignore[attr-defined]


@contextmanager
def _deaf(callback: Callback) -> Iterator[None]:
    hooks = [name for name in dir(callback) if name.startswith("on_validation_")]
    own = {hook: vars(callback)[hook] for hook in hooks if hook in vars(callback)}
    vars(callback).update(dict.fromkeys(hooks, _ignore))
    try:
        yield
    finally:
        for hook in hooks:
            del vars(callback)[hook]
        vars(callback).update(own)


def _ignore(*args: Any) -> None:
    """Does nothing, in place of the hooks of a callback."""


@contextmanager
def _as_before(loop: Any) -> Iterator[None]:
    """Restores the loop afterwards: its progress, its loaders and their generators."""
    with validation_loop_kept(loop) as loaders, generators_kept(loaders):
        yield
