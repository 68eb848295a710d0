"""The network as it was some steps ago, for a task whose end is noticed late."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from cl_callbacks.synapses.state import known_rows
from cl_callbacks.tensors.batches import map_tensors
from cl_callbacks.tensors.shards import distribute_like, full_tensor, reshard


@runtime_checkable
class Rewindable(Protocol):
    """A callback that gathers something during a task, and can be taken back to a snapshot of it."""

    @property
    def state_key(self) -> str:
        """What tells it from others."""

    def snapshot(self) -> dict[str, Any]:
        """Copies of what it has gathered."""

    def rewound(self, snapshot: dict[str, Any]) -> AbstractContextManager[None]:
        """Within, it is as it was; afterwards it goes on with what it has gathered since."""


class Snapshots:
    """At most two snapshots: the last from before a change may have begun, and the latest.

    Each holds the trainable weights and the buffers (such as BatchNorm's statistics), beside those in use,
    and what each :class:`Rewindable` callback has gathered.
    """

    def __init__(self) -> None:
        self._kept: list[dict[str, Any]] = []

    @property
    def latest(self) -> int:
        """How many batches had been trained on at the latest; -1 if there is none."""
        return self._kept[-1]["batches"] if self._kept else -1

    def take(self, trainer: Trainer, pl_module: LightningModule, batches: int) -> None:
        """Takes one.

        Args:
            trainer: that is training.
            pl_module: its module.
            batches: how many it has been trained on.
        """
        reshard(pl_module)
        trainable = {name: p for name, p in pl_module.named_parameters() if p.requires_grad}
        changing = trainable | dict(pl_module.named_buffers())
        network = {name: t.detach().clone() for name, t in changing.items()}
        gathered = {rule.state_key: rule.snapshot() for rule in _rewindable(trainer)}
        self._kept.append({"batches": batches, "network": network, "gathered": gathered})

    def prune(self, onset: int) -> None:
        """Lets go of those that a change that began with batch ``onset``, or later, has no use for."""
        while len(self._kept) > 1 and self._kept[1]["batches"] <= onset:
            del self._kept[0]
        del self._kept[1:-1]

    @contextmanager
    def rewound(self, trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
        """Within, network and callbacks are as in the older snapshot; afterwards as they were before.

        Also after an exception. What the callbacks do within is kept.
        """
        reshard(pl_module)
        then = self._kept[0]
        # Frozen since, or not: all that is known.
        live = _known(dict(pl_module.named_parameters()) | dict(pl_module.named_buffers()), then["network"])
        now = {name: t.clone() for name, t in live.items()}
        with ExitStack() as stack:
            stack.callback(_copy, live, now)
            _copy(live, then["network"])
            for rule in _rewindable(trainer):
                if rule.state_key in then["gathered"]:
                    stack.enter_context(rule.rewound(then["gathered"][rule.state_key]))
            yield

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers only; what is sharded is put together, for which all processes have to ask."""
        return {"kept": [map_tensors(full_tensor, kept) for kept in self._kept]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with these."""
        self._kept = list(state_dict["kept"])


def _rewindable(trainer: Trainer) -> list[Rewindable]:
    return [c for c in trainer.callbacks if isinstance(c, Rewindable)]  # type: ignore[attr-defined]


def _known(live: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parts that a snapshot is of; heads may have grown since."""
    parts = {name: known_rows(live[name].detach(), t) for name, t in values.items() if name in live}
    return {name: part for name, part in parts.items() if part is not None}


def _copy(live: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, tensor in live.items():
        tensor.copy_(distribute_like(values[name], tensor))
