"""Reads the score of every task from what a validation has logged."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from cl_callbacks.guards.few import few


def task_scores(trainer: Trainer, metrics: Mapping[str, Tensor], monitor: str, asker: str) -> list[float]:
    """Scores of all tasks, in the order of their loaders: the same numbers on every process.

    Args:
        trainer: whose processes average what they have logged. All of them have to call this.
        metrics: logged values by name, such as ``trainer.callback_metrics``.
        monitor: the score, ``"val_acc"`` for ``val_acc/dataloader_idx_0`` and so on; or a pattern with
            ``{task}`` in it for other names.
        asker: who needs the scores, for the error message.

    Raises:
        MisconfigurationException: the score is not among the metrics; the message lists what is.
    """
    found = [metrics[name] for name in score_names(metrics, monitor, asker)]
    values = torch.stack([value.detach().float().to(trainer.strategy.root_device) for value in found])
    return trainer.strategy.reduce(values, reduce_op="mean").tolist()


def score_names(metrics: Collection[str], monitor: str, asker: str) -> list[str]:
    """Names of the tasks' scores among those of the logged metrics, in the order of the loaders.

    For arguments and errors see :func:`task_scores`.
    """
    if "{task}" not in monitor:
        if monitor in metrics:  # with a single loader
            return [monitor]
        monitor += "/dataloader_idx_{task}"
    before, after = map(re.escape, monitor.split("{task}", 1))
    matches = [re.fullmatch(f"{before}([0-9]+){after}", name) for name in metrics]
    numbers = sorted(int(match[1]) for match in matches if match)
    if not numbers or numbers != list(range(len(numbers))):
        wanted = next(task for task in range(len(numbers) + 1) if task not in numbers)
        raise MisconfigurationException(
            f"{asker}: validation logs no {monitor.replace('{task}', str(wanted))!r}; it logs "
            f"{few(sorted(metrics)) if metrics else 'nothing'}. Let `validation_step` of the module log "
            f"the score of each task, from 0 on, or give {asker} another monitor."
        )
    return [monitor.replace("{task}", str(task)) for task in numbers]
