"""Watches the effect of all rules of a Trainer, and the loss of the task that they act on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from cl_callbacks.boundaries.task_boundaries import boundaries_of
from cl_callbacks.rules.rule_scale import ScaledRule, measure_of
from cl_callbacks.synapses.pull_scale import PullScale
from cl_callbacks.training import log_keys
from cl_callbacks.training.lightning_private import is_logging_step
from cl_callbacks.training.log import is_due, log
from cl_callbacks.training.task_loss import TaskLoss, task_loss

LEAST_STEPS = 50
"""Steps of the shortest task whose loss tells whether it was learned."""
LEAST_STEPS_OF_EFFECT = 10
"""Steps of the shortest task in which a rule is expected to do something."""
FIRST_LOOK_STEPS = 500
"""Steps after which rules are judged in a first task, before it ends: a stream may not end."""


class ScaleWatch:
    """Measures the effect of the rules on chosen steps, and says when one is too weak or too strong.

    Measured are the steps that Lightning logs, and steps 1, 2, 4, 8, … of a task. All other steps are as
    without it, except for two running means of the loss.

    Args:
        rules: all rules of a Trainer.
    """

    def __init__(self, rules: Sequence[ScaledRule]) -> None:
        self.rules = rules
        self._batches = 0  # of the task
        self._loss = TaskLoss()
        self._whole = False  # whether the task was seen from its first step
        self._scale: PullScale | None = None
        self._losses: tuple[float, float] | None = None

    def before_step(self, trainer: Trainer) -> PullScale | None:
        """What measures the steps of this batch; ``None`` if they are not measured."""
        if self._scale is None:
            step = self._steps(trainer) + 1
            if step & (step - 1) == 0 or is_logging_step(trainer):
                pulling, rewriting = (
                    [r for r in self.rules if r.acts_on == what] for what in ("gradient", "update")
                )
                self._scale = PullScale(pulling, rewriting)
        return self._scale

    def end_batch(self, trainer: Trainer, outputs: Any) -> None:
        """Keeps the loss and what was measured, and logs it on steps that Lightning logs."""
        self._batches += 1
        self._loss.add(task_loss(trainer, outputs))
        if self._scale is not None:
            self._keep(trainer, self._scale)
            self._scale = None
        if self._whole and self._batches == FIRST_LOOK_STEPS * trainer.accumulate_grad_batches:
            self._look(trainer)

    def start_task(self, rule: ScaledRule) -> None:
        """Begins the task for a rule."""
        rule.rule_scale.peak = rule.rule_scale.reached = None
        if rule is self.rules[0]:
            self._batches, self._loss, self._losses = 0, TaskLoss(), None
            self._whole, self._scale = True, None

    def end_task(self, trainer: Trainer, rule: ScaledRule, task: int) -> None:
        """Ends the task for a rule, before it consolidates: logs its largest ratio, and judges it."""
        scale = rule.rule_scale
        if not self._whole:
            scale.reached = None
            return
        reached = scale.read()
        if reached is not None:
            key = log_keys.task(f"{measure_of(rule)}/{rule.name}")
            log(trainer, {log_keys.TASK_INDEX: task, key: reached})
        losses = None if boundaries_of(trainer).looking_back else self._task_losses(trainer)
        if self._steps(trainer) >= LEAST_STEPS_OF_EFFECT:
            _warn(scale.inert(rule, task))
        if losses is not None:
            _warn(scale.paralysed(rule, task, *losses))
        scale.end_task(losses)
        if rule is self.rules[-1]:
            self._whole = False

    def _steps(self, trainer: Trainer) -> int:
        """Number of steps of the task so far, if each is one of as many batches."""
        return self._batches // trainer.accumulate_grad_batches

    def _keep(self, trainer: Trainer, measured: PullScale) -> None:
        found = {}
        for rule in self.rules:
            changes = measured.changes_of(rule)
            if changes:
                rule.rule_scale.keep(changes, rule)
                found[log_keys.ratio(measure_of(rule), rule.name)] = rule.rule_scale.ratio
        if found and is_due(trainer):
            log(trainer, {key: ratio.item() for key, ratio in found.items() if ratio is not None})

    def _task_losses(self, trainer: Trainer) -> tuple[float, float] | None:
        """First and latest mean loss of the task, the same for all rules; ``None`` if it was too short."""
        if self._losses is None and self._steps(trainer) >= LEAST_STEPS:
            self._losses = self._loss.means(trainer)
        return self._losses

    def _look(self, trainer: Trainer) -> None:
        rules = [rule for rule in self.rules if not rule.rule_scale.has_level]
        losses = self._loss.means(trainer) if rules else ()
        for rule in rules:
            rule.rule_scale.read()
            _warn(rule.rule_scale.paralysed(rule, boundaries_of(trainer).task, *losses))


def _warn(sentence: str | None) -> None:
    if sentence is not None:
        rank_zero_warn(sentence)
