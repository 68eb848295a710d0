"""The effect of one rule beside that of the task, and what to say of one that is too weak or too strong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from cl_callbacks.guards.signatures import snake_case
from cl_callbacks.synapses.pull_scale import Change, ratio
from cl_callbacks.synapses.step import Rule

ActsOn = Literal["gradient", "update"]
"""What a rule changes by a part: the task's gradient, or the optimizer's update."""

INERT = 0.01
"""Greatest ratio at which a rule is said to do nothing."""
AIM = 0.3
"""Ratio that the advice to an inert rule aims at."""
HOLDING = 0.3
"""Least ratio at which a rule can be what keeps a task from being learned."""
OVERPOWERING = 1.0
"""The same where no task before was learned, so that it is not known whether there is anything to learn."""
LARGEST_FACTOR = 100.0
"""Largest change of a strength that is advised at once."""
FALL = 0.1
"""Share of itself by which the loss of a task that is learned falls, at least."""


class ScaledRule(Rule, Protocol):
    """Protocol of a rule with a scale: see :class:`~cl_callbacks.SynapticCallback`."""

    name: str
    tasks: int
    rule_scale: RuleScale
    renews: ClassVar[bool]

    @property
    def acts_on(self) -> ActsOn | None:
        """What the rule changes by a part."""

    @property
    def strength_now(self) -> float | None:
        """Value of the argument that sets how strong the rule is."""

    def advice(self, factor: float) -> str:
        """What to try for ``factor`` times the effect."""


class RuleScale:
    """How strong a rule's effect was in the current task, and how the tasks before it went.

    Nothing of it is in checkpoints: after one was loaded, nothing is said of a task that has begun before.

    Args:
        fresh: whether the rule has seen no training before this process.

    Attributes:
        latest: what the rule changed in the latest batch that was measured.
        ratio: norm of that over the norm of the gradient or update, a scalar on the device.
        peak: largest such ratio in the current task, on the device; ``None`` if none was measured.
        reached: largest ratio in the task that ended last, if it was seen from its first step.
        ended: number of tasks that were seen from their first step to their end.
    """

    def __init__(self, fresh: bool = True) -> None:
        self.fresh = fresh
        self.latest: list[Change] = []
        self.ratio: Tensor | None = None
        self.peak: Tensor | None = None
        self.reached: float | None = None
        self.ended = 0
        self._learned = 0
        self._began = self._left = 0.0  # mean loss with which tasks that were learned began and ended
        self._said: set[str] = set()

    def keep(self, changes: Sequence[Change], rule: ScaledRule) -> None:
        """Keeps what the rule changed in a batch; without waiting for the device."""
        self.latest = list(changes)
        self.ratio = ratio(changes, rule.synapses.view)
        self.peak = self.ratio if self.peak is None else torch.maximum(self.peak, self.ratio)

    @property
    def has_level(self) -> bool:
        """Whether it is known at which loss tasks that were learned have begun and ended."""
        return self._learned > 0

    def read(self) -> float | None:
        """The largest ratio in the current task so far; waits for the device."""
        self.reached = None if self.peak is None else self.peak.item()
        return self.reached

    def inert(self, rule: ScaledRule, task: int) -> str | None:
        """A sentence, once, if the rule has done next to nothing in a task, and has a past to protect."""
        reached = self.reached or 0.0  # at exactly 0 there was nothing that a strength could multiply
        with_a_past = rule.tasks > 0 or self.ended > 0
        if not (with_a_past and rule.strength_now != 0 and 0 < reached < INERT):
            return None
        so = "" if rule.renews else ", so nothing is protected"
        return self._once(
            "inert",
            f"{_called(rule)} hardly does anything: in task {task} {effect(rule, reached)} at most{so}; "
            f"{rule.advice(min(LARGEST_FACTOR, AIM / reached))}.",
        )

    def paralysed(self, rule: ScaledRule, task: int, first: float, latest: float) -> str | None:
        """A sentence, once, if the loss of a task does not fall although the rule acts.

        Args:
            rule: the rule.
            task: the number of the task.
            first: mean loss at the beginning of the task.
            latest: mean loss of the latest tenth of its batches.
        """
        owns, reached = rule.owns_update, self.reached or 0.0
        known = self.has_level  # else it may hold from the beginning, as rules without a boundary do
        acts = owns or reached >= (HOLDING if known else OVERPOWERING)
        if not acts or not (known or (self.fresh and not self.ended)):
            return None
        learned = latest <= (1 - FALL) * first
        if known:  # a task that is well known from the beginning has nothing to fall
            learned = learned or latest <= 2 * self._left or latest <= FALL * self._began
        if learned or not math.isfinite(first + latest):
            return None
        before = f", where tasks before it ended at {self._left:.2g}" if known else ""
        how = "" if owns else f", and {effect(rule, reached)}"
        return self._once(
            "paralysed",
            f"{_called(rule)} may keep the network from learning: the loss of task {task} does not fall "
            f"({first:.3g} at its beginning, {latest:.3g} now{before}){how}; {rule.advice(0.1)}.",
        )

    def end_task(self, losses: tuple[float, float] | None) -> None:
        """Counts a task that was seen from its first step, with its first and latest mean loss if known."""
        self.ended += 1
        if losses is not None and all(map(math.isfinite, losses)) and "paralysed" not in self._said:
            self._learned += 1
            self._began += (losses[0] - self._began) / self._learned
            self._left += (losses[1] - self._left) / self._learned

    def summary(self, rule: ScaledRule) -> str | None:
        """A few words for the line at the end of a task."""
        return effect(rule, self.reached, rule.name) if self.reached else None

    def _once(self, what: str, sentence: str) -> str | None:
        if what in self._said:
            return None
        self._said.add(what)
        return sentence


def effect(rule: ScaledRule, reached: float, who: str = "it") -> str:
    """Words for the largest effect of a rule in a task."""
    if rule.acts_on == "update":
        return f"{who} changed the update by up to {reached:.2g} of it"
    return f"{who} pulled with up to {reached:.2g} of the gradient"


def _called(rule: ScaledRule) -> str:
    kind = type(rule).__name__
    return kind if rule.name == snake_case(kind) else f"{kind} {rule.name!r}"


def measure_of(rule: ScaledRule) -> str:
    """Name of a rule's ratio in log keys."""
    return "update_ratio" if rule.acts_on == "update" else "pull_ratio"


def scaled(value: Any, factor: float) -> str | None:
    """A value times a factor, rounded to one digit; ``None`` for what is no number above 0.

    Example:
        >>> scaled(70.0, 30), scaled(1e-4, 3.16), scaled("all", 2)
        ('2000', '0.0003', None)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        return None
    return f"{float(f'{value * factor:.0e}'):g}"
