"""One remembered sample, and many of them as few tensors in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cl_callbacks.tensors.rows import Row, row_bytes


@dataclass(eq=False)
class Sample:
    """A sample that is kept.

    Attributes:
        number: its number in the stream of all processes.
        key: those with the smallest are kept.
        group: among which it is kept.
        task: in which it was seen.
        values: its row at each leaf of its batch, on the CPU, and what was added beside it.
    """

    number: int
    key: float
    group: int
    task: int
    values: Row

    def __post_init__(self) -> None:
        self.bytes = row_bytes(self.values)

    @property
    def is_lost(self) -> bool:
        """Whether there is NaN in the sample."""
        tensors = (v for v in self.values if isinstance(v, Tensor) and v.is_floating_point())
        return any(bool(tensor.isnan().any()) for tensor in tensors)


def pack_samples(samples: Iterable[Sample]) -> list[dict[str, Any]]:
    """Stacks samples of one shape, so that a checkpoint holds a few tensors and no objects.

    Example:
        >>> sample = Sample(7, 0.5, 0, 0, [torch.zeros(3), "text"])
        >>> pack_samples([sample])[0]["values"]
        [tensor([[0., 0., 0.]]), ['text']]
    """
    alike: dict[Any, list[Sample]] = {}
    for sample in samples:
        alike.setdefault(tuple(map(_form, sample.values)), []).append(sample)
    return [
        {
            "numbers": torch.tensor([s.number for s in group]),
            "keys": torch.tensor([s.key for s in group], dtype=torch.float64),
            "groups": torch.tensor([s.group for s in group]),
            "tasks": torch.tensor([s.task for s in group]),
            "values": [_stacked([s.values[i] for s in group]) for i in range(len(group[0].values))],
        }
        for group in alike.values()
    ]


def unpack_samples(packed: Iterable[dict[str, Any]]) -> Iterator[Sample]:
    """The samples that :func:`pack_samples` has stacked, each with memory of its own."""
    for group in packed:
        numbers, keys, groups, tasks = (group[n].tolist() for n in ("numbers", "keys", "groups", "tasks"))
        for i, marks in enumerate(zip(numbers, keys, groups, tasks, strict=True)):
            values = (column[i] for column in group["values"])
            yield Sample(*marks, [v.clone() if isinstance(v, Tensor) else v for v in values])


def _form(value: Any) -> Any:
    return (value.dtype, value.shape) if isinstance(value, Tensor) else None


def _stacked(values: list[Any]) -> Any:
    return torch.stack(values) if isinstance(values[0], Tensor) else values
