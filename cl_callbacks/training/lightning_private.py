"""Every private attribute of Lightning that this package reads or writes: one function for each.

Lightning has no public name for these. Each function has its own test, so that if a version of Lightning
changes one, the name of the failing test tells which.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from lightning.fabric.utilities.distributed import _DatasetSamplerWrapper
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    ModelCheckpoint,
    RichProgressBar,
    StochasticWeightAveraging,
    TQDMProgressBar,
)
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.trainer.connectors import callback_connector
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.exceptions import _TunerExitException
from torch import nn


def attached_trainer(module: nn.Module) -> Trainer | None:
    """Returns the Trainer of a module, or ``None`` where the public property would raise or there is none."""
    return getattr(module, "_trainer", None)


def is_logging_step(trainer: Trainer) -> bool:
    """Whether this batch completes an optimizer step whose metrics Lightning logs."""
    return trainer._logger_connector.should_update_logs and is_stepping_batch(trainer)


def is_stepping_batch(trainer: Trainer) -> bool:
    """Whether optimizers step in this batch: it is the last of those that are accumulated."""
    return not trainer.fit_loop.epoch_loop._should_accumulate()


def logged_step(trainer: Trainer) -> int:
    """Step at which Lightning logs its own metrics: the number of batches that made an optimizer step."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def progress_bar_metrics(trainer: Trainer) -> MutableMapping[str, Any]:
    """Metrics that the progress bar shows, by key; changes of this mapping are shown."""
    return trainer._logger_connector._progress_bar_metrics


def loaders_in_use(trainer: Trainer) -> CombinedLoader | None:
    """The training loaders that the fit loop iterates."""
    return trainer.fit_loop._combined_loader


def loaders_like(combined: CombinedLoader) -> CombinedLoader:
    """New :class:`CombinedLoader` over the same loaders, with the same nesting and mode."""
    return CombinedLoader(combined.iterables, combined._mode)


def before_batch_transfer(pl_module: LightningModule, batch: Any) -> Any:
    """Runs the module's ``on_before_batch_transfer``, as the Trainer does."""
    return pl_module._on_before_batch_transfer(batch, dataloader_idx=0)


def call_after_batches(trainer: Trainer, call: Callable[[], None]) -> Callable[[], None]:
    """Calls ``call`` when all hooks of a training batch have run; returns what undoes it.

    Lightning then counts the batch as completed, also after a resume from a checkpoint that is written there.
    """
    connector = trainer._logger_connector
    own, before = {k: v for k, v in vars(connector).items() if k == "on_batch_end"}, connector.on_batch_end

    def on_batch_end() -> None:
        before()
        call()

    def undo() -> None:
        vars(connector).pop("on_batch_end", None)
        vars(connector).update(own)

    connector.on_batch_end = on_batch_end  # type: ignore[method-assign]
    return undo


def may_stop_early(trainer: Trainer) -> bool:
    """Whether ``min_epochs`` and ``min_steps`` have been reached."""
    return trainer.fit_loop._can_stop_early


def last_saved_step(checkpoint: ModelCheckpoint) -> int:
    """The global step at which a checkpoint was last written."""
    return checkpoint._last_global_step_saved


def last_saved_file(checkpoint: ModelCheckpoint) -> str:
    """Path of the checkpoint that was last written; empty if there is none."""
    return checkpoint._last_checkpoint_saved


def last_averaged_epoch(averaging: StochasticWeightAveraging) -> float:
    """The last epoch of the fit that trains; infinite before the fit starts, and where there is no limit."""
    return averaging.swa_end if "_max_epochs" in vars(averaging) else math.inf


def looks_at_epoch_end(monitoring: Callback, trainer: Trainer) -> bool:
    """Whether a callback reads its monitored value when an epoch ends, and not when a validation does."""
    if isinstance(monitoring, ModelCheckpoint):
        return monitoring._should_save_on_train_epoch_end(trainer)
    return isinstance(monitoring, EarlyStopping) and bool(monitoring._check_on_train_epoch_end)


def looks_within_epochs(monitoring: Callback) -> bool:
    """Whether a callback reads its monitored value after a number of steps or seconds."""
    if not isinstance(monitoring, ModelCheckpoint):
        return False
    return monitoring._every_n_train_steps > 0 or monitoring._train_time_interval is not None


def monitored_metrics(trainer: Trainer) -> MutableMapping[str, Any]:
    """Metrics that callbacks monitor, by key; changes of this mapping are seen by them."""
    return trainer._logger_connector._callback_metrics


def names_in_validation(trainer: Trainer) -> list[str]:
    """Names of what the validation of a fit has logged, also in the sanity check, which has no metrics."""
    metas = [found.meta for found in trainer.fit_loop.epoch_loop.val_loop._results.values()]
    suffixes = [
        f"/dataloader_idx_{m.dataloader_idx}" if m.add_dataloader_idx and m.dataloader_idx is not None else ""
        for m in metas
    ]
    return [f"{m.name}{suffix}" for m, suffix in zip(metas, suffixes, strict=True)]


def is_live(bar: RichProgressBar) -> bool:
    """Whether the bar is on the screen."""
    return bar.progress is not None and not bar._progress_stopped


def start_bar(bar: RichProgressBar, trainer: Trainer) -> None:
    """Puts the bar on the screen."""
    bar._init_progress(trainer)


def stop_bar(bar: RichProgressBar) -> None:
    """Takes the bar off the screen."""
    bar._stop_progress()


