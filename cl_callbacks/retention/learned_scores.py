"""With which score each task was learned, by the validation loader that is its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cl_callbacks.boundaries.task_boundaries import boundaries_of
from cl_callbacks.observation.task_order import checked_order, loader_of_task, loaders_of_past_tasks
from cl_callbacks.observation.task_record import TaskRecord
from cl_callbacks.training.quiet_validation import quiet_validation
from cl_callbacks.training.task_scores import task_scores


class LearnedScores:
    """Finds the loader of each task, scores all of them, and keeps the scores with which they were learned.

    Args:
        monitor: the score, as logged by ``validation_step``, or a pattern with ``{task}`` in it.
        higher_is_better: whether a higher score is the better one.
        order: the loader of each task in the order of learning, ``None`` for a task without; by default it is
            found as :class:`~cl_callbacks.TaskEvaluation` finds it.
        asker: who asks, for messages.

    Attributes:
        scores: of all tasks at the last boundary, or before the first step.
        learned: the score of each task when it was learned, by its loader.
        loader: that of the task that is open; ``None`` without one.
        is_open: whether a task has begun since the last boundary.
        in_doubt: whether tasks seem to come in another order than the loaders; then none counts as learned.
    """

    _SAVED = ("begun", "is_open", "loader", "assumed", "scores", "learned", "in_doubt")

    def __init__(
        self, monitor: str, higher_is_better: bool, order: Sequence[int | None] | None, asker: str
    ) -> None:
        self.monitor, self.higher_is_better, self.asker = monitor, higher_is_better, asker
        self.order = None if order is None else checked_order(order, TaskRecord(higher_is_better))
        self.begun = 0  # number of tasks
        self.is_open = self.assumed = self.in_doubt = False
        self.loader: int | None = None
        self.scores: list[float] = []
        self.learned: dict[int, float] = {}

    @property
    def old(self) -> dict[int, float]:
        """The scores of the tasks before the one that is open, by their loaders."""
        return {task: score for task, score in self.learned.items() if task != self.loader}

    def begin_fit(self, trainer: Trainer) -> None:
        """Scores all tasks before the first step; a fit may have other loaders than the one before."""
        if not self.is_open:
            self.scores = self.score(trainer)
        if not self.begun and not boundaries_of(trainer).task_is_open:
            past = loaders_of_past_tasks(boundaries_of(trainer), self.order)
            self.begun = len(past)  # they are held to what they are now
            self._learn({task for task in past if task is not None and task < len(self.scores)})

    def begin_task(self, trainer: Trainer, task: int) -> None:
        """Finds the loader of a task that begins."""
        loaders = len(self.scores)
        before = self.begun - self.is_open  # one that is open was broken off, and begins anew
        known = loader_of_task(trainer, task, before, loaders, self.order, self.asker)
        self.begun = before + 1
        self.is_open, self.loader, self.assumed = True, known.loader, known.assumed
        if known.loader is not None and known.loader >= loaders:
            self.loader = None
            rank_zero_warn(
                f"{self.asker}: task {task} begins, and there are {loaders} validation loaders, so what "
                f"it loses later is not guarded. Give `fit` a loader for each task, or say order=[…], the "
                f"loader of each task in the order of learning, None for one without."
            )

    def score(self, trainer: Trainer) -> list[float]:
        """The present scores of all tasks, by loader: a validation without side effects."""
        metrics = quiet_validation(trainer, f"{self.asker}: all tasks", averaged=False)
        scores = task_scores(trainer, metrics, self.monitor, self.asker)
        known = [*self.learned, *(task for task in self.order or () if task is not None)]
        if max(known, default=0) >= len(scores):
            raise MisconfigurationException(
                f"{self.asker}: there are {len(scores)} validation loaders, and that of an old task or of "
                f"`order` is number {max(known)}, counted from 0: give each fit the loaders of all tasks."
            )
        return scores

    def end_task(self, scores: list[float]) -> None:
        """Keeps the scores with which the task that is open has ended."""
        self.scores, self.is_open = scores, False
        self._learn(set() if self.loader is None or self.in_doubt else {self.loader})

    def doubt(self, scores: list[float], task: int) -> None:
        """Notices tasks that come in another order than that of the loaders, if this was assumed."""
        if not self.assumed or self.in_doubt:
            return
        record = TaskRecord(self.higher_is_better)
        record.begin(self.loader)
        record.assumed, record.ends = True, [0]
        record.keep(0, self.scores)
        record.keep(1, scores)
        if record.mismatch() is not None:
            self.in_doubt, self.learned = True, {}
            rank_zero_warn(
                f"{self.asker} took the tasks in the order of the validation loaders, and in task {task} the "
                f"score on another loader improved, not that on loader {self.loader}. So that no wrong task "
                f"is held, nothing is guarded from here on: say order=[…], the loader of each task in the "
                f"order of learning; order={list(range(len(scores)))} if it is theirs after all."
            )

    def _learn(self, loaders: set[int]) -> None:
        found = {loader: self.scores[loader] for loader in sorted(loaders)}
        for loader in [loader for loader, score in found.items() if not math.isfinite(score)]:
            rank_zero_warn(
                f"{self.asker}: {self.monitor} of loader {loader} is {found.pop(loader)} at the end of its "
                f"task, so what it loses later cannot be told and is not guarded."
            )
        self.learned = {**self.learned, **found}

    def state_dict(self) -> dict[str, Any]:
        """Numbers only."""
        return {name: getattr(self, name) for name in self._SAVED}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        for name in self._SAVED:
            setattr(self, name, state[name])
