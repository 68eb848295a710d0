"""The search for the strength of rules, inside a Trainer that is about to fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from cl_callbacks.rules.consolidation.anchored_rule import AnchoredRule
from cl_callbacks.training.progress import progress, say
from cl_callbacks.training.quiet_fit import quiet_fits
from cl_callbacks.training.task_scores import task_scores
from cl_callbacks.tuning.found_strength import FoundStrength
from cl_callbacks.tuning.task_source import TaskSource
from cl_callbacks.tuning.task_trials import TaskTrials
from cl_callbacks.tuning.trial_boundaries import task_length

FACTORS = 0.1, 0.3, 1.0, 3.0, 10.0, 30.0
"""Factors that are tried by default: each about three times the one before."""
Mode = Literal["max", "min"]


@dataclass(frozen=True)
class StrengthSearch:
    """What to try, and how to score it; see :class:`~cl_callbacks.StrengthFinder` for the arguments.

    Raises:
        ValueError: arguments that cannot work.
    """

    asker: str
    monitor: str
    mode: Mode = "max"
    factors: Sequence[float] = FACTORS
    share: float = 1.0
    epochs_per_task: int | None = None

    def __post_init__(self) -> None:
        """Checks the arguments."""
        if len(self.factors) < 2 or any(a >= b for a, b in pairwise(self.factors)):
            raise ValueError(f"factors must be at least two numbers that rise; got {list(self.factors)}")

    @property
    def cost(self) -> float:
        """Cost of the search, in trainings of a whole task."""
        return 1 + len(self.factors) * self.share

    def run(self, trainer: Trainer, source: TaskSource, rules: Sequence[AnchoredRule]) -> FoundStrength:
        """Learns the first task, and from there the second at every factor; leaves everything as it was.

        Args:
            trainer: in ``on_fit_start``, with validation data of all tasks.
            source: of the tasks' data.
            rules: whose strengths are multiplied together, among the Trainer's callbacks.

        Raises:
            MisconfigurationException: no rule, or one of strength 0; no validation, or one without the score
                of two tasks; a length of tasks that nobody knows; a task without a training step.
            ValueError: no training of the second task gave a finite score.
        """
        length = task_length(trainer, self.epochs_per_task, self.asker)
        self._refuse(trainer, rules)
        text = f"tries {len(self.factors)} strengths, at the cost of {self.cost:g} trainings of a task"
        say(trainer, f"{self.asker}: {text}")
        scores = []
        with (
            progress(trainer, f"{self.asker}: tasks learned", 1 + len(self.factors)) as advance,
            source.kept(),
            quiet_fits(trainer, trainer.lightning_module),
        ):
            read = partial(self._scores, trainer)
            trials = TaskTrials(trainer, source, length, self.share, read)
            before, after = trials.first()
            self._warn_unless_learned(before[0], after[0])
            advance(1)
            for factor in self.factors:
                scores.append(trials.second({rule: rule.strength * factor for rule in rules}))
                advance(1)
        old, new = ([each[task] for each in scores] for task in (0, 1))
        return FoundStrength(
            self.monitor,
            self.mode,
            tuple(self.factors),
            tuple(old),
            tuple(new),
            learned=after[0],
            rules=tuple(rule.name for rule in rules),
            own_strengths=tuple(rule.strength for rule in rules),
            tasks=len(before),
        )

    def _scores(self, trainer: Trainer, metrics: Mapping[str, Tensor]) -> list[float]:
        scores = task_scores(trainer, metrics, self.monitor, self.asker)
        if len(scores) < 2:
            raise MisconfigurationException(
                f"{self.asker} compares the score on an old and on a new task, and validation has one loader:"
                " give it one for each of at least two tasks."
            )
        return scores

    def _refuse(self, trainer: Trainer, rules: Sequence[AnchoredRule]) -> None:
        if not rules:
            raise MisconfigurationException(
                f"{self.asker}: there is no rule with a strength among the callbacks: add one that pulls "
                f"weights towards their old values, such as EWC."
            )
        for rule in rules:
            if not rule.strength > 0:
                raise MisconfigurationException(
                    f"{self.asker}: {rule.name} has the strength {rule.strength:g}, which no factor changes: "
                    "give it one above 0, or leave the rule out."
                )
        if not trainer.enable_validation:
            raise MisconfigurationException(
                f"{self.asker} scores tasks by the Trainer's validation, and there is none: give one "
                "validation loader per task, the module a `validation_step`, and leave limit_val_batches "
                "above 0."
            )

    def _warn_unless_learned(self, before: float, after: float) -> None:
        learned = after > before if self.mode == "max" else after < before
        if not learned:
            rank_zero_warn(
                f"{self.asker}: learning the first task took its {self.monitor} from {before:.4g} to "
                f"{after:.4g}, which is no better (mode={self.mode!r}). What was not learned cannot be "
                "forgotten, so that the strength that is found here means little: train longer, or at "
                "another learning rate."
            )


def report(trainer: Trainer, asker: str, found: FoundStrength) -> None:
    """Prints what was found, and advice if the best factor is at an end of those that were tried."""
    for line in (str(found), found.advice):
        if line is not None:
            say(trainer, f"{asker}: {line}")
