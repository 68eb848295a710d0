"""A callback that scores every task after each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from cl_callbacks.boundaries.batch_boundaries import BatchBoundaries
from cl_callbacks.boundaries.monitored_boundaries import MonitoredBoundaries
from cl_callbacks.boundaries.task_boundaries import FitBoundaries, boundaries_of, ensure_boundaries
from cl_callbacks.guards.saved_state import restore_atomically
from cl_callbacks.observation.task_record import TaskRecord
from cl_callbacks.observation.task_report import TaskReport
from cl_callbacks.rules.synaptic_callback import SynapticCallback
from cl_callbacks.training import log_keys
from cl_callbacks.training.fit_end import after_training, same_weights, weight_norms
from cl_callbacks.training.log import log
from cl_callbacks.training.quiet_validation import quiet_validation
from cl_callbacks.training.task_scores import task_scores

_WHAT = "TaskEvaluation: all tasks"


class TaskEvaluation(Callback):
    """Measures the task matrix: the score on every task before any training and after each task.

    The scores are those that the module logs in its validation, which has one loader per task: the Trainer's
    own validation if it runs at the task's end, else an extra one (see
    :func:`~cl_callbacks.training.quiet_validation.quiet_validation`, also for what a module must not do in
    it). If the end of a task is found late, the network of that earlier step is scored.

    Logged with ``cl_task/index``, the number of tasks that ended before, as the x axis: ``cl_task/average``
    over the tasks learned so far, ``cl_task/forgetting``, ``cl_task/backward_transfer``,
    ``cl_task/forward_transfer`` and ``cl_task/learning`` (see :mod:`cl_callbacks.functional.task_matrix`),
    ``cl_task/score/0`` and ``cl_task/forgetting/0`` and so on for each task learned, and
    ``cl_task/consolidation_seconds``, the time that rules took at its end; by step, ``cl/task``, the current
    task. ``task_matrix.json``, ``task_matrix.csv`` and ``figures/*.png`` are written into the folder of the
    first logger that has one; W&B and TensorBoard get the figures too, W&B also the matrix as a table. They
    are drawn at the end of training, and before in at most 1 % of the time. A logger that fails is dropped.

    Args:
        monitor: the score, as logged by ``validation_step``: ``"val_acc"``, to which Lightning adds
            ``/dataloader_idx_0`` and so on; or a pattern with ``{task}`` in it for other names.
        mode: ``"max"`` if higher scores are better, ``"min"`` if lower ones are.
        names: names of the tasks; default: their numbers, from 0.
        untrained: whether to score the tasks before training, which forward transfer needs.
        artifact: whether to log the matrix and the rules' state as a W&B artifact at the end of training.
        table: whether to print the matrix at the end of training.

    Attributes:
        record: the scores, also those of validations between tasks.
        report: writes the record to loggers, files and the terminal.

    Raises:
        ValueError: an invalid argument, at construction.
        MisconfigurationException: in training, without validation data, and when the score is not logged.

    Example:
        >>> from lightning import Trainer
        >>> from cl_callbacks import EWC, EpochBoundaries
        >>> callbacks = [EWC(70.0), EpochBoundaries(10), TaskEvaluation("val_acc")]
        >>> trainer = Trainer(callbacks=callbacks, logger=False, enable_checkpointing=False)
    """

    observes: ClassVar[bool] = True
    reads_task_data: ClassVar[bool] = False

    def __init__(
        self,
        monitor: str = "val_acc",
        mode: Literal["max", "min"] = "max",
        *,
        names: Sequence[str] | None = None,
        untrained: bool = True,
        artifact: bool = False,
        table: bool = True,
    ) -> None:
        super().__init__()
        if mode not in ("max", "min"):
            raise ValueError(f"mode={mode!r} is neither 'max' nor 'min'")
        if names is not None and (isinstance(names, str) or len(set(names)) < len(names)):
            raise ValueError(f"names must be a list of different names, one for each task; got {names!r}")
        self.monitor, self.mode, self.names = monitor, mode, None if names is None else list(names)
        self.untrained, self.artifact, self.table = untrained, artifact, table
        self.record = TaskRecord(higher_is_better=mode == "max")
        self._evaluating = False
        self.report = TaskReport(self.record, monitor, names)
        self._latest: tuple[int, list[float]] = (-1, [])
        self._norms: dict[str, Tensor] = {}

    @property
    def matrix(self) -> Tensor:
        """The task matrix ``(T + 1, T)``: row k after k tasks, row 0 before training; NaN if not measured.

        Columns are in the order in which the tasks were learned.
        """
        return self.record.matrix.clone()

    def results(self) -> dict[str, float]:
        """Summary metrics: average, forgetting, backward_transfer, forward_transfer and learning."""
        return self.record.results()

    @property
    def next_task(self) -> int:
        """Number of the next task after those that were learned, in whatever Trainer."""
        return max(self.record.learned, default=-1) + 1

    # -- measuring ---------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Adds the default boundary callback if there is none."""
        self._evaluating = stage != "fit"
        if stage == "fit":
            ensure_boundaries(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks that there is validation, and scores the tasks before training."""
        if not trainer.enable_validation:
            raise MisconfigurationException(
                "TaskEvaluation scores tasks by the Trainer's validation, and there is none: give `fit` one "
                "validation loader per task, the module a `validation_step`, and leave limit_val_batches "
                "above 0."
            )
        self._latest = (-1, [])
        self.report.begin(trainer)
        boundaries, record = boundaries_of(trainer), self.record
        if not record.rows and not isinstance(boundaries, BatchBoundaries):
            # Tasks that ended before this callback was added were learned, though not scored.
            record.learned, record.ends = list(range(boundaries.task)), [0] * boundaries.task
        learned = len(record.learned)
        if not boundaries.task_is_open and learned not in record.rows and (self.untrained or learned):
            record.keep(learned, self._validated(trainer))

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Logs the number of the task."""
        log(trainer, {log_keys.TASK: task})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stores the scores of the Trainer's own validation."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._keep(trainer, self._scores(trainer, trainer.callback_metrics))

    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Adds a row to the matrix and reports it."""
        self._add_row(trainer)
        self.record.learned.append(task)
        self.record.ends.append(trainer.global_step)
        rules = [c for c in trainer.callbacks if isinstance(c, SynapticCallback)]  # type: ignore[attr-defined]
        log(trainer, {log_keys.TASK: task})
        index, seconds = len(self.record.learned) - 1, sum(rule.seconds for rule in rules)
        self._warn_of_too_many_tasks(index)
        self.report.log_task(trainer, index, consolidation_seconds=seconds)

    def on_task_revised(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Scores the weights that the fit leaves, in place of those at the task's end."""
        self.record.keep(len(self.record.learned), self._validated(trainer))
        self.report.log_task(trainer, len(self.record.learned) - 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds a row for a last task that is still open, since its end can only be found later."""
        boundaries = boundaries_of(trainer)
        if isinstance(boundaries, MonitoredBoundaries) and boundaries.task_is_open:
            after_training(trainer, partial(self._score_open_task, trainer))

    def _score_open_task(self, trainer: Trainer) -> None:
        self._add_row(trainer)
        self.report.log_task(trainer, len(self.record.learned))

    def _add_row(self, trainer: Trainer) -> None:
        if boundaries_of(trainer).looking_back:
            scores = self._scores(trainer, quiet_validation(trainer, _WHAT, averaged=False))
        elif self._latest[0] == trainer.global_step and self._at_the_weights_of_the_latest(trainer):
            scores = self._latest[1]
        else:
            scores = self._validated(trainer)
        self.record.keep(len(self.record.learned) + 1, scores)

    def _warn_of_too_many_tasks(self, index: int) -> None:
        tasks = len(self.record.columns)
        if index == tasks:
            rank_zero_warn(
                f"TaskEvaluation: more tasks have ended than there are validation loaders, {tasks}, so that "
                f"rows and columns of the task matrix are not of the same tasks: forgetting and transfers "
                f"mean little; the scores stand as they are."
            )

    def _validated(self, trainer: Trainer) -> list[float]:
        return self._keep(trainer, self._scores(trainer, quiet_validation(trainer, _WHAT)))

    def _at_the_weights_of_the_latest(self, trainer: Trainer) -> bool:
        """Whether the weights are those of the latest scores; averages may have been put in their place."""
        same = same_weights(self._norms, weight_norms(trainer.lightning_module)) == 1.0
        return trainer.strategy.reduce_boolean_decision(same)

    def _keep(self, trainer: Trainer, scores: list[float]) -> list[float]:
        self._latest, self._norms = (trainer.global_step, scores), weight_norms(trainer.lightning_module)
        self.record.curve.append(self._latest)
        return scores

    def _scores(self, trainer: Trainer, metrics: Mapping[str, Tensor]) -> list[float]:
        return task_scores(trainer, metrics, self.monitor, "TaskEvaluation")

    # -- reporting ---------------------------------------------------------------------------------

    def task_summary(self, task: int) -> str:
        """Summary of a task's end in one line."""
        return self.report.line()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws, prints the table and logs the artifact; with one fit per task, only after the last."""
        tasks = len(self.record.columns)
        if isinstance(boundaries_of(trainer), FitBoundaries) and len(self.record.learned) < tasks:
            return
        self.report.draw(trainer)
        if self.artifact:
            rules = [c for c in trainer.callbacks if isinstance(c, SynapticCallback)]  # type: ignore[attr-defined]
            self.report.log_artifact(trainer, {rule.state_key: rule.state_dict() for rule in rules})
        if self.table and trainer.is_global_zero:
            self.report.print_table()

    # -- checkpoints -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Numbers only."""
        return self.record.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the record, unless the Trainer only evaluates.

        Raises:
            ValueError: a state of something else; the present record is then kept.
        """
        if not self._evaluating:
            restore_atomically(self.record, state_dict)
