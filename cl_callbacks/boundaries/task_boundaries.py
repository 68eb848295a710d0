"""Who says that a task begins and ends, and how everybody hears of it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from cl_callbacks.boundaries.process_state import of_all_processes, of_this_process
from cl_callbacks.guards.saved_state import restore_atomically
from cl_callbacks.training.lightning_private import last_saved_step, may_stop_early
from cl_callbacks.training.log import log_configuration
from cl_callbacks.training.progress import say, show_in_progress_bar

_NOW = nullcontext()


def dispatch(trainer: Trainer, event: str, task: int) -> None:
    """Calls ``event(trainer, pl_module, task)`` wherever it is defined.

    On the callbacks in list order, those that merely observe what the others do (``observes = True``) after
    them; then on the LightningModule, then on the LightningDataModule.
    """
    pl_module = trainer.lightning_module
    callbacks = sorted(trainer.callbacks, key=lambda callback: getattr(callback, "observes", False))  # type: ignore[attr-defined]
    for listener in (*callbacks, pl_module, trainer.datamodule):  # type: ignore[attr-defined]
        hook = getattr(listener, event, None)
        if callable(hook):
            hook(trainer, pl_module, task)


class TaskBoundaries(Callback):
    """Base of the callbacks that declare tasks; a Trainer has one.

    The events come in hooks where ``self.log`` works, but for a task that only the end of the fit ends
    (early stopping, the last task of a stream): there use ``trainer.logger``.

    The progress bar shows the current task, and the terminal a line at the end of each. Any callback may add
    to that line with a method ``task_summary(task)`` that returns a few words, or ``None``.

    Attributes:
        task: the current task, or the next one between tasks; counted from 0.
        task_is_open: whether a task has begun and not ended.
        looking_back: whether, while a task ends, everything is as it was some steps ago.
    """

    def __init__(self) -> None:
        super().__init__()
        self.task = 0
        self.task_is_open = False
        self.looking_back = False
        self._evaluating = False

    def begin(self, trainer: Trainer) -> None:
        """Declares that the task begins."""
        self.task_is_open = True
        show_in_progress_bar(trainer, self.progress_bar_items())
        dispatch(trainer, "on_task_start", self.task)

    def end(self, trainer: Trainer, as_of: AbstractContextManager[None] = _NOW) -> None:
        """Declares that the task ends; what it leaves behind is in the checkpoints of this step.

        Args:
            trainer: that is training.
            as_of: within it everything is as it was when the task ended; default: as it is.
        """
        self.looking_back = as_of is not _NOW
        with as_of:
            dispatch(trainer, "on_task_end", self.task)
        self.looking_back = False
        ended = self.task
        self.task_is_open = False
        self.task += 1
        _rewrite_last_checkpoints(trainer)
        say(trainer, _summary(trainer, ended))

    def progress_bar_items(self) -> dict[str, str]:
        """What the progress bar shows in a task; to be extended by boundaries that know more."""
        return {"task": str(self.task)}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a second boundary callback."""
        self._evaluating = stage != "fit"
        boundaries = [type(c).__name__ for c in trainer.callbacks if isinstance(c, TaskBoundaries)]  # type: ignore[attr-defined]
        if len(boundaries) > 1:
            raise MisconfigurationException(
                f"One callback must say when a task ends, and this Trainer has {len(boundaries)}: "
                f"{', '.join(boundaries)}. Keep one of them."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs how everything is set, and notices a ``fit`` that would return at once and learn nothing."""
        log_configuration(trainer)
        if trainer.ckpt_path is not None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # progress comes from the checkpoint, and a finished run may be resumed in vain
        done, limit = _epochs_done(trainer), trainer.max_epochs
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
        """Shows a task that goes on from a checkpoint or an earlier fit; Lightning has cleared its bar."""
        if self.task_is_open:
            show_in_progress_bar(trainer, self.progress_bar_items())

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ends the stage."""
        self._evaluating = False

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives only; of several processes all must call it."""
        state = {"task": self.task, "task_is_open": self.task_is_open}
        own = self.process_state()
        return state | {"processes": of_all_processes(own)} if own else state

    def process_state(self) -> dict[str, Any]:
        """What each process has for itself; to be extended, and restored by :meth:`restore_process`."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on in the task in which the checkpoint was written, but not for a mere evaluation.

        Raises:
            ValueError: a state that is not of these boundaries, which are then as they were.
        """
        if not self._evaluating:
            restore_atomically(self, state_dict)

    def restore(self, state_dict: dict[str, Any]) -> None:
        """Takes over a state; to be extended by boundaries with more of it."""
        self.task, self.task_is_open = state_dict["task"], state_dict["task_is_open"]
        if "processes" in state_dict:
            self.restore_process(of_this_process(state_dict["processes"]))

    def restore_process(self, state_dict: dict[str, Any]) -> None:
        """Takes over what :meth:`process_state` has given."""


class FitBoundaries(TaskBoundaries):
    """Each ``trainer.fit`` is one task; what a Trainer without a boundary callback gets.

    Lightning builds the optimizers anew for each fit, and losing Adam's moments at each boundary is a
    source of forgetting of its own.

    Args:
        carry_optimizer: whether the optimizers of a fit take over the state of the previous fit's, for
            the parameters that both train. Learning rates and schedules start anew all the same.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(max_epochs=5, callbacks=[FitBoundaries(carry_optimizer=True)],
        ...     logger=False, enable_checkpointing=False)
    """

    def __init__(self, carry_optimizer: bool = False) -> None:
        super().__init__()
        self.carry_optimizer = carry_optimizer
        self._previous: list[Any] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hands the previous fit's moments to the new optimizers."""
        super().on_train_start(trainer, pl_module)
        if trainer.ckpt_path is None:  # a checkpoint brings the optimizers' state itself
            for old, new in zip(self._previous, trainer.optimizers, strict=False):
                _carry_state(old, new)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins the task, after every ``on_train_start``."""
        if not self.task_is_open:
            self.begin(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begins the task in mid-epoch, where a checkpoint that knows of none goes on."""
        if not self.task_is_open:
            self.begin(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the task in the last epoch, before the checkpoint of that epoch is written."""
        if self.task_is_open and _is_last_epoch(trainer):
            self.end(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the task if the last epoch was not known to be the last, as under early stopping."""
        if self.task_is_open:
            self.end(trainer)
        self._previous = list(trainer.optimizers) if self.carry_optimizer else []


def boundaries_of(trainer: Trainer) -> TaskBoundaries:
    """The boundary callback of a Trainer that has one."""
    return next(c for c in trainer.callbacks if isinstance(c, TaskBoundaries))  # type: ignore[attr-defined]


def ensure_boundaries(trainer: Trainer) -> None:
    """Gives a Trainer without a boundary callback the default, each fit a task."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(callback, TaskBoundaries) for callback in callbacks):
        return
    first_checkpoint = next(
        (i for i, callback in enumerate(callbacks) if isinstance(callback, Checkpoint)),
        len(callbacks),
    )
    # A new list: Lightning is iterating over the old one.
    trainer.callbacks = [  # type: ignore[attr-defined]
        *callbacks[:first_checkpoint],
        FitBoundaries(),
        *callbacks[first_checkpoint:],
    ]


def _summary(trainer: Trainer, task: int) -> str:
    """The line at a task's end: what it cost, and what callbacks have to say of it."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    parts: list[str | None] = [f"task {task} ended at step {trainer.global_step}"]
    seconds = sum(getattr(rule, "seconds", 0.0) for rule in callbacks if hasattr(rule, "consolidate"))
    if seconds >= 0.001:  # rules that do nothing at the end of a task take no time
        parts.append(f"consolidation {f'{seconds:.1f} s' if seconds >= 0.95 else f'{1000 * seconds:.0f} ms'}")
    parts += [c.task_summary(task) for c in callbacks if hasattr(c, "task_summary")]
    return " · ".join(filter(None, parts))


def _epochs_done(trainer: Trainer) -> int:
    return trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]


def _is_last_epoch(trainer: Trainer) -> bool:
    """What ``fit_loop.done`` will say, without its messages and side effects."""
    limit = trainer.max_epochs
    epochs = limit is not None and 0 <= limit <= _epochs_done(trainer)
    steps = 0 <= trainer.max_steps <= trainer.global_step
    return epochs or steps or (trainer.should_stop and may_stop_early(trainer))


def _rewrite_last_checkpoints(trainer: Trainer) -> None:
    """Writes again what was written at this very step, before the task's state was consolidated.

    A checkpoint callback that saves at the end of validation or every n steps saves once per step, and
    so would leave the consolidated state out of ``last.ckpt``.
    """
    for checkpoint in trainer.checkpoint_callbacks:
        if (
            isinstance(checkpoint, ModelCheckpoint)
            and checkpoint.save_last
            and checkpoint.last_model_path
            and last_saved_step(checkpoint) == trainer.global_step
        ):
            trainer.save_checkpoint(checkpoint.last_model_path, checkpoint.save_weights_only)


def _carry_state(old: Any, new: Any) -> None:
    """Gives ``new`` the state that ``old`` holds for the very same parameters."""
    if type(old) is not type(new):
        return
    state = new.state_dict()
    parameters = [p for group in new.param_groups for p in group["params"]]
    indices = [i for group in state["param_groups"] for i in group["params"]]
    for index, parameter in zip(indices, parameters, strict=True):
        moments = old.state.get(parameter, {})
        shapes = {t.shape for t in moments.values() if isinstance(t, Tensor) and t.ndim}
        if moments and shapes <= {parameter.shape}:  # not of a parameter that was grown in place
            state["state"][index] = moments
    new.load_state_dict(state)
