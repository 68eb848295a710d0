"""Trains the first task once, and from there the second as often as wanted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from cl_callbacks.boundaries.fit_boundaries import FitBoundaries
from cl_callbacks.boundaries.task_boundaries import boundaries_of
from cl_callbacks.rules.compile_rules import CompileRules
from cl_callbacks.rules.consolidation.anchored_rule import AnchoredRule
from cl_callbacks.rules.synaptic_callback import SynapticCallback
from cl_callbacks.training.generators import isolated_rng
from cl_callbacks.training.lightning_private import continued_fit_loop, new_fit_loop
from cl_callbacks.training.module_state import ModuleState
from cl_callbacks.training.quiet_fit import UNANNOUNCED
from cl_callbacks.training.quiet_validation import quiet_validation
from cl_callbacks.training.seed_epochs import SeedEpochs
from cl_callbacks.tuning.task_source import TaskSource
from cl_callbacks.tuning.trial_boundaries import TaskLength, TrialBoundaries

Scores = Callable[[Mapping[str, Tensor]], list[float]]
"""Scores of all tasks among the metrics that a validation has logged."""

LEARNING = SynapticCallback, CompileRules, SeedEpochs, GradientAccumulationScheduler
"""Callbacks that take part in a trial, as copies: those that change what is learned. Others hear nothing."""


class TaskTrials:
    """Trains two tasks inside a Trainer, within :func:`~cl_callbacks.training.quiet_fit.quiet_fits`.

    The first task is learned as in the Trainer's own fit. All trainings of the second begin at the same
    weights, rules, optimizers, schedules and random numbers. The callbacks that take part are copies.

    Args:
        trainer: in ``on_fit_start``.
        source: of the tasks' data.
        length: of a task.
        share: of the length for which the second task is learned.
        scores: reads the scores of all tasks.
    """

    def __init__(
        self,
        trainer: Trainer,
        source: TaskSource,
        length: TaskLength,
        share: float,
        scores: Scores,
    ) -> None:
        self.trainer, self.source, self.scores = trainer, source, scores
        self.length, self.share = length, share
        self._module = trainer.lightning_module
        own = boundaries_of(trainer)
        self._new_optimizers = isinstance(own, FitBoundaries) and not own.carry_optimizer
        self._boundaries = TrialBoundaries(length)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        kept: list[Callback] = [c for c in callbacks if c is own or isinstance(c, LEARNING)]
        self._learners = [self._boundaries if c is own else c for c in kept]

    def first(self) -> tuple[list[float], list[float]]:
        """Learns the first task; returns the scores of all tasks before and after."""
        trainer, loop = self.trainer, new_fit_loop(self.trainer)
        self._raise_limits(loop, tasks=1)
        self.source.serve(loop, 0)
        learners = self._begin(loop, self._learners)
        trainer.strategy.setup_optimizers(trainer)
        for callback in learners:
            callback.on_fit_start(trainer, self._module)
        self._module.on_fit_start()
        before = self.scores(quiet_validation(trainer))
        after = self._run()
        self._learned, self._progress = learners, loop.state_dict()
        self._state = ModuleState(self._module)
        self._scale = trainer.precision_plugin.state_dict()
        self._optimizers = [optimizer.state_dict() for optimizer in trainer.optimizers]
        self._schedulers = [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]
        return before, after

    def second(self, strengths: Mapping[AnchoredRule, float]) -> list[float]:
        """Learns the second task at these strengths; returns the scores of all tasks after it."""
        trainer = self.trainer
        with self.source.kept(), isolated_rng(trainer, self._module):
            self._state.restore()
            loop = continued_fit_loop(trainer, self._progress)
            self._raise_limits(loop, tasks=2)
            self.source.serve(loop, 1)
            learners = self._begin(loop, self._learned)
            for rule, strength in strengths.items():
                learners[self._learners.index(rule)].strength = strength  # type: ignore[attr-defined]
            boundaries = learners[self._learners.index(self._boundaries)]
            boundaries.share = self.share  # type: ignore[attr-defined]
            self._restore_optimizers()
            for callback in learners:
                callback.setup(trainer, self._module, stage="fit")
            return self._run()

    def _begin(self, loop: Any, callbacks: list[Callback]) -> list[Callback]:
        """Gives the Trainer a loop and copies of the callbacks."""
        same = self.trainer, self._module, *self._module.parameters()
        learners = copy.deepcopy(callbacks, {id(each): each for each in same})
        self.trainer.fit_loop, self.trainer.should_stop = loop, False
        self.trainer.callbacks = learners  # type: ignore[attr-defined]
        return learners

    def _restore_optimizers(self) -> None:
        trainer = self.trainer
        trainer.precision_plugin.load_state_dict(copy.deepcopy(self._scale))
        trainer.strategy.setup_optimizers(trainer)
        if not self._new_optimizers:
            for optimizer, state in zip(trainer.optimizers, self._optimizers, strict=True):
                optimizer.load_state_dict(copy.deepcopy(state))
            for config, state in zip(trainer.lr_scheduler_configs, self._schedulers, strict=True):
                config.scheduler.load_state_dict(copy.deepcopy(state))

    def _run(self) -> list[float]:
        """Runs the loop, and returns the scores of all tasks."""
        trainer, step = self.trainer, self.trainer.global_step
        try:
            with UNANNOUNCED:
                trainer.fit_loop.run()
            if trainer.global_step == step:
                raise MisconfigurationException(
                    "a task was not trained for a single step: give it training data, and the Trainer limits "
                    "(max_epochs, max_steps, limit_train_batches) that leave room for two tasks"
                )
            return self.scores(quiet_validation(trainer))
        finally:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                callback.teardown(trainer, self._module, stage="fit")
            trainer.fit_loop.teardown()

    def _raise_limits(self, loop: Any, tasks: int) -> None:
        """Lets a loop run for as many tasks; its own limits stay where they are higher, for schedules."""
        if 0 <= loop.max_epochs < tasks * self.length.epochs < float("inf"):
            loop.max_epochs = int(tasks * self.length.epochs)
        if 0 <= loop.max_steps < tasks * self.length.steps < float("inf"):
            loop.epoch_loop.max_steps = int(tasks * self.length.steps)
