"""A function that finds the strength of rules with a Trainer that is not training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cl_callbacks.boundaries.task_boundaries import TaskBoundaries
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import AT_LEAST_ONE, POSITIVE, Bounds
from cl_callbacks.rules.consolidation.anchored_rule import AnchoredRule
from cl_callbacks.training.lightning_private import leave_fit, new_fit_loop, starts_processes
from cl_callbacks.training.quiet_fit import quiet_fits
from cl_callbacks.tuning.found_strength import FoundStrength
from cl_callbacks.tuning.strength_search import FACTORS, StrengthSearch, report
from cl_callbacks.tuning.task_source import DataModuleTasks, ListedTasks, TaskSource
from cl_callbacks.tuning.task_trials import LEARNING

Tasks = LightningDataModule | tuple[Sequence[Any], Sequence[Any]] | list[Sequence[Any]]
"""A data module that serves tasks in sequence, or training and validation loaders, one for each task."""


@checked(factors=POSITIVE, share=Bounds(above=0, most=1), epochs_per_task=AT_LEAST_ONE)
def find_strength(
    trainer: Trainer,
    module: LightningModule,
    data: Tasks,
    rule: AnchoredRule | Sequence[AnchoredRule],
    *,
    monitor: str,
    mode: Literal["max", "min"] = "max",
    factors: Sequence[float] = FACTORS,
    share: float = 1.0,
    epochs_per_task: int | None = None,
    apply: bool = False,
) -> FoundStrength:
    """Finds the strength at which the second task is learned and the first is kept, and changes nothing else.

    The first task is learned once, then, from there, the second at each of the factors, by which the
    strengths of the rules are multiplied together: see :class:`~cl_callbacks.StrengthFinder`, which does the
    same at the start of a fit and says what takes part in it. Afterwards Trainer, module, data and random
    numbers are as before, also after an error. This takes as long as learning ``1 + len(factors) * share``
    tasks.

    Args:
        trainer: with the settings of the training to come.
        module: the network.
        data: a data module whose ``current_task`` says which task ``train_dataloader`` serves, such as
            :class:`~cl_callbacks.TaskSequence`; or a pair of a list of training loaders and a list of
            validation loaders, one of each for each task. The first two tasks are used.
        rule: a rule that pulls weights towards old values, such as :class:`~cl_callbacks.EWC`, or several.
            One that is not among the Trainer's callbacks is there for the search only, behind the others.
        monitor: the score, as logged by ``validation_step``, such as ``"val_acc"``; see
            :class:`~cl_callbacks.StrengthFinder`.
        mode: ``"max"`` if higher scores are better, ``"min"`` if lower ones are.
        factors: by which the strengths are multiplied, positive and rising.
        share: of a task's length for which the second task is learned at each factor, above 0 and at most 1.
        epochs_per_task: length of a task; default: that of the data, of
            :class:`~cl_callbacks.EpochBoundaries` in the Trainer, or of one fit where each is a task.
        apply: whether to set the rules' strengths to those found.

    Returns:
        The scores at each factor, with the suggested ``strengths`` and a ``figure()``.

    Raises:
        ValueError: invalid arguments, a rule without a strength, or no finite score at any factor.
        MisconfigurationException: before the first step: a strength of 0, fewer than two tasks, no
            validation, a score that is not logged, a length of tasks that nobody knows; a Trainer that starts
            processes in each fit (``ddp_spawn``, ``ddp_notebook``) or has ``fast_dev_run``.

    Example:
        >>> from cl_callbacks import EWC, TaskSequence
        >>> rule = EWC(1.0)
        >>> data = TaskSequence.permuted((images, labels), tasks=5, epochs_per_task=3)  # doctest: +SKIP
        >>> found = find_strength(trainer, net, data, rule, monitor="val_acc")  # doctest: +SKIP
        >>> rule.strength, = found.strengths  # doctest: +SKIP
    """
    search = StrengthSearch("find_strength", monitor, mode, factors, share, epochs_per_task)
    rules = [rule] if isinstance(rule, AnchoredRule) else list(rule)
    _refuse_trainer(trainer)
    given: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    heard = [c for c in given if isinstance(c, (*LEARNING, TaskBoundaries, ProgressBar))]
    heard += [rule for rule in rules if rule not in given]
    fit: dict[str, Any]
    source: TaskSource
    if isinstance(data, LightningDataModule):
        source, fit = DataModuleTasks(data, search.asker), {"datamodule": data}
    else:
        if len(data) != 2:
            raise ValueError(f"data must be a data module, or training and validation loaders; got {data}")
        source = listed = ListedTasks(data[0], data[1], search.asker)
        fit = {"train_dataloaders": listed.training[0], "val_dataloaders": listed.validation}
    visit = _Visit(search, source, rules)
    with source.kept(), quiet_fits(trainer, module):
        trainer.fit_loop = new_fit_loop(trainer)
        trainer.callbacks = [visit, *heard]  # type: ignore[attr-defined]
        trainer.fit(module, **fit)
    found = visit.found
    if apply:
        for each, strength in zip(rules, found.strengths, strict=True):
            each.strength = strength
    report(trainer, search.asker, found)
    return found


class _Visit(Callback):
    """Searches when a fit starts, and leaves the fit."""

    found: FoundStrength

    def __init__(self, search: StrengthSearch, source: TaskSource, rules: Sequence[AnchoredRule]) -> None:
        self.search, self.source, self.rules = search, source, rules

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.found = self.search.run(trainer, self.source, self.rules)
        leave_fit()


def _refuse_trainer(trainer: Trainer) -> None:
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        raise MisconfigurationException(
            "find_strength learns whole tasks: use a Trainer without fast_dev_run."
        )
    if starts_processes(trainer):
        raise MisconfigurationException(
            "find_strength needs the result of a fit, which does not come back from processes that are "
            "started for it alone: use strategy='ddp', or StrengthFinder as a callback."
        )
