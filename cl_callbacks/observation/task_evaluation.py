"""A callback that scores every task after each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from cl_callbacks.boundaries.fit_boundaries import FitBoundaries, ensure_boundaries
from cl_callbacks.boundaries.monitored_boundaries import MonitoredBoundaries
from cl_callbacks.boundaries.task_boundaries import boundaries_of
from cl_callbacks.boundaries.transaction import Revert
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import NON_NEGATIVE
from cl_callbacks.guards.saved_state import restore_atomically
from cl_callbacks.observation.task_keys import checked_name, names_apart
from cl_callbacks.observation.task_monitors import (
    look_last,
    monitored_at_epoch_end,
    publish,
    refuse_monitors,
)
from cl_callbacks.observation.task_order import (
    checked_order,
    loader_of_task,
    loaders_of_past_tasks,
    unknown_order,
    wrong_order,
)
from cl_callbacks.observation.task_record import TaskRecord
from cl_callbacks.observation.task_report import TaskReport
from cl_callbacks.rules.synaptic_callback import SynapticCallback
from cl_callbacks.training import log_keys
from cl_callbacks.training.fit_end import after_training, same_weights, weight_norms
from cl_callbacks.training.lightning_private import names_in_validation
from cl_callbacks.training.log import log, unless_it_fails
from cl_callbacks.training.one_trainer import OfOneTrainer
from cl_callbacks.training.quiet_validation import quiet_validation
from cl_callbacks.training.task_scores import score_names, task_scores

_WHAT = "TaskEvaluation: all tasks"


class TaskEvaluation(OfOneTrainer):
    """Measures the task matrix: the score on every task before any training and after each task.

    The scores are those that the module logs in its validation, which has one loader per task: the Trainer's
    own validation if it runs at the task's end, else an extra one (see
    ``training/quiet_validation.py``, also for what a module must not do in
    it). If the end of a task is found late, the network of that earlier step is scored.

    Which loader is whose is told by ``order``; else by the numbers in the batches with
    :class:`~cl_callbacks.BatchBoundaries`, or by the data module's ``current_task``, which
    :class:`~cl_callbacks.TaskSequence` has; else the tasks are taken to come in the order of the loaders. If
    the scores contradict that, a warning says so and no figure is given, since it would be wrong.

    Logged with ``cl_task/index``, the number of tasks that ended before, as the x axis: ``cl_task/average``
    over the tasks learned so far, ``cl_task/forgetting``, ``cl_task/backward_transfer``,
    ``cl_task/forward_transfer`` and ``cl_task/learning`` (see :mod:`cl_callbacks.functional.task_matrix`),
    ``cl_task/score/0`` and ``cl_task/forgetting/0`` and so on for each task learned, and
    ``cl_task/consolidation_seconds``, the time that rules took at its end; by step, ``cl/task``, the current
    task. ``task_matrix.json``, ``task_matrix.csv`` and ``figures/*.png`` are written into the folder of the
    first logger that has one; W&B and TensorBoard get the figures too, W&B also the matrix as a table. They
    are drawn at the end of training, and before in at most 1 % of the time. A logger that fails is dropped,
    and what cannot be drawn or written is said once.

    Of more than 100 tasks, that many have their scores in loggers and figures;
    ``trainer.callback_metrics`` has all. Of more than 1,024 rows, or 131,072 scores if these are fewer rows,
    the matrix is thinned out evenly, but for the scores on which the results depend: these stay exact.

    ``ModelCheckpoint(monitor="cl_task/average", mode="max")``, ``EarlyStopping`` and others that monitor find
    the same keys. For them, and in ``trainer.callback_metrics``, they are up to date after each validation as
    if the present task ended there, and NaN where not defined; ``cl_task/score/1`` is there before its task.

    A Trainer may have several, such as for accuracy and loss. The first without a ``name`` has the keys and
    files above, another one keys such as ``cl_task/NAME/average`` and ``task_matrix_NAME.json``.

    Args:
        monitor: the score, as logged by ``validation_step``: ``"val_acc"``, to which Lightning adds
            ``/dataloader_idx_0`` and so on; or a pattern with ``{task}`` in it for other names.
        mode: ``"max"`` if higher scores are better, ``"min"`` if lower ones are.
        names: names of the tasks; default: their numbers, from 0. In keys and files they have at most 100
            characters, and ``_`` for control characters.
        untrained: whether to score the tasks before training, which forward transfer needs.
        artifact: whether to log the matrix and the rules' state as a W&B artifact at the end of training.
        table: whether to print the matrix at the end of training.
        order: the loader of the task that is learned first, second and so on, counted from 0, such as
            ``[2, 0, 1, 2]``; ``None`` for a task without a loader. May also be set afterwards.
        name: for keys and files; default: none for the first, else that of the ``monitor``.

    Attributes:
        record: the scores, also those of validations between tasks.
        report: writes the record to loggers, files and the terminal.

    Raises:
        ValueError: an invalid argument, at construction.
        MisconfigurationException: in training, without validation data, when the score is not logged, when a
            task begins that is not in the ``order`` or has no loader, or two would have the same keys.

    Example:
        >>> from lightning import Trainer
        >>> from cl_callbacks import EWC, EpochBoundaries
        >>> callbacks = [EWC(70.0), EpochBoundaries(10), TaskEvaluation("val_acc")]
        >>> trainer = Trainer(callbacks=callbacks, logger=False, enable_checkpointing=False)
    """

    observes: ClassVar[bool] = True
    reads_task_data: ClassVar[bool] = False

    @checked(order=NON_NEGATIVE)
    def __init__(
        self,
        monitor: str = "val_acc",
        mode: Literal["max", "min"] = "max",
        *,
        names: Sequence[str] | None = None,
        untrained: bool = True,
        artifact: bool = False,
        table: bool = True,
        order: Sequence[int | None] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        if names is not None and len(set(names)) < len(names):
            raise ValueError(f"names must be a list of different names, one for each task; got {names!r}")
        self.monitor, self.mode, self.names = monitor, mode, None if names is None else list(names)
        self.untrained, self.artifact, self.table = untrained, artifact, table
        self.name = checked_name(name)
        self.record = TaskRecord(higher_is_better=mode == "max")
        self.report = TaskReport(self.record, monitor, names)
        self.order = order
        self._evaluating = self._warned = False
        self._latest: tuple[int, list[float]] = (-1, [])
        self._norms: dict[str, Tensor] = {}
        self._rewound: list[float] | None = None

    @property
    def order(self) -> list[int | None] | None:
        """The loader of each task in the order of learning; setting it changes the figures."""
        return self._order

    @order.setter
    def order(self, order: Sequence[int | None] | None) -> None:
        self._order = None if order is None else checked_order(order, self.record)
        if self._order is not None:
            self.record.take_order(self._order)

    @property
    def matrix(self) -> Tensor:
        """The task matrix ``(T + 1, T)``: row k after k tasks, row 0 before training; NaN if not measured.

        Columns are in the order in which the tasks were learned first. If tasks were learned again, it has as
        many rows as tasks were learned, and one before.
        """
        return self.record.matrix.clone()

    def results(self) -> dict[str, float]:
        """Summary metrics: average, forgetting, backward_transfer, forward_transfer and learning.

        Raises:
            ValueError: the tasks came in another order than the loaders', and there is no ``order``.
        """
        wrong = wrong_order(self.record, self.monitor)
        if wrong is not None:
            raise ValueError(wrong)
        return self.record.results()

    @property
    def next_task(self) -> int:
        """Number of the next task after those that were learned, in whatever Trainer."""
        return len(self.record.ends)

    @property
    def state_key(self) -> str:
        """Key of this instance's state in a checkpoint."""
        return self._generate_state_key(monitor=self.monitor, name=self.name)

    # -- measuring ---------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Adds the default boundary callback if there is none, and names this one among several."""
        self._evaluating = stage != "fit"
        self._latest = (-1, [])
        if stage == "fit":
            ensure_boundaries(trainer)
            look_last(trainer)
            evaluations = _evaluations(trainer)
            names = names_apart([(evaluation.name, evaluation.monitor) for evaluation in evaluations])
            self.report.name = names[evaluations.index(self)]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks that there is validation, and scores the tasks before training."""
        if not trainer.enable_validation:
            raise MisconfigurationException(
                "TaskEvaluation scores tasks by the Trainer's validation, and there is none: give `fit` one "
                "validation loader per task, the module a `validation_step`, and leave limit_val_batches "
                "above 0."
            )
        self.report.begin(trainer)
        boundaries, record = boundaries_of(trainer), self.record
        if not record.rows and not record.begun:
            # Tasks that ended before this callback was added were learned, though not scored.
            past = loaders_of_past_tasks(boundaries, self.order)
            record.begun, record.ends, record.assumed = past, [0] * len(past), bool(past) and not self.order
        learned = len(record.ends)
        if not boundaries.task_is_open and learned not in record.rows and (self.untrained or learned):
            record.keep(learned, self._present_scores(trainer))
        publish(trainer, self.report.monitored(record))
        evaluations = _evaluations(trainer)
        if self is evaluations[-1]:
            keys = {key for e in evaluations for key in e.report.monitored(e.record)}
            complete = all(evaluation.record.loaders for evaluation in evaluations)
            refuse_monitors(trainer, keys, complete, first=not record.ends)

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Logs the number of the task, and finds out which loader is its own."""
        log(trainer, {log_keys.TASK: task})
        del self.record.begun[len(self.record.ends) :]  # one that was broken off, and begins anew
        self._begin(trainer, task)

    def _begin(self, trainer: Trainer, task: int) -> None:
        known = loader_of_task(trainer, task, len(self.record.begun), self.record.loaders, self.order)
        self.record.begin(known.loader)
        self.record.assumed |= known.assumed

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stores the scores of the Trainer's own validation; in the sanity check, sees whether they exist."""
        if trainer.sanity_checking:
            names = names_in_validation(trainer)
            if names and not self.untrained:  # else all tasks are scored before the first step
                score_names(names, self.monitor, "TaskEvaluation")
        elif trainer.state.fn == TrainerFn.FITTING and self is _evaluations(trainer)[0]:
            _keep_scores(trainer, trainer.callback_metrics)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores all tasks if there was no validation and another callback is about to look."""
        if monitored_at_epoch_end(trainer):
            self._present_scores(trainer)

    def reversal(self) -> Revert:
        """Keeps the record, to which the evaluation goes back if the end of a task fails in any callback."""
        kept = self.record.state_dict()

        def revert() -> None:
            self.record.restore(kept)
            self._rewound = None

        return revert

    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Adds a row to the matrix and reports it."""
        index = len(self.record.ends)
        if len(self.record.begun) == index:  # it began before this callback was there
            self._begin(trainer, task)
        self._add_row(trainer, index + 1)
        self.record.ends.append(trainer.global_step)
        if not boundaries_of(trainer).looking_back:  # else they are not of the present weights
            publish(trainer, self.report.monitored(self.record))
        log(trainer, {log_keys.TASK: task})
        self._warn_of_order()
        seconds: dict[str, float] = {}
        if self is _evaluations(trainer)[0]:
            rules = [c for c in trainer.callbacks if isinstance(c, SynapticCallback)]  # type: ignore[attr-defined]
            seconds = {log_keys.task("consolidation_seconds"): sum(rule.seconds for rule in rules)}
        self.report.log_task(trainer, index, seconds)

    def on_task_revised(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Scores the weights that the fit leaves, in place of those at the task's end."""
        self.record.keep(len(self.record.ends), self._present_scores(trainer))
        self.report.log_task(trainer, len(self.record.ends) - 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds a row for a last task that is still open, since its end can only be found later."""
        boundaries = boundaries_of(trainer)
        if isinstance(boundaries, MonitoredBoundaries) and boundaries.task_is_open:
            after_training(trainer, partial(self._score_open_task, trainer))

    def _score_open_task(self, trainer: Trainer) -> None:
        self._add_row(trainer, len(self.record.ends) + 1)
        self.report.log_task(trainer, len(self.record.ends))

    def _add_row(self, trainer: Trainer, learned: int) -> None:
        if boundaries_of(trainer).looking_back:
            if self._rewound is None:
                metrics = quiet_validation(trainer, _WHAT, averaged=False)
                for evaluation in _evaluations(trainer):
                    evaluation._rewound = evaluation._scores(trainer, metrics)
            scores, self._rewound = self._rewound or [], None
        else:
            scores = self._present_scores(trainer)
        self.record.keep(learned, scores)

    def _present_scores(self, trainer: Trainer) -> list[float]:
        current = self._latest[0] == trainer.global_step
        if not current or not self._at_the_weights_of_the_latest(trainer):
            _keep_scores(trainer, quiet_validation(trainer, _WHAT))  # one validation for all
        return self._latest[1]

    def _at_the_weights_of_the_latest(self, trainer: Trainer) -> bool:
        """Whether the weights are those of the latest scores; averages may have been put in their place."""
        same = same_weights(self._norms, weight_norms(trainer.lightning_module)) == 1.0
        return trainer.strategy.reduce_boolean_decision(same)

    def _keep(self, trainer: Trainer, scores: list[float], norms: dict[str, Tensor]) -> None:
        self._latest, self._norms = (trainer.global_step, scores), norms
        self.record.trace(*self._latest)
        publish(trainer, self.report.monitored(self.record.now(scores)))

    def _scores(self, trainer: Trainer, metrics: Mapping[str, Tensor]) -> list[float]:
        scores = task_scores(trainer, metrics, self.monitor, "TaskEvaluation")
        beyond = [task for task in self.order or () if task is not None and task >= len(scores)]
        if beyond:
            raise MisconfigurationException(
                f"TaskEvaluation: order={self.order} names the validation loader {beyond[0]}, and there are "
                f"{len(scores)}, counted from 0."
            )
        return scores

    def _warn_of_order(self) -> None:
        sentence = wrong_order(self.record, self.monitor) or unknown_order(self.record)
        if sentence is not None and not self._warned:
            self._warned = True
            rank_zero_warn(sentence)

    # -- reporting ---------------------------------------------------------------------------------

    def task_summary(self, task: int) -> str:
        """Summary of a task's end in one line."""
        return self.report.line()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws, prints the table and logs the artifact; with one fit per task, only after the last."""
        tasks = len(self.record.columns if self.order is None else self.order)
        if isinstance(boundaries_of(trainer), FitBoundaries) and len(self.record.ends) < tasks:
            return
        self.report.draw(trainer)
        if self.artifact:
            rules = [c for c in trainer.callbacks if isinstance(c, SynapticCallback)]  # type: ignore[attr-defined]
            self.report.log_artifact(trainer, {rule.state_key: rule.state_dict() for rule in rules})
        if self.table and trainer.is_global_zero:
            with unless_it_fails(trainer, "table of scores"):  # as on a terminal of another encoding
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
            if self.order is not None:
                self.order = self.order  # which counts, and not that of the checkpoint


def _keep_scores(trainer: Trainer, metrics: Mapping[str, Tensor]) -> None:
    """Stores the scores of a validation, and of which weights they are, in all evaluations of a Trainer."""
    norms = weight_norms(trainer.lightning_module)
    for evaluation in _evaluations(trainer):
        evaluation._keep(trainer, evaluation._scores(trainer, metrics), norms)


def _evaluations(trainer: Trainer) -> list[TaskEvaluation]:
    return [c for c in trainer.callbacks if isinstance(c, TaskEvaluation)]  # type: ignore[attr-defined]
