"""A callback that finds the strength of the rules before the training begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import AT_LEAST_ONE, POSITIVE, Bounds
from cl_callbacks.guards.saved_state import restore_atomically
from cl_callbacks.observation.pictures import log_figure
from cl_callbacks.rules.consolidation.anchored_rule import AnchoredRule
from cl_callbacks.training import log_keys
from cl_callbacks.training.log import log_folder, unless_it_fails
from cl_callbacks.training.one_trainer import OfOneTrainer
from cl_callbacks.training.progress import say
from cl_callbacks.tuning.found_strength import FoundStrength
from cl_callbacks.tuning.strength_search import FACTORS, StrengthSearch, report
from cl_callbacks.tuning.task_source import DataModuleTasks


class StrengthFinder(OfOneTrainer):
    """Finds the strength of the Trainer's rules when a fit starts, sets it, and leaves no other trace.

    The first task is learned once, as the fit would learn it; then, from there, the second at each of the
    factors, by which the strengths of all rules that pull weights towards old values are multiplied together.
    Validation scores both tasks. The score on the second tells how well later ones will be learned, towards
    which the pulls of all tasks before add up (see
    :func:`~cl_callbacks.functional.as_importance_adds_up`; with a ``decay`` they add up to less, and
    the suggestion errs on the weak side). Of the factors whose average of both, smoothed over its
    neighbours, is as good as the best, the one nearest to 1 wins (see
    :func:`~cl_callbacks.functional.best_on_grid`).

    Then the fit goes on as if nothing had been: the same weights, optimizers, random numbers, data, progress
    and metrics as in a fit with these strengths from the start. This takes as long as learning ``1 +
    len(factors) * share`` tasks, and the memory of two further copies of the module, of its optimizers and of
    the rules.

    The data come from a data module with an attribute ``current_task``, which says whose task's data
    ``train_dataloader`` serves, such as :class:`~cl_callbacks.TaskSequence`; validation has a loader for each
    task. Whichever boundary callback there is, in the search each task ends after its length. Copies of the
    rules, of :class:`~cl_callbacks.CompileRules`, :class:`~cl_callbacks.SeedEpochs` and
    ``GradientAccumulationScheduler`` take part in it; other callbacks hear nothing of it, and so do not
    change what is learned.

    The hooks of the module and of the data module run as in any fit. What they write or send elsewhere is not
    undone, nor are changes within objects other than tensors and containers of these.

    A fit that goes on from a checkpoint takes the strengths found then. A further fit on the same Trainer
    does not search again.

    Args:
        monitor: the score, as logged by ``validation_step``: ``"val_acc"``, to which Lightning adds
            ``/dataloader_idx_0`` and so on; or a pattern with ``{task}`` in it for other names.
        mode: ``"max"`` if higher scores are better, ``"min"`` if lower ones are.
        factors: by which the strengths are multiplied, positive and rising.
        share: of a task's length for which the second task is learned at each factor, above 0 and at most 1.
        epochs_per_task: length of a task; default: that of the data, of
            :class:`~cl_callbacks.EpochBoundaries`, or of one fit where each is a task.

    Attributes:
        result: what was found; ``None`` before.

    Raises:
        ValueError: an invalid argument, at construction; when the fit starts, no finite score at any factor.
        MisconfigurationException: when the fit starts, before its first step: two finders, no rule with a
            strength or one of 0, fewer than two tasks, no validation, a score that is not logged, a length of
            tasks that nobody knows.

    Example:
        >>> from lightning import Trainer
        >>> from cl_callbacks import EWC, EpochBoundaries
        >>> finder = StrengthFinder("val_acc", factors=(0.1, 1.0, 10.0))
        >>> trainer = Trainer(
        ...     callbacks=[EWC(1.0), EpochBoundaries(10), finder], logger=False, enable_checkpointing=False)
        >>> finder.result is None
        True
    """

    @checked(factors=POSITIVE, share=Bounds(above=0, most=1), epochs_per_task=AT_LEAST_ONE)
    def __init__(
        self,
        monitor: str = "val_acc",
        mode: Literal["max", "min"] = "max",
        *,
        factors: Sequence[float] = FACTORS,
        share: float = 1.0,
        epochs_per_task: int | None = None,
    ) -> None:
        super().__init__()
        self.monitor, self.mode, self.factors = monitor, mode, factors
        self.share, self.epochs_per_task = share, epochs_per_task
        self._search = StrengthSearch(type(self).__name__, monitor, mode, factors, share, epochs_per_task)
        self.result: FoundStrength | None = None
        self._evaluating = self._restored = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a second finder, and moves to the front, behind Lightning's own finders."""
        self._evaluating = stage != "fit"
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if sum(isinstance(c, StrengthFinder) for c in callbacks) > 1:
            raise MisconfigurationException(
                "One StrengthFinder finds a common factor for the strengths of all rules, and this Trainer "
                "has two: keep one of them."
            )
        first = [c for c in callbacks if isinstance(c, BatchSizeFinder | LearningRateFinder)]
        # In front, so that the configuration that loggers get has the strengths that are found. In a new
        # list: Lightning is iterating over the old one.
        others = [c for c in callbacks if c is not self and c not in first]
        trainer.callbacks = [*first, self, *others]  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Searches and sets the strengths, in a new training."""
        self._set_restored(trainer)
        if self.result is not None or trainer.ckpt_path is not None:
            return
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            say(trainer, f"{type(self).__name__}: no search in a fast_dev_run; the strengths stay")
            return
        source = DataModuleTasks(trainer.datamodule, type(self).__name__)  # type: ignore[attr-defined]
        self.result = self._search.run(trainer, source, _rules(trainer))
        self._set_strengths(trainer)
        report(trainer, type(self).__name__, self.result)
        if trainer.is_global_zero and log_folder(trainer) is not None:
            with unless_it_fails(trainer, "figure of strengths"):
                log_figure(trainer, log_keys.STRENGTH_FIGURE, self.result.figure())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets the strengths that a checkpoint had: some strategies load it after ``on_fit_start``."""
        self._set_restored(trainer)
        if self.result is None and trainer.ckpt_path is not None:
            rank_zero_warn(
                f"{type(self).__name__} searches before a training, and this one goes on from a checkpoint "
                "that has no strength from a search: the rules keep their own."
            )

    def on_state_returned(self, trainer: Trainer) -> None:
        """Sets the strengths that were found in processes which have ended with the fit."""
        self._set_restored(trainer)

    def _set_restored(self, trainer: Trainer) -> None:
        if self._restored:
            self._set_strengths(trainer)
            self._restored = False

    def _set_strengths(self, trainer: Trainer) -> None:
        assert self.result is not None
        rules = _rules(trainer)
        names = tuple(rule.name for rule in rules)
        if names != self.result.rules:
            raise MisconfigurationException(
                f"{type(self).__name__}: the strengths in the checkpoint are those of {self.result.rules}, "
                f"and the rules in this Trainer are {names}: use the same callbacks, or leave StrengthFinder "
                "out."
            )
        for rule, strength in zip(rules, self.result.strengths, strict=True):
            rule.strength = strength

    def state_dict(self) -> dict[str, Any]:
        """The result, of numbers and strings; ``None`` before a search."""
        return {"result": None if self.result is None else asdict(self.result)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a result, unless the Trainer only evaluates; training starts with its strengths.

        Raises:
            ValueError: a state of something else; the present result is then kept.
        """
        if not self._evaluating:
            restore_atomically(self, state_dict)

    def restore(self, state_dict: dict[str, Any]) -> None:
        """Sets the result from a saved state."""
        result = state_dict["result"]
        self.result = None if result is None else FoundStrength(**result)
        self._restored = self.result is not None


def _rules(trainer: Trainer) -> list[AnchoredRule]:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [c for c in callbacks if isinstance(c, AnchoredRule) and not c.renews]
