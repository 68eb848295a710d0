"""Finds the units of a module in training: in a batch of each process, and in several batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from cl_callbacks.compiled.one_thread import eagerly
from cl_callbacks.guards.waiting_signals import Section
from cl_callbacks.rules.renewal.late_layers import LateLayers
from cl_callbacks.rules.renewal.source import UNREAD
from cl_callbacks.rules.renewal.units import Units, find_units
from cl_callbacks.rules.renewal.units_tried import read_elsewhere
from cl_callbacks.tensors.shards import reshard
from cl_callbacks.training.quiet_step import quiet_step, training_loss


class Found(NamedTuple):
    """What a search has found.

    Attributes:
        units: those that can be replaced.
        left_out: why others cannot be, by layer.
    """

    units: list[Units]
    left_out: dict[str, str]

    @property
    def layers(self) -> set[str]:
        """All layers that were run."""
        return {layer for units in self.units for layer in units.layers} | self.left_out.keys()


class UnitSearch:
    """Looks for units on the first batch of a task, and again when layers run that no search has met.

    Those may read units too: another head in every second batch, or a block that is left out by chance. With
    several processes each searches in a batch of its own, and all have found the same in the end.

    Args:
        trainer: that is fitting.
        pl_module: its module.
        seed: of dropout in the runs of ``training_step``, which leave no trace.

    Attributes:
        found: in the present task.
    """

    def __init__(self, trainer: Trainer, pl_module: LightningModule, seed: int) -> None:
        self.found = Found([], {})
        self._trainer, self._module, self._seed = trainer, pl_module, seed
        self._late = LateLayers(pl_module)
        self._late_batch: tuple[Any, int] | None = None
        self._known: set[str] = set()
        self._batch: tuple[Any, ...] = ()
        self._number = seed

    def begin_task(self, batch: Any, batch_idx: int, known: Iterable[str]) -> None:
        """Looks for the units of a new task; ``known`` are layers that were met in earlier ones."""
        self._late.detach()
        self._late = LateLayers(self._module)  # a task may have brought layers
        self.found, self._known = Found([], {}), {*known}
        self._look(batch, batch_idx, self._seed)

    def look_again(self, batch: Any, batch_idx: int, steps: int) -> bool:
        """Looks for units once more if this batch has run layers that no search has met.

        Several processes ask each other after fewer and fewer steps, since the host waits for that.

        Returns:
            Whether it has looked.
        """
        if self._late.heard and self._late_batch is None:
            self._late_batch = batch, batch_idx
        several = self._trainer.world_size > 1
        if not self._late.waiting or (several and steps & (steps - 1) and steps % 100):
            return False
        if several:
            self._late.heard = set().union(*_of_all_processes(self._trainer, self._late.heard))
        if not self._late.heard:
            return False
        self._look(*(self._late_batch or (batch, batch_idx)), self._seed + steps)
        return True

    def read_elsewhere(self, units: Sequence[Units]) -> list[str]:
        """Layers whose units something reads that torch cannot follow, in the batch of the latest search."""
        with Section():  # weights are changed meanwhile
            layers = read_elsewhere(self._module, units, self._run, self._in_any_process)
        self._batch = ()  # whose memory is not to be kept for a whole task
        return layers

    def end(self) -> None:
        """Waits for no more layers."""
        self._late.detach()

    def _look(self, batch: Any, batch_idx: int, number: int) -> None:
        self._batch, self._number, self._late_batch = (batch, batch_idx), number, None
        own = find_units(self._module, self._run)
        each = [Found(*found) for found in _of_all_processes(self._trainer, own)]
        self.found = together([self.found, *each])
        for name in self._late.wait_for_others(self.found.layers | self._known):
            rank_zero_warn(
                f"Renewal: {name} runs now and then, and not when units are looked for. If it reads units "
                f"that are replaced, its weights do not follow."
            )

    def _run(self) -> Any:
        with quiet_step(self._trainer, self._module, self._number), torch.no_grad(), eagerly():
            loss = training_loss(self._trainer, self._module, *self._batch)
        reshard(self._module)  # or the next run would use weights that were gathered for this one
        return loss

    def _in_any_process(self, found: bool) -> bool:
        return self._trainer.strategy.reduce_boolean_decision(found, all=False)


def _of_all_processes(trainer: Trainer, own: Any) -> list[Any]:
    if trainer.world_size == 1:
        return [own]
    found: list[Any] = [None] * trainer.world_size
    dist.all_gather_object(found, own)
    return found


def together(searches: Iterable[Found]) -> Found:
    """What several searches have found that have each run a part of the network, such as one of its heads.

    Units that have a layer in common are the same. What one search leaves out is left out.

    Example:
        >>> one = Units("a", 2, ("a.weight",), (), ("b.weight",))
        >>> other = Units("a", 2, ("a.weight", "c.weight"), (), ("d.weight",))
        >>> both = together([Found([one], {"b": "read by sum"}), Found([other], {"d": "read by sum"})])
        >>> both.units[0].incoming, both.units[0].outgoing
        (('a.weight', 'c.weight'), ('b.weight', 'd.weight'))
    """
    all_found = list(searches)
    groups: list[list[Units]] = []
    for units in (each for found in all_found for each in found.units):
        same = [group for group in groups if any({*units.layers} & {*each.layers} for each in group)]
        groups = [group for group in groups if group not in same[1:]]
        if same:
            same[0] += [*(each for group in same[1:] for each in group), units]
        else:
            groups.append([units])
    joined = [_joined(group) for group in groups]
    readers = Counter(reader for units in joined for reader in units.outgoing)
    reasons = [(layer, why) for found in all_found for layer, why in found.left_out.items()]
    left_out = {layer: why for layer, why in reasons if why != UNREAD}
    kept = []
    for units, group in zip(joined, groups, strict=True):
        shared = [reader for reader in units.outgoing if readers[reader] > 1]
        sizes = {(each.number, each.rows, each.columns) for each in group}
        why = next((left_out[layer] for layer in units.layers if layer in left_out), "")
        why = why or (f"{shared[0]} reads others too" if shared else "")
        why = why or ("read as channels and as numbers" if len(sizes) > 1 else "")
        if why:
            left_out.update(dict.fromkeys(units.layers, why))
        else:
            kept.append(units)
    known = {layer for units in joined for layer in units.layers}
    return Found(kept, {layer: why for layer, why in reasons if layer not in known} | left_out)


def _joined(group: Sequence[Units]) -> Units:
    """One description of units that several searches have found."""
    incoming, norms, outgoing = (
        tuple(dict.fromkeys(name for units in group for name in getattr(units, which)))
        for which in ("incoming", "norms", "outgoing")
    )
    first = group[0]
    return Units(first.layer, first.number, incoming, norms, outgoing, first.rows, first.columns)
