"""The Trainer's own validation, run in the middle of training and noticed by nobody."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Generator, Tensor

from cl_callbacks.tensors.shards import reshard
from cl_callbacks.training.lightning_private import metrics_kept, validation_loop_kept
from cl_callbacks.training.progress import Advance, progress
from cl_callbacks.training.quiet import isolated_rng, modes_kept, unremembered


def quiet_validation(
    trainer: Trainer, what: str = "validation", *, averaged: bool = True
) -> dict[str, Tensor]:
    """Runs the validation loop of a Trainer that is fitting, and returns what it has logged.

    The module's ``validation_step``, hooks and metrics run as in any validation, over the same loaders and as
    many batches. No callback hears of it, but for those that average weights and put these in the place of
    the module's for a validation; no logger is told anything. Afterwards everything is as before: modes,
    buffers, metrics, random numbers, progress, gradients, what others read in ``trainer.callback_metrics``.
    What hooks of the module do beyond that (a number of its own, a scheduler that they step) is done. All
    processes have to call it.

    Args:
        trainer: that is fitting, and not validating.
        what: is being done, for the progress bar.
        averaged: whether averaged weights take part.

    Returns:
        By name, as in ``trainer.callback_metrics``: with several loaders ``val_acc/dataloader_idx_0`` and so
        on; nothing if there is nothing to validate with.
    """
    pl_module, loop = trainer.lightning_module, trainer.fit_loop.epoch_loop.val_loop
    batches = sum(loop.max_batches)  # 0 before the first validation
    total = int(batches) if 0 < batches < math.inf else None
    with progress(trainer, what, total) as advance, _unnoticed(trainer, _Counting(advance), averaged):
        before = dict(trainer.callback_metrics)
        with modes_kept(pl_module), unremembered(pl_module):
            loop.run()
        after = dict(trainer.callback_metrics)
    reshard(pl_module)  # a forward without backward leaves parameters whole
    return {name: value for name, value in after.items() if value is not before.get(name)}


class _Counting(Callback):
    """The only one that hears of the batches."""

    def __init__(self, advance: Advance) -> None:
        self.advance = advance

    def on_validation_batch_end(self, *args: Any) -> None:
        """Moves the progress bar on."""
        self.advance(1)


class _Silent(DummyLogger):
    """Stands in for a logger: the module may use it, and it forgets what it is told."""

    def __init__(self, logger: Logger) -> None:
        super().__init__()
        self._logger = logger

    @property
    def log_dir(self) -> Any:
        """Of the logger."""
        return getattr(self._logger, "log_dir", None)

    @property
    def save_dir(self) -> str | None:
        """Of the logger; of kinds that have a folder for each run this, which `trainer.log_dir` is then."""
        own = isinstance(self._logger, TensorBoardLogger | CSVLogger)
        return self.log_dir if own else self._logger.save_dir

    @property
    def name(self) -> Any:
        """Of the logger."""
        return self._logger.name

    @property
    def version(self) -> Any:
        """Of the logger."""
        return self._logger.version


@contextmanager
def _unnoticed(trainer: Trainer, counting: Callback, averaged: bool) -> Iterator[None]:
    loop, loggers = trainer.fit_loop.epoch_loop.val_loop, trainer.loggers
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    trainer.loggers = [_Silent(logger) for logger in loggers]
    trainer.callbacks = [counting, *callbacks]  # type: ignore[attr-defined]
    trainer.validating = True
    try:
        with ExitStack() as stack:
            stack.enter_context(metrics_kept(trainer))
            for callback in callbacks:
                if not (averaged and isinstance(callback, WeightAveraging)):
                    stack.enter_context(_deaf(callback))
            stack.enter_context(isolated_rng(trainer.strategy.root_device))
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
    """Stands in for the hooks of a callback."""


@contextmanager
def _as_before(loop: Any) -> Iterator[None]:
    """Afterwards the loop is where it was: its progress, its loaders and when they were loaded."""
    with validation_loop_kept(loop) as loaders:
        drawn = {g: g.get_state() for loader in loaders for g in _generators(loader)}
        try:
            yield
        finally:
            for generator, state in drawn.items():
                generator.set_state(state)


def _generators(loader: Any) -> list[Generator]:
    """What a loader draws from: perhaps shared with the loaders of the training."""
    owners = loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)
    found = (getattr(owner, "generator", None) for owner in owners)
    return [generator for generator in found if isinstance(generator, Generator)]
