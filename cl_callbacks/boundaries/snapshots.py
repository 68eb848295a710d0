"""Snapshots of the network some steps ago, for a task whose end is found late."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from cl_callbacks.guards.uninterrupted import uninterrupted
from cl_callbacks.synapses.state import known_rows
from cl_callbacks.tensors.containers import map_tensors
from cl_callbacks.tensors.shards import distribute_like, full_tensor, held, reshard


@runtime_checkable
class Rewindable(Protocol):
    """Protocol of a callback that accumulates something during a task and can be set back to a snapshot."""

    @property
    def state_key(self) -> str:
        """Key that identifies the callback, as in Lightning's ``Callback.state_key``."""

    def snapshot(self) -> dict[str, Any]:
        """Copies of what the callback has accumulated."""

    def rewound(self, snapshot: dict[str, Any]) -> AbstractContextManager[None]:
        """Context in which the callback has the snapshot's state; on exit, what came since is added to it."""


class Snapshots:
    """At most two snapshots: the latest, and the latest from before a possible change.

    Each holds copies of the trainable weights and the buffers (such as BatchNorm's statistics), and what each
    :class:`Rewindable` callback has accumulated.
    """

    def __init__(self) -> None:
        self._kept: list[dict[str, Any]] = []

    @property
    def latest(self) -> int:
        """Number of batches trained on when the latest snapshot was taken; -1 if there is none."""
        return self._kept[-1]["batches"] if self._kept else -1

    def take(self, trainer: Trainer, pl_module: LightningModule, batches: int) -> None:
        """Takes a snapshot of the module, which has been trained on that many batches."""
        reshard(pl_module)
        trainable = {name: p for name, p in pl_module.named_parameters() if p.requires_grad}
        changing = trainable | dict(pl_module.named_buffers())
        network = {name: t.detach().clone() for name, t in changing.items()}
        gathered = {rule.state_key: rule.snapshot() for rule in _rewindable(trainer)}
        self._kept.append({"batches": batches, "network": network, "gathered": gathered})

    def prune(self, onset: int) -> None:
        """Drops the snapshots that are not needed if a change began with batch ``onset`` or later."""
        while len(self._kept) > 1 and self._kept[1]["batches"] <= onset:
            del self._kept[0]
        del self._kept[1:-1]

    @contextmanager
    def rewound(self, trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
        """Context in which network and callbacks have the state of the older snapshot.

        On exit, also after an exception, the present state returns. What the callbacks consolidate is kept,
        and by as much as they have moved weights, the present ones move too; statistics stay.
        """
        reshard(pl_module)
        then = self._kept[0]
        # All parameters in the snapshot, also those that have been frozen since.
        live = _known(dict(pl_module.named_parameters()) | dict(pl_module.named_buffers()), then["network"])
        now = {name: t.clone() for name, t in live.items()}
        stack = ExitStack()
        try:
            stack.callback(_copy, live, now)
            _copy(live, then["network"])
            weights = {name: live[name] for name, _ in pl_module.named_parameters() if name in live}
            stack.callback(_add_moves, weights, then["network"], now)
            for rule in _rewindable(trainer):
                if rule.state_key in then["gathered"]:
                    stack.enter_context(rule.rewound(then["gathered"][rule.state_key]))
            yield
        finally:
            with uninterrupted():  # or an interrupt could leave a part of the earlier weights
                stack.close()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers only. A collective if parameters are sharded, since shards are gathered."""
        return {"kept": [map_tensors(full_tensor, kept) for kept in self._kept]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state that :meth:`state_dict` returned."""
        self._kept = list(state_dict["kept"])


def _rewindable(trainer: Trainer) -> list[Rewindable]:
    return [c for c in trainer.callbacks if isinstance(c, Rewindable)]  # type: ignore[attr-defined]


def _known(live: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of each live tensor that the snapshot holds; heads may have grown since."""
    parts = {name: known_rows(live[name].detach(), t) for name, t in values.items() if name in live}
    return {name: part for name, part in parts.items() if part is not None}


def _copy(live: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, tensor in live.items():
        tensor.copy_(distribute_like(values[name], tensor))


def _add_moves(live: Mapping[str, Tensor], then: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> None:
    """Adds to the present values by how much the live ones were moved from those that they were set to."""
    for name, tensor in live.items():
        before, after, present = (held(t) for t in (distribute_like(then[name], tensor), tensor, now[name]))
        move = after - before  # of weights that are not finite there is none
        present.copy_(torch.where(move.isfinite() & (move != 0), present + move, present))
