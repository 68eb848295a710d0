"""The most recent samples of a stream, for rules that measure on data at the end of a task."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from cl_callbacks.guards.once import first_time
from cl_callbacks.tensors.batches import (
    count_samples,
    flat_tensors,
    is_plain,
    map_tensors,
    plain_containers,
    take_samples,
)


class _Kept(NamedTuple):
    number: int  # index of the batch in the stream
    samples: int
    size: int  # in bytes
    batch: Any


class RecentBatches:
    """A buffer of the most recent batches that together hold at least ``samples`` samples.

    Where a change may have begun before it is found, an ``onset`` divides them: ``samples`` samples are kept
    on either side, and iteration yields only those before it.

    Args:
        samples: minimum number of samples to keep, once that many were seen.
        max_bytes: memory limit; beyond it the oldest batches are dropped, and the last samples of a single
            batch.
        device: device to keep them on; default: the one they are on.

    Attributes:
        seen: number of batches appended so far, which is the index of the next.
        onset: index of the first batch that iteration leaves out; ``None`` for none.

    Example:
        >>> import torch
        >>> recent = RecentBatches(samples=2)
        >>> for i in range(6):
        ...     recent.append(torch.tensor([i]))
        >>> list(recent)
        [tensor([4]), tensor([5])]
        >>> recent.divide(onset=5); recent.append(torch.tensor([6])); list(recent)
        [tensor([4])]
    """

    def __init__(self, samples: int, max_bytes: float = math.inf, device: str | None = None) -> None:
        self.samples, self.max_bytes, self.device = samples, max_bytes, device
        self.seen = 0
        self.clear()

    def clear(self) -> None:
        """Drops all batches."""
        self.onset: int | None = None
        self._kept: list[_Kept] = []

    def append(self, batch: Any, number: int | None = None) -> None:
        """Adds a copy of a batch (training may modify it in place), and drops what is too old.

        If its samples cannot be counted, it counts as one. Its number in the stream is by default ``seen``.
        """
        samples, size = max(1, count_samples(batch)), _bytes(batch)
        if size > self.max_bytes / 2:
            samples = max(1, int(samples * self.max_bytes / 2 / size))
            batch = take_samples(batch, slice(0, samples))
            size = _bytes(batch)
        copied = map_tensors(lambda t: t.to(self.device or t.device, non_blocking=True, copy=True), batch)
        self.seen = self.seen if number is None else number
        self._kept.append(_Kept(self.seen, samples, size, copied))
        self.seen += 1
        self._trim()

    @property
    def capacity(self) -> int:
        """Number of samples like those kept that fit into memory on either side of an onset."""
        size = max((kept.size / kept.samples for kept in self._kept), default=0.0)
        return int(min(self.samples, self.max_bytes / 2 / size)) if size else self.samples

    def divide(self, onset: int | None) -> None:
        """Makes iteration yield only the batches before ``onset``."""
        self.onset = onset
        self._trim()

    def forget_before(self, onset: int) -> None:
        """Drops the batches before ``onset``, and makes iteration yield all that came since."""
        self._kept = [kept for kept in self._kept if kept.number >= onset]
        self.onset = None

    def __iter__(self) -> Iterator[Any]:
        return (kept.batch for kept in self._parts()[0])

    def _parts(self) -> tuple[list[_Kept], list[_Kept]]:
        onset = self.seen if self.onset is None else self.onset
        return [k for k in self._kept if k.number < onset], [k for k in self._kept if k.number >= onset]

    def _trim(self) -> None:
        self._kept = [kept for part in self._parts() for kept in self._newest(part)]

    def _newest(self, part: Sequence[_Kept]) -> Sequence[_Kept]:
        samples, size = 0, 0
        for i in range(len(part) - 1, -1, -1):
            size += part[i].size
            if samples >= self.samples or (samples and size > self.max_bytes / 2):
                return part[i + 1 :]
            samples += part[i].samples
        return part

    def state_dict(self) -> dict[str, Any]:
        """Batches in plain containers, and numbers.

        Batches of other types (dataclasses, named tuples, custom objects), which a checkpoint could not
        restore, are left out with a warning.
        """
        savable = [k for k in self._kept if is_plain(k.batch)]
        if len(savable) < len(self._kept) and first_time(self, "types that are not saved"):
            rank_zero_warn(
                "recent batches hold values of types that no checkpoint can give back, so they are not in "
                "it, and after a resume rules measure on what comes then. Use dicts, lists, tuples, tensors."
            )
        kept = [[k.number, k.samples, k.size, plain_containers(k.batch)] for k in savable]
        return {"kept": kept, "seen": self.seen, "onset": self.onset}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state that :meth:`state_dict` returned."""
        self._kept = [_Kept(*kept) for kept in state_dict["kept"]]
        self.seen, self.onset = state_dict["seen"], state_dict["onset"]


def _bytes(batch: Any) -> int:
    tensors: list[Tensor] = flat_tensors(batch)
    return sum(t.numel() * t.element_size() for t in tensors)
