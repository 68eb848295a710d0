"""The Trainer's own validation, run in the middle of training and noticed by nobody."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor

from cl_callbacks.progress import Advance, progress
from cl_callbacks.quiet import isolated_rng, modes_kept, unremembered
from cl_callbacks.shards import reshard


def quiet_validation(trainer: Trainer, what: str = "validation") -> dict[str, Tensor]:
    """Runs the validation loop of a Trainer that is fitting, and returns what it has logged.

    The module's ``validation_step``, hooks and metrics run as in any validation, over the same loaders
    and as many batches; no callback and no logger hears of it. Afterwards everything is as before: modes,
    buffers, metrics, random numbers, progress, gradients, what others read in ``trainer.callback_metrics``.
    All processes have to call it.

    Args:
        trainer: that is fitting, and not validating.
        what: is being done, for the progress bar.

    Returns:
        By name, as in ``trainer.callback_metrics``: with several loaders ``val_acc/dataloader_idx_0`` and so
        on; nothing if there is nothing to validate with.
    """
    pl_module, loop = trainer.lightning_module, trainer.fit_loop.epoch_loop.val_loop
    batches = sum(loop.max_batches)  # 0 before the first validation
    total = int(batches) if 0 < batches < math.inf else None
    with progress(trainer, what, total) as advance, _unnoticed(trainer, _Counting(advance)):
        with modes_kept(pl_module), unremembered(pl_module):
            loop.run()
        found = dict(trainer.callback_metrics)
    reshard(pl_module)  # a forward without backward leaves parameters whole
    return found


class _Counting(Callback):
    """The only one that hears of the validation."""

    def __init__(self, advance: Advance) -> None:
        self.advance = advance

    def on_validation_batch_end(self, *args: Any) -> None:
        """Moves the progress bar on."""
        self.advance(1)


@contextmanager
def _deaf(bar: ProgressBar) -> Iterator[None]:
    hooks = [name for name in dir(bar) if name.startswith("on_validation_")]
    vars(bar).update(dict.fromkeys(hooks, _ignore))
    try:
        yield
    finally:
        for hook in hooks:
            del vars(bar)[hook]


def _ignore(*args: Any) -> None:
    """Stands in for the hooks of a progress bar."""


@contextmanager
def _unnoticed(trainer: Trainer, counting: Callback) -> Iterator[None]:
    connector, loop = trainer._logger_connector, trainer.fit_loop.epoch_loop.val_loop
    metrics = connector._callback_metrics, connector._logged_metrics, connector._progress_bar_metrics
    first, current = connector._first_loop_iter, connector._current_fx
    progress, last = copy.deepcopy(loop.batch_progress), getattr(trainer, "_last_val_time", None)
    callbacks, loggers = trainer.callbacks, trainer.loggers  # type: ignore[attr-defined]
    bars = [callback for callback in callbacks if isinstance(callback, ProgressBar)]
    connector._callback_metrics, connector._logged_metrics = {}, {}
    connector._progress_bar_metrics = dict(connector._progress_bar_metrics)
    # Rich's bar, redrawn by a thread, looks for itself among the callbacks. The module may use its loggers:
    # they are there, and forget what they are told.
    trainer.callbacks, trainer.loggers = [counting, *bars], [DummyLogger() for _ in loggers]  # type: ignore[attr-defined]
    trainer.validating = True
    try:
        with isolated_rng(trainer.strategy.root_device), ExitStack() as stack:
            for bar in bars:
                stack.enter_context(_deaf(bar))
            yield
    finally:
        trainer.training = True
        trainer.callbacks, trainer.loggers = callbacks, loggers  # type: ignore[attr-defined]
        loop.batch_progress, trainer._last_val_time = progress, last  # type: ignore[attr-defined]
        connector._callback_metrics, connector._logged_metrics, connector._progress_bar_metrics = metrics
        connector._first_loop_iter, connector._current_fx = first, current
