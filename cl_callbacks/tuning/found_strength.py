"""The result of a search for a strength."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from cl_callbacks.functional.grid import as_importance_adds_up, best_on_grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FoundStrength:
    """Scores on two tasks at each strength, and the strength to use.

    The best factor is the one with the best average of the score on the first task and of what the second
    shows for all later ones (see :func:`~cl_callbacks.functional.as_importance_adds_up`), after
    smoothing over neighbouring factors. Of those as good as that it is the one nearest to 1: see
    :func:`~cl_callbacks.functional.best_on_grid`. Factors above 1 are not chosen if the pulls of the
    whole sequence would add up to more than what was tried.

    Args:
        monitor: name of the score.
        mode: ``"max"`` if higher scores are better, ``"min"`` if lower ones are.
        factors: by which the rules' own strengths were multiplied, rising.
        old: score on the first task after the second was learned, for each factor.
        new: score on the second task, likewise.
        learned: score on the first task before the second was learned.
        rules: names of the rules.
        own_strengths: strength of each rule before the search.
        tasks: length of the whole sequence.

    Example:
        >>> found = FoundStrength("acc", "max", (0.1, 1.0, 10.0), old=(0.5, 0.8, 0.9), new=(0.9, 0.8, 0.3),
        ...     learned=0.9, rules=("ewc",), own_strengths=(2.0,))
        >>> found.factor, found.strengths
        (1.0, (2.0,))
        >>> print(found)
        strength of ewc 2 (factor 1) · acc 0.8 on the first task (0.9 before the second), 0.8 on the second
    """

    monitor: str
    mode: Literal["max", "min"]
    factors: tuple[float, ...]
    old: tuple[float, ...]
    new: tuple[float, ...]
    learned: float
    rules: tuple[str, ...]
    own_strengths: tuple[float, ...]
    tasks: int = 2

    @property
    def average(self) -> tuple[float, ...]:
        """Average of the scores on the first task and, as far as the second tells, on later ones."""
        later = as_importance_adds_up(self.factors, self.new, self.tasks)
        return tuple((old + new) / 2 for old, new in zip(self.old, later, strict=True))

    @property
    def best(self) -> int:
        """Index of the best factor."""
        usual = min(range(self._choice), key=lambda k: abs(math.log(self.factors[k])))
        scores = torch.tensor(self.average, dtype=torch.float64)
        return best_on_grid(scores, self.mode == "max", usual, self._choice)

    @property
    def _choice(self) -> int:
        """How many of the factors, from the lowest, may be chosen."""
        bound = max(1.0, self.factors[-1] / (self.tasks - 1), self.factors[0])
        return sum(factor <= bound for factor in self.factors)

    @property
    def factor(self) -> float:
        """The best factor."""
        return self.factors[self.best]

    @property
    def strengths(self) -> tuple[float, ...]:
        """The suggestion: strength of each rule, in the order of ``rules``."""
        return tuple(strength * self.factor for strength in self.own_strengths)

    @property
    def advice(self) -> str | None:
        """A sentence on which factors to try next, if the best one is the lowest or the highest."""
        sign = 1 if self.mode == "max" else -1
        scores = [sign * score for score in self.average]
        if (
            self.best == self._choice - 1
            and max(scores[self._choice :], default=-math.inf) > scores[self.best]
        ):
            return (
                f"higher factors than {self.factor:g} score better, and are not taken, since the pulls of "
                f"{self.tasks} tasks add up: search once more from the strength that was found"
            )
        if 0 < self.best < len(self.factors) - 1:
            return None
        lowest = self.best == 0
        ratio = self.factors[1] / self.factors[0] if lowest else self.factors[-1] / self.factors[-2]
        further = self.factor / ratio if lowest else self.factor * ratio
        return (
            f"the best factor, {self.factor:g}, is the {'lowest' if lowest else 'highest'} that was tried, "
            f"and a better one may lie beyond: widen factors, for instance to {further:.3g}"
        )

    def __str__(self) -> str:
        """The suggestion and its scores in one line."""
        pairs = zip(self.rules, self.strengths, strict=True)
        strengths = ", ".join(f"{rule} {strength:.4g}" for rule, strength in pairs)
        return (
            f"strength of {strengths} (factor {self.factor:g}) · {self.monitor} {self.old[self.best]:.4g} on "
            f"the first task ({self.learned:.4g} before the second), {self.new[self.best]:.4g} on the second"
        )

    def figure(self) -> Figure:
        """Draws the scores over the factors, with matplotlib."""
        from cl_callbacks.observation.figures import strength_curve

        return strength_curve(
            self.factors,
            self.old,
            self.new,
            self.average,
            self.best,
            learned=self.learned,
            monitor=self.monitor,
        )
