"""A view of some synapses of a network: names, weights and fields in aligned lists."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor
from torch.optim import Optimizer

from cl_callbacks.synapses.offload import Offload
from cl_callbacks.tensors.blocks import ALL, Rows, in_blocks, rows_of
from cl_callbacks.tensors.shards import extremes, greatest, group_of, held, total


@dataclass(frozen=True)
class SynapseView:
    """Some synapses as aligned lists: their names, live parameters and fields.

    ``parameters`` are the tensors to compute with, and ``view["importance"]`` a field beside them, to be
    read and changed in place; ``view.fields`` is where it is stored, which ``state_device`` may have put on
    another device. ``sources`` are the parameters of module and optimizer, to be used as keys. They differ
    from ``parameters`` where a process holds a shard, or the view only some ``rows``. In a step the view also
    knows the ``optimizer``, and the index of the optimizer's parameter group of each synapse.
    """

    names: list[str]
    fields: dict[str, list[Tensor]]
    sources: list[Tensor]
    rows: list[Rows]
    offload: Offload | None = None
    optimizer: Optimizer | None = None
    groups: list[int] = field(default_factory=list)

    def __getitem__(self, field: str) -> list[Tensor]:
        return self.load(self.fields[field], self.parameters)

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def parameters(self) -> list[Tensor]:
        """The current weights, read anew each time, since an optimizer may replace ``p.data``."""
        return [rows_of(held(p), rows) for p, rows in zip(self.sources, self.rows, strict=True)]

    def restrict_to(self, part: Mapping[Tensor, Rows] | Iterable[Tensor]) -> SynapseView:
        """The synapses of this view that are in ``part``, in this view's order.

        Args:
            part: sources, or rows by source. If the view already has only some rows of a source, these must
                be the same rows, or all.
        """
        part = part if isinstance(part, Mapping) else dict.fromkeys(part, ALL)
        keep = sorted(self._places[p] for p in part if p in self._places)
        rows = [_rows_within(self.rows[i], part[self.sources[i]]) for i in keep]

        def cut(tensors: list[Tensor]) -> list[Tensor]:
            pairs = zip(keep, rows, strict=True)
            return [tensors[i] if some == self.rows[i] else rows_of(tensors[i], some) for i, some in pairs]

        return SynapseView(
            [self.names[i] for i in keep],
            {field: cut(tensors) for field, tensors in self.fields.items()},
            [self.sources[i] for i in keep],
            rows,
            self.offload,
            self.optimizer,
            [self.groups[i] for i in keep] if self.groups else [],
        )

    def stepped_by(self, optimizer: Optimizer, group_of: Mapping[Tensor, int]) -> SynapseView:
        """The same view in a step of an optimizer, given the index of each source's parameter group."""
        return replace(self, optimizer=optimizer, groups=[group_of[p] for p in self.sources])

    def option(self, name: str, default: float = math.nan) -> list[float]:
        """Values of an optimizer option, such as ``"lr"``, one per tensor: those of its parameter group.

        Raises:
            LookupError: outside a step.
        """
        if self.optimizer is None:
            raise LookupError(f"no optimizer steps these synapses now, so they have no {name!r}")
        values = [float(group.get(name, default)) for group in self.optimizer.param_groups]
        return [values[group] for group in self.groups]

    def blocks(self) -> Iterator[SynapseView]:
        """The view in parts, one after the other, each small enough for the cache."""
        if all(rows == ALL for rows in self.rows):
            elements = None if self.offload is None else self.offload.block_elements(self.sources)
            yield from (self.restrict_to(part) for part in in_blocks(self.sources, elements))
        else:
            yield self

    @cached_property
    def _places(self) -> dict[Tensor, int]:
        return {p: i for i, p in enumerate(self.sources)}

    @property
    def part(self) -> dict[Tensor, Rows]:
        """Rows of the view, by source."""
        return dict(zip(self.sources, self.rows, strict=True))

    def load(self, kept: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
        """Loads stored state to its parameters' devices; without offloading, the same tensors."""
        return kept if self.offload is None else self.offload.load(kept, parameters)

    def load_once(self, tensors: Iterable[Tensor], parameter: Tensor) -> list[Tensor]:
        """Loads tensors kept by :meth:`store` to their parameter's device, for reading only."""
        offload = self.offload
        return list(tensors) if offload is None else [offload.load_once(t, parameter) for t in tensors]

    def store(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        """Moves a tensor that a rule keeps beside its fields to the storage device of a parameter's state."""
        return tensor.to(parameter.device) if self.offload is None else self.offload.store(tensor, parameter)

    def total(self, value: Tensor) -> Tensor:
        """Sum over the synapses of all processes, given the sum over this process's shards."""
        return total(value, group_of(self.sources))

    def extremes(self, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Least and greatest value over the synapses of all processes, given this process's shards."""
        return extremes(tensors, group_of(self.sources))

    def greatest(self, tensors: Sequence[Tensor]) -> Tensor:
        """Greatest value over the synapses of all processes, given this process's shards; a scalar."""
        return greatest(tensors, group_of(self.sources))


def _rows_within(own: Rows, wanted: Rows) -> Rows:
    if wanted in (ALL, own):
        return own
    if own != ALL:
        raise ValueError("This view has a part of its parameters' rows already, and that part has none.")
    return wanted
