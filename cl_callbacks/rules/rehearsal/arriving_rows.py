"""Rows of a batch on their way to the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, unpack_sequence

from cl_callbacks.rules.rehearsal.saved_samples import Sample
from cl_callbacks.tensors.rows import BatchRows


class ArrivingRows:
    """Copies of some rows of a batch, which nobody waits for until they are read.

    Args:
        numbers: of the samples, in the stream.
        keys: of the samples, with a weight of 1.
        seen: number of all samples of the batch.
    """

    def __init__(self, numbers: Sequence[int], keys: Sequence[float], seen: int) -> None:
        self.numbers, self.keys, self.seen = list(numbers), list(keys), seen
        self._columns: list[Any] = []
        self._groups: Sequence[int] | Tensor | None = None
        self._weights: Tensor | None = None
        self._copied: list[torch.Event] = []  # one for each device that copies come from

    @classmethod
    def of(cls, seen: int, samples: Sequence[Sample]) -> ArrivingRows:
        """Rows that a checkpoint holds as samples."""
        rows = cls([s.number for s in samples], [s.key for s in samples], seen)
        rows._columns = [list(column) for column in zip(*(s.values for s in samples), strict=True)]
        rows._groups = [s.group for s in samples]
        return rows

    def copy(
        self,
        rows: BatchRows,
        which: list[int],
        groups: Sequence[int] | Tensor | None = None,
        weights: Tensor | None = None,
        extra: Tensor | None = None,
    ) -> None:
        """Begins to copy rows with what belongs to them, each aligned with all rows of the batch."""
        self._columns = [_column(leaf, which) for leaf in rows.leaves]
        if extra is not None:
            self._columns.append(_on_cpu(extra.detach(), which))
        if weights is not None:
            self._weights = _on_cpu(weights.detach(), which)
        if isinstance(groups, Tensor):
            self._groups = _on_cpu(groups, which)
        elif groups is not None:
            self._groups = [groups[i] for i in which]
        sources = [t.device for t in (*rows.leaves, groups, weights, extra) if isinstance(t, Tensor)]
        for device in {device for device in sources if device.type != "cpu"}:
            event = torch.Event(device)
            event.record(torch.accelerator.current_stream(device))
            self._copied.append(event)

    def samples(self, task: int) -> Iterator[Sample]:
        """The copies as samples of a task, which is their group if none was given; waits for them."""
        for event in self._copied:
            event.synchronize()
        weights = [1.0] * len(self.numbers) if self._weights is None else self._weights.double().tolist()
        groups = self._groups.tolist() if isinstance(self._groups, Tensor) else self._groups
        for i, (number, key) in enumerate(zip(self.numbers, self.keys, strict=True)):
            values = [_entry(column, i) for column in self._columns]
            weighted = key / weights[i] if weights[i] > 0 else float("inf")
            yield Sample(number, weighted, task if groups is None else groups[i], task, values)


def _column(leaf: Any, which: list[int]) -> Sequence[Any] | Tensor:
    """What some rows have at a leaf, on the CPU or on its way there."""
    if isinstance(leaf, Tensor) and leaf.ndim:
        return _on_cpu(leaf.detach(), which)
    if isinstance(leaf, PackedSequence):
        sequences = unpack_sequence(leaf.cpu())
        return [sequences[i] for i in which]
    if isinstance(leaf, list):
        return [_copied(leaf[i]) for i in which]
    return [_copied(leaf)] * len(which)


def _copied(value: Any) -> Any:
    own = isinstance(value, Tensor)
    return value.detach().to("cpu", copy=True, non_blocking=True) if own else value


def _on_cpu(tensor: Tensor, which: list[int]) -> Tensor:
    """Rows of a tensor; stacked, because an index would have to be copied to the device."""
    return torch.stack([tensor[i] for i in which]).to("cpu", non_blocking=True)


def _entry(column: Sequence[Any] | Tensor, index: int) -> Any:
    """A copy, since a view would keep the rows of the whole batch alive."""
    value = column[index]
    return value.clone() if isinstance(value, Tensor) else value
