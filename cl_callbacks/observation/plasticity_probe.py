"""A callback that finds out why a network learns less than a new one would."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import cycle, islice
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import AT_LEAST_ONE, NON_NEGATIVE
from cl_callbacks.guards.saved_state import restore_atomically
from cl_callbacks.guards.sound_state import OF_WEIGHTS
from cl_callbacks.observation.condition import condition
from cl_callbacks.observation.fork import WAYS, Fork, Way
from cl_callbacks.observation.fresh_tasks import Fresh, fresh_batches
from cl_callbacks.tensors.random_numbers import mixed_seed
from cl_callbacks.tensors.shards import group_of
from cl_callbacks.training import log_keys
from cl_callbacks.training.generators import isolated_rng
from cl_callbacks.training.log import log
from cl_callbacks.training.one_trainer import OfOneTrainer
from cl_callbacks.training.progress import say
from cl_callbacks.training.task_batches import task_batches

OBSERVED = 32
"""Batches on which units are observed, at most."""


class PlasticityProbe(OfOneTrainer):
    r"""Trains copies of the network on a task that nobody has seen, and tells what holds them back.

    When a task ends, four copies learn the same ``steps`` batches, and :math:`L` is the mean of the losses
    before each step, so that a copy which learns faster has a smaller one:

    ==================  ===========================================================================
    ``as_is``           rules, optimizer and weights as they are
    ``released``        without what rules hold: rules that own the update begin anew with their standard
                        deviations, and all others are left out
    ``reset``           with the optimizer's moments at 0, too
    ``fresh``           with the weights that the training began with, too
    ==================  ===========================================================================

    .. math:: \text{rigidity} = L_\text{as is} - L_\text{released}, \quad
              \text{optimizer} = L_\text{released} - L_\text{reset}, \quad
              \text{representation} = L_\text{reset} - L_\text{fresh}.

    What is above 0 has cost plasticity. Below 0, what was learned helps: the representation of a pretrained
    network mostly does. The three add up to :math:`L_\text{as is} - L_\text{fresh}`.

    Rules that rehearse, distil or renew take no part, unless they own the update. Afterwards weights,
    optimizers, rules, random numbers and loggers are as before, bit for bit. It takes as long as four times
    ``steps`` steps of training, and a copy of the network's first weights on the CPU, which is in
    checkpoints. All seven numbers go to the loggers as ``cl_task/plasticity/…``, and are in :attr:`results`;
    so do the norm of the weights, their distance from the first ones, and for each layer whose units can be
    told the share that is dormant and the ranks of their activations: see
    ``observation/condition.py``.

    Args:
        every_n_tasks: from one probe to the next.
        steps: number of batches that each copy learns; those of a task that is shorter come again.
        fresh: the new task: ``"inputs"`` permutes the features of the present one, ``"labels"`` its classes;
            or a function ``fresh(batch, generator)`` that returns a batch of the new one.
        seed: of the new tasks.

    Raises:
        ValueError: an argument that cannot work, at construction.
        MisconfigurationException: before the first step, manual optimization, several optimizers,
            ``"16-mixed"``, or sharded parameters.

    Example:
        >>> from cl_callbacks import EWC
        >>> callbacks = [EWC(), PlasticityProbe(steps=50)]
        >>> trainer = Trainer(callbacks=callbacks, logger=False, enable_checkpointing=False)
    """

    observes: ClassVar[bool] = True
    reads_task_data: ClassVar[bool] = True

    @checked(every_n_tasks=AT_LEAST_ONE, steps=AT_LEAST_ONE, seed=NON_NEGATIVE)
    def __init__(
        self, every_n_tasks: int = 1, *, steps: int = 100, fresh: Fresh = "inputs", seed: int = 0
    ) -> None:
        super().__init__()
        self.every_n_tasks, self.steps, self.fresh, self.seed = every_n_tasks, steps, fresh, seed
        self.results: dict[int, dict[str, float]] = {}
        """By task: the mean loss of each copy, the three differences, and the state of the network."""
        self._start: dict[str, Tensor] = {}
        self._tried = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the first weights, and refuses what copies could not be trained in."""
        reason = _unable(trainer, pl_module)
        if reason:
            raise MisconfigurationException(
                f"{type(self).__name__} trains copies of the network step by step, and cannot with {reason}."
            )
        self._start = self._start or {
            name: p.detach().to("cpu", copy=True) for name, p in pl_module.named_parameters()
        }

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *args: Any
    ) -> None:
        """Tries on the first batch whether a new task can be made from it."""
        if not self._tried:
            fresh_batches([batch], self.fresh, self.seed)
            self._tried = True

    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Trains the copies, and logs what they say."""
        if (task + 1) % self.every_n_tasks:
            return
        begin = time.perf_counter()
        seed = mixed_seed(self.seed, task)
        with isolated_rng(trainer, pl_module):
            batches = list(islice(task_batches(trainer, None, seed), self.steps))
            new = list(islice(cycle(fresh_batches(batches, self.fresh, seed)), self.steps))
        fork = Fork(trainer, pl_module, self._start, seed)
        losses = {way: fork.learn(way, new) for way in WAYS}
        state = condition(trainer, pl_module, batches[:OBSERVED], self._start, seed)
        self.results[task] = found = losses | differences(losses) | state
        log(trainer, {log_keys.task(f"plasticity/{name}"): value for name, value in found.items()})
        parts = ", ".join(
            f"{name} {found[name]:+.3f}" for name in ("rigidity", "optimizer", "representation")
        )
        say(trainer, f"plasticity after task {task}: {parts} ({time.perf_counter() - begin:.1f} s)")

    def state_dict(self) -> dict[str, Any]:
        """The first weights, and what was found."""
        return {"start": dict(self._start), "results": {str(task): own for task, own in self.results.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned.

        Raises:
            ValueError: a state that is not of this callback, which is then left unchanged.
        """
        restore_atomically(self, state_dict, {"start": OF_WEIGHTS})

    def restore(self, state_dict: dict[str, Any]) -> None:
        """Sets the state from a saved one."""
        self._start = {name: t.detach().clone() for name, t in state_dict["start"].items()}
        self.results = {int(task): dict(own) for task, own in state_dict["results"].items()}


def differences(losses: Mapping[Way, float]) -> dict[str, float]:
    """What has cost plasticity, from the mean loss of each copy.

    Example:
        >>> differences({"as_is": 2.0, "released": 1.5, "reset": 1.25, "fresh": 1.0})
        {'rigidity': 0.5, 'optimizer': 0.25, 'representation': 0.25}
    """
    return {
        "rigidity": losses["as_is"] - losses["released"],
        "optimizer": losses["released"] - losses["reset"],
        "representation": losses["reset"] - losses["fresh"],
    }


def _unable(trainer: Trainer, pl_module: LightningModule) -> str:
    if not pl_module.automatic_optimization:
        return "manual optimization, where `training_step` steps the optimizers"
    if len(trainer.optimizers) > 1:
        return "several optimizers"
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        return "the loss scale of precision='16-mixed': use 'bf16-mixed'"
    if group_of(list(pl_module.parameters())[:1]) is not None:
        return "sharded parameters"
    return ""
