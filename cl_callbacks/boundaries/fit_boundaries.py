"""The default: each ``trainer.fit`` is one task."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from cl_callbacks.boundaries.task_boundaries import TaskBoundaries, epochs_done
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.once import first_time
from cl_callbacks.training.lightning_private import may_stop_early
from cl_callbacks.training.progress import say


class FitBoundaries(TaskBoundaries):
    """Each ``trainer.fit`` is one task; the default of a Trainer without a boundary callback.

    Lightning creates new optimizers for each fit, and losing Adam's moments at each boundary is itself a
    source of forgetting.

    Args:
        carry_optimizer: whether the optimizers of a fit take over the state of the previous fit's, for
            the parameters that both train. Learning rates and schedules restart in any case.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(max_epochs=5, callbacks=[FitBoundaries(carry_optimizer=True)],
        ...     logger=False, enable_checkpointing=False)
    """

    @checked()
    def __init__(self, carry_optimizer: bool = False) -> None:
        super().__init__()
        self.carry_optimizer = carry_optimizer
        self.is_default = False  # whether it was added for want of another
        self._previous: list[Any] = []
        self._names: dict[Tensor, str] = {}  # of the previous fit's parameters

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copies the previous fit's optimizer state to the new optimizers, with ``carry_optimizer``."""
        super().on_train_start(trainer, pl_module)
        if self.is_default and not self.task:
            self._say_that_the_fit_is_one_task(trainer)
        if trainer.ckpt_path is None:  # a checkpoint contains the optimizers' state
            same = self._of_previous_fit(pl_module)
            for old, new in zip(self._previous, trainer.optimizers, strict=False):
                _carry_state(old, new, same)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins the task, after every ``on_train_start``."""
        if not self.task_is_open:
            self.begin(trainer)

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Begins the task in mid-epoch, if training resumes there from a checkpoint without an open task."""
        if not self.task_is_open:
            self.begin(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the task after the last epoch, before the checkpoint of that epoch is written."""
        if self.task_is_open and _is_last_epoch(trainer):
            self.end(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the task if the last epoch was not recognised as the last, as under early stopping."""
        if self.task_is_open:
            self.end(trainer)
        super().on_train_end(trainer, pl_module)
        self._previous = list(trainer.optimizers) if self.carry_optimizer else []
        self._names = {p: name for name, p in pl_module.named_parameters()} if self.carry_optimizer else {}

    def _say_that_the_fit_is_one_task(self, trainer: Trainer) -> None:
        """Says it where a rule waits for the end of a task, and several validation loaders mean several."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        waiting = [type(c).__name__ for c in callbacks if getattr(c, "consolidates", False)]
        several = len(trainer.num_val_batches) > 1
        if waiting and several and first_time(self, "one task"):
            say(
                trainer,
                f"no callback says when a task ends (EpochBoundaries, DriftBoundaries, ...), so this whole "
                f"fit is one: what it learns is kept by {' and '.join(waiting)} from the next fit on",
            )

    def _of_previous_fit(self, pl_module: LightningModule) -> dict[Tensor, Tensor]:
        """The previous fit's parameter by the present one, where these are two objects of one name.

        The Trainer moves a module to the CPU after a fit, which on some devices gives new parameters.
        """
        before = {name: p for p, name in self._names.items()}
        named = pl_module.named_parameters()
        return {p: before[name] for name, p in named if p not in self._names and name in before}


def ensure_boundaries(trainer: Trainer, boundaries: TaskBoundaries | None = None) -> None:
    """Adds a boundary callback to a Trainer without one: by default :class:`FitBoundaries`."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(callback, TaskBoundaries) for callback in callbacks):
        return
    first = next((i for i, c in enumerate(callbacks) if isinstance(c, Checkpoint)), len(callbacks))
    if boundaries is None:
        boundaries = FitBoundaries()
        boundaries.is_default = True
    # Before the first checkpoint callback, and in a new list: Lightning is iterating over the old one.
    trainer.callbacks = [*callbacks[:first], boundaries, *callbacks[first:]]  # type: ignore[attr-defined]


def _is_last_epoch(trainer: Trainer) -> bool:
    """Whether ``fit_loop.done`` will be true, without its messages and side effects."""
    limit = trainer.max_epochs
    epochs = limit is not None and 0 <= limit <= epochs_done(trainer)
    steps = 0 <= trainer.max_steps <= trainer.global_step
    return epochs or steps or (trainer.should_stop and may_stop_early(trainer))


def _carry_state(old: Any, new: Any, same: dict[Tensor, Tensor]) -> None:
    """Copies the state that ``old`` holds for the same parameters to ``new``."""
    if type(old) is not type(new):
        return
    state = new.state_dict()
    parameters = [p for group in new.param_groups for p in group["params"]]
    indices = [i for group in state["param_groups"] for i in group["params"]]
    for index, parameter in zip(indices, parameters, strict=True):
        moments = old.state.get(same.get(parameter, parameter), {})
        shapes = {t.shape for t in moments.values() if isinstance(t, Tensor) and t.ndim}
        if moments and shapes <= {parameter.shape}:  # skips a parameter that was resized in place
            state["state"][index] = moments
    new.load_state_dict(state)
