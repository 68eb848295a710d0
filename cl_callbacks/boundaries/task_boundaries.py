"""Base of the callbacks that declare tasks, and the dispatch of task events to all listeners."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cl_callbacks.boundaries.last_task import LastTask
from cl_callbacks.boundaries.process_state import in_a_group, of_all_processes, of_this_process
from cl_callbacks.boundaries.transaction import Revert, all_or_none
from cl_callbacks.guards.saved_state import restore_atomically
from cl_callbacks.guards.sound_state import COUNT
from cl_callbacks.guards.uninterrupted import uninterrupted
from cl_callbacks.guards.waiting_signals import signals_wait
from cl_callbacks.training.fit_end import after_training, forget_after_training, weights_may_change
from cl_callbacks.training.lightning_private import last_saved_file, last_saved_step
from cl_callbacks.training.log import log_configuration
from cl_callbacks.training.one_trainer import OfOneTrainer
from cl_callbacks.training.progress import say, show_in_progress_bar
from cl_callbacks.training.waiting_saves import saves_wait

_NOW = nullcontext()


def dispatch(trainer: Trainer, event: str, task: int) -> None:
    """Calls ``event(trainer, pl_module, task)`` wherever it is defined.

    The order is: the callbacks in list order, but those that move weights (``moves_weights = True``) first,
    then those that correct what has become of them (``corrects_weights = True``), and those that only observe
    the others (``observes = True``) last; then the LightningModule, then the LightningDataModule.
    """
    pl_module = trainer.lightning_module
    callbacks = sorted(trainer.callbacks, key=_turn)  # type: ignore[attr-defined]
    for listener in (*callbacks, pl_module, trainer.datamodule):  # type: ignore[attr-defined]
        hook = getattr(listener, event, None)
        if callable(hook):
            hook(trainer, pl_module, task)


def _turn(callback: Callback) -> int:
    first = 2 * getattr(callback, "moves_weights", False) + getattr(callback, "corrects_weights", False)
    return getattr(callback, "observes", False) - first


class TaskBoundaries(OfOneTrainer):
    """Base of the callbacks that declare tasks; a Trainer has one.

    Before ``on_task_end(trainer, pl_module, task)``, ``on_task_ending`` with the same arguments is sent, in
    which the weights are still those that training has ended with. On ``on_task_end`` callbacks that move
    weights come first, such as :class:`~cl_callbacks.WeightMerging`, and then
    :class:`~cl_callbacks.RetentionGuard`: all others meet the weights with which the network goes on.

    If the weights change after the last step of a fit and the end of its last task, as where averages are
    swapped in when training ends, ``on_task_revised(trainer, pl_module, task)`` is sent: rules consolidate
    the task anew, from the state that they had before its end, and it is scored anew.

    The events are sent in hooks where ``self.log`` works, except for a task that ends only with the fit
    (early stopping, the last task of a stream): there use ``trainer.logger``.

    The progress bar shows the current task, and a line is printed at the end of each task. Any callback may
    add to that line with a method ``task_summary(task)`` that returns a few words, or ``None``.

    The end of a task is one change: if a listener raises an error, or Ctrl-C comes, all rules, evaluations
    and this callback go back to how they were before it, and the weights too if a rule has moved them. Until
    it is over, handlers of signals wait, and so do checkpoints that listeners ask for.

    Attributes:
        task: the current task, or the next one between tasks; counted from 0.
        task_is_open: whether a task has begun and not ended.
        looking_back: whether ``on_task_end`` is running on a network rewound to an earlier step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.task = 0
        self.task_is_open = False
        self.looking_back = False
        self._evaluating = False
        self._last_task = LastTask()
        self._of_processes: list[Any] = []

    def begin(self, trainer: Trainer) -> None:
        """Begins the task: sends ``on_task_start``."""
        with signals_wait(), saves_wait(trainer):
            self.task_is_open = True
            self._last_task.begin()
            show_in_progress_bar(trainer, self.progress_bar_items())
            dispatch(trainer, "on_task_start", self.task)

    def end(self, trainer: Trainer, as_of: AbstractContextManager[None] = _NOW) -> None:
        """Ends the task: sends ``on_task_end``, and rewrites checkpoints that this step has saved already.

        ``as_of`` is a context that rewinds everything to the step at which the task ended.
        """
        ended, looking_back = self.task, as_of is not _NOW
        with signals_wait():
            with _one_change(trainer, as_of) as committed:
                self.looking_back = looking_back
                dispatch(trainer, "on_task_ending", ended)
                dispatch(trainer, "on_task_end", ended)
                committed()
                self.task, self.task_is_open, self.looking_back = ended + 1, False, False
            self._last_task.end(trainer, ended, looking_back)
            _rewrite_last_checkpoints(trainer)
        say(trainer, _summary(trainer, ended))

    def reversal(self) -> Revert:
        """Keeps which task is open; subclasses extend it."""
        kept = {name: getattr(self, name) for name in ("task", "task_is_open", "looking_back")}
        return partial(vars(self).update, kept)

    def progress_bar_items(self) -> dict[str, str]:
        """Items for the progress bar; subclasses may add to them."""
        return {"task": str(self.task)}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a second boundary callback."""
        self._evaluating = stage != "fit"
        refuse_two_boundaries(trainer.callbacks)  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Goes on with the count of tasks; refuses a ``fit`` that would return at once without training."""
        log_configuration(trainer)
        if not self.task_is_open:  # a rule may have counted further, with another callback than this
            elsewhere = [getattr(c, "next_task", 0) for c in trainer.callbacks]  # type: ignore[attr-defined]
            self.task = max(self.task, *elsewhere)
        if trainer.ckpt_path is not None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # progress comes from the checkpoint, and resuming a finished run is no error
        done, limit = epochs_done(trainer), trainer.max_epochs
        if limit is not None and 0 <= limit <= done and done > 0:
            raise MisconfigurationException(
                f"This `trainer.fit` would return at once: max_epochs={limit} was reached by an earlier "
                f"fit, and Lightning counts on. Before each further fit, raise the limit: "
                f"`trainer.fit_loop.max_epochs += n` — or train all tasks in one fit with EpochBoundaries."
            )
        if 0 <= trainer.max_steps <= trainer.global_step and trainer.global_step > 0:
            raise MisconfigurationException(
                f"This `trainer.fit` would return at once: max_steps={trainer.max_steps} was reached by an "
                f"earlier fit. Before each further fit, raise `trainer.fit_loop.epoch_loop.max_steps`."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows a task that continues from a checkpoint or an earlier fit, since Lightning clears its bar."""
        self._restore_process()
        self._last_task = LastTask(continues=self.task_is_open)
        if self.task_is_open:
            show_in_progress_bar(trainer, self.progress_bar_items())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the weights once all callbacks and the module have ended the training."""
        after_training(trainer, partial(self._revise, trainer))
        if self.why_no_task_ended is not None:
            self._last_task.warn_who_waits(trainer, self.why_no_task_ended)

    def _revise(self, trainer: Trainer) -> None:
        """Has the last task consolidated and scored anew, if the weights have changed since its end."""
        if not weights_may_change(trainer):
            return
        if trainer.strategy.reduce_boolean_decision(self._last_task.is_of_other_weights(trainer), all=False):
            task = self._last_task.task
            with signals_wait():
                with _one_change(trainer) as committed:
                    dispatch(trainer, "on_task_ending", task)
                    dispatch(trainer, "on_task_revised", task)
                    committed()
                self._last_task.end(trainer, task)
                _rewrite_last_checkpoints(trainer, also_others=True)

    @property
    def why_no_task_ended(self) -> str | None:
        """Why a whole fit may have ended no task, as the end of a sentence; ``None`` where that is usual."""
        return f"{type(self).__name__} has declared no end"

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Warns if weights have changed where that is too late to consolidate the last task anew."""
        self._evaluating = False
        if self._last_task.is_of_other_weights(trainer):
            rank_zero_warn(
                f"{type(self).__name__}: the weights have changed after task {self._last_task.task} ended "
                f"with the last step of the fit, so rules hold on to other weights than the fit leaves, and "
                f"scores are of those. Let what changes weights at the end do so in `on_train_end`."
            )
        self._last_task = LastTask()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Forgets what was to be done at the end of the training, which does not come."""
        forget_after_training(trainer)
        self._last_task = LastTask()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives only. A collective: all processes must call it."""
        state = {"task": self.task, "task_is_open": self.task_is_open}
        if self._of_processes:
            return state | {"processes": self._of_processes}
        own = self.process_state()
        return state | {"processes": of_all_processes(own)} if own else state

    def process_state(self) -> dict[str, Any]:
        """State that differs between processes, for :meth:`restore_process`; subclasses may add to it."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the task in which the checkpoint was written, unless the Trainer only evaluates.

        Raises:
            ValueError: a state of something else; the present state is then kept.
        """
        if not self._evaluating:
            restore_atomically(self, state_dict, {"task": COUNT})

    def restore(self, state_dict: dict[str, Any]) -> None:
        """Restores a checked state; subclasses extend it."""
        self.task, self.task_is_open = state_dict["task"], state_dict["task_is_open"]
        self._of_processes = state_dict.get("processes", [])
        if len(self._of_processes) == 1 or in_a_group():
            self._restore_process()

    def _restore_process(self) -> None:
        """Takes this process's part of what was restored before it was known which process this is."""
        if self._of_processes:
            self.restore_process(of_this_process(self._of_processes))
            self._of_processes = []

    def restore_process(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`process_state` returned; subclasses extend it."""


def refuse_two_boundaries(callbacks: Iterable[Callback]) -> None:
    """Raises an error for a list with more than one callback that says when a task ends.

    Raises:
        MisconfigurationException: there are several; the message names them.
    """
    boundaries = [type(callback).__name__ for callback in callbacks if isinstance(callback, TaskBoundaries)]
    if len(boundaries) > 1:
        raise MisconfigurationException(
            f"One callback must say when a task ends, and this Trainer has {len(boundaries)}: "
            f"{', '.join(boundaries)}. Keep one of them."
        )


def boundaries_of(trainer: Trainer) -> TaskBoundaries:
    """Returns the boundary callback of a Trainer that has one."""
    return next(c for c in trainer.callbacks if isinstance(c, TaskBoundaries))  # type: ignore[attr-defined]


def epochs_done(trainer: Trainer) -> int:
    """Returns how many epochs the Trainer has trained, in all its fits."""
    return trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]


@contextmanager
def _one_change(trainer: Trainer, as_of: AbstractContextManager[None] = _NOW) -> Iterator[Callable[[], None]]:
    """Yields what is to be called when all is done that can fail: from there on Ctrl-C waits, too.

    Before, an exception brings everything back to how it was.
    """
    with saves_wait(trainer), ExitStack() as rest, as_of, all_or_none(trainer):
        yield lambda: rest.enter_context(uninterrupted())


def _summary(trainer: Trainer, task: int) -> str:
    """The line printed at a task's end: step, time of consolidation, and the callbacks' summaries."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    parts: list[str | None] = [f"task {task} ended at step {trainer.global_step}"]
    seconds = sum(getattr(rule, "seconds", 0.0) for rule in callbacks if hasattr(rule, "consolidate"))
    if seconds >= 0.001:  # rules that do nothing at the end of a task take no time
        samples = max(getattr(rule, "samples_measured", 0) for rule in callbacks)
        time = f"{seconds:.1f} s" if seconds >= 0.95 else f"{1000 * seconds:.0f} ms"
        parts.append(f"consolidation {time}{f' on {samples} samples' if samples else ''}")
    parts += [c.task_summary(task) for c in callbacks if hasattr(c, "task_summary")]
    return " · ".join(filter(None, parts))


def _rewrite_last_checkpoints(trainer: Trainer, also_others: bool = False) -> None:
    """Rewrites the last checkpoint if it was saved at this step, before the task was consolidated.

    A checkpoint callback that saves at the end of validation or every n steps saves once per step, and so
    ``last.ckpt`` would lack the consolidated state. With ``also_others``, checkpoints of other names too.
    """
    for checkpoint in trainer.checkpoint_callbacks:
        if not isinstance(checkpoint, ModelCheckpoint) or last_saved_step(checkpoint) != trainer.global_step:
            continue
        last = checkpoint.last_model_path if checkpoint.save_last else ""
        for path in {last, last_saved_file(checkpoint) if also_others else ""} - {""}:
            trainer.save_checkpoint(path, checkpoint.save_weights_only)