def add_line(bar: RichProgressBar, description: str, total: float) -> Any:
    """Adds a line to the bar and returns its id."""
    return bar._add_task(total, description)


def has_training_line(bar: TQDMProgressBar) -> bool:
    """Whether the bar of the training is on the screen; a closed one counts as disabled."""
    return bar._train_progress_bar is not None and not bar._train_progress_bar.disable


@contextmanager
def metrics_kept(trainer: Trainer) -> Iterator[None]:
    """Restores the Trainer's metrics, and its record of the current hook, afterwards."""
    connector, last = trainer._logger_connector, getattr(trainer, "_last_val_time", None)
    metrics = connector._callback_metrics, connector._logged_metrics, connector._progress_bar_metrics
    first, current = connector._first_loop_iter, connector._current_fx
    connector._callback_metrics, connector._logged_metrics = dict(metrics[0]), dict(metrics[1])
    connector._progress_bar_metrics = dict(metrics[2])
    try:
        yield
    finally:
        trainer._last_val_time = last  # type: ignore[attr-defined]
        connector._callback_metrics, connector._logged_metrics, connector._progress_bar_metrics = metrics
        connector._first_loop_iter, connector._current_fx = first, current


@contextmanager
def validation_loop_kept(loop: Any) -> Iterator[list[Any]]:
    """Yields the loaders of a validation loop, and restores its progress and loaders afterwards."""
    kept = vars(loop) | {
        "batch_progress": copy.deepcopy(loop.batch_progress),
        "_seen_batches_per_dataloader": copy.copy(loop._seen_batches_per_dataloader),
    }
    loop._restarting = False  # after a resume it would begin at the position in the checkpoint
    loop.setup_data()
    try:
        yield [] if loop._combined_loader is None else loop._combined_loader.flattened
    finally:
        vars(loop).update(kept)


def new_fit_loop(trainer: Trainer) -> Any:
    """A fit loop that has not run yet, with the limits and the data of the Trainer's own."""
    own = trainer.fit_loop
    loop = type(own)(trainer, max_epochs=own.max_epochs)
    loop.epoch_loop = type(own.epoch_loop)(trainer, max_steps=own.max_steps)
    loop._data_source = copy.copy(own._data_source)
    loop.epoch_loop.val_loop._data_source = copy.copy(own.epoch_loop.val_loop._data_source)
    return loop


def continued_fit_loop(trainer: Trainer, progress: dict[str, Any]) -> Any:
    """A new fit loop that goes on from the progress of another one, as a further fit does."""
    loop = new_fit_loop(trainer)
    loop.load_state_dict(copy.deepcopy(progress))
    epoch = loop.epoch_loop
    for part in (loop, epoch, epoch.val_loop, epoch.automatic_optimization, epoch.manual_optimization):
        part.on_iteration_done()  # or it would do what follows a checkpoint
    return loop


def set_training_data(loop: Any, loaders: Any) -> None:
    """Sets the loader that a fit loop will iterate."""
    loop._data_source.instance = loaders


def undivided(sampler: Any) -> Any:
    """The sampler of the user whose samples this one divides between processes; ``None`` if it is another."""
    source = getattr(sampler, "dataset", None)
    return source._sampler if isinstance(source, _DatasetSamplerWrapper) else None


def starts_processes(trainer: Trainer) -> bool:
    """Whether each ``fit`` runs in processes of its own, whose objects do not come back."""
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


def extend_fits_in_processes(
    save: Callable[[Trainer, Path], None], load: Callable[[Trainer, Sequence[Any], Path], None]
) -> None:
    """Extends every ``fit`` that starts processes: they call ``save`` at its end, and their starter ``load``.

    ``save(trainer, path)`` is called on all processes; ``load(trainer, arguments, path)`` in the process that
    has called ``fit``, with its arguments.
    """
    launcher: Any = _MultiProcessingLauncher
    launch, collect = launcher.launch, launcher._collect_rank_zero_results

    @wraps(launch)
    def launch_and_load(self: Any, function: Any, *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        with TemporaryDirectory() as folder:
            self.path_of_states = Path(folder, "states.pt")  # goes with the launcher to the processes
            results = launch(self, function, *args, trainer=trainer, **kwargs)
            if trainer is not None and trainer.state.fn == TrainerFn.FITTING:
                load(trainer, args, self.path_of_states)
        return results

    @wraps(collect)
    def save_and_collect(self: Any, trainer: Any, results: Any) -> Any:
        if trainer.state.fn == TrainerFn.FITTING:
            save(trainer, self.path_of_states)
        return collect(self, trainer, results)

    launcher.launch, launcher._collect_rank_zero_results = launch_and_load, save_and_collect


def check_callbacks_first(check: Callable[[Sequence[Callback]], None]) -> None:
    """Has every Trainer call ``check(callbacks)`` before Lightning's own check of its list of callbacks.

    A Lightning without this function keeps its own check alone: this is called when the package is imported,
    which must not fail for the sake of a sentence.
    """
    connector: Any = callback_connector
    own = getattr(connector, "_validate_callbacks_list", None)
    if own is None:
        return

    @wraps(own)
    def check_and_validate(callbacks: Any) -> None:
        check(callbacks)
        own(callbacks)

    connector._validate_callbacks_list = check_and_validate


def leave_fit() -> NoReturn:
    """Ends a fit before its training, within ``on_fit_start``, as Lightning's tuner does."""
    raise _TunerExitException
