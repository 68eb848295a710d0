"""What a setting of the Trainer is declared to come to, for each rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Exact:
    """Weights and state are those of the twin, bit for bit."""


@dataclass(frozen=True)
class Within:
    """Weights and state are those of the twin but for rounding, relative to each tensor's largest entry."""

    tolerance: float
    reason: str


@dataclass(frozen=True)
class Differs:
    """The rule works, and by its nature does not do what it does in the twin."""

    reason: str


@dataclass(frozen=True)
class Refused:
    """Training does not begin (or stops at once) with an error that says what to do."""

    sentence: str
    """A regular expression that finds it."""
    reason: str


@dataclass(frozen=True)
class Idle:
    """The rule has nothing to act on, and training is as without it."""

    sentence: str
    """A regular expression that finds the warning."""
    reason: str


Outcome = Exact | Within | Differs | Refused | Idle


@dataclass
class Run:
    """What a training has left behind."""

    weights: dict[str, Tensor]
    state: dict[str, Tensor]
    """All of the rule's state, flat; empty without a rule."""


@dataclass(frozen=True)
class Setting:
    """One row of the matrix."""

    title: str
    twin_is: str
    """What the run is compared with, in words."""
    run: Callable[[str | None], Run]
    """From the name of a rule, or ``None`` for a training without one."""
    twin: Callable[[str], Run] | None = None
    """Without one every rule is refused."""
    outcome: Outcome = field(default_factory=Exact)
    exceptions: Mapping[str, Outcome] = field(default_factory=dict)
    """By the name of the rule."""
    sweep: bool = False
    """Whether it takes too long for every run of the tests."""
    slow: bool = False
    """Whether it takes too long while one writes."""

    def outcome_of(self, rule: str) -> Outcome:
        return self.exceptions.get(rule, self.outcome)
