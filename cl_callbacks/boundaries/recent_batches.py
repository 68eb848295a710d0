"""The last samples of a stream, for rules that measure when their task is found to be over."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from cl_callbacks.tensors.batches import (
    count_samples,
    flat_tensors,
    is_plain,
    map_tensors,
    plain_containers,
    take_samples,
)


class _Kept(NamedTuple):
    number: int  # of the batch in the stream
    samples: int
    size: int  # in bytes
    batch: Any


class RecentBatches:
    """The most recent batches that together hold so many samples.

    Where a change may have begun before it is found, an ``onset`` parts them: so many samples are kept on
    either side, and only those before it are served.

    Args:
        samples: how many samples to keep at least, once that many were seen.
        max_bytes: of all that is kept; what does not fit is let go, the oldest first, and of a single
            batch the last samples.
        device: to keep them on; default: where they are.

    Attributes:
        seen: how many batches were taken in: the number of the next.
        onset: number of the first batch that is not served; ``None`` to serve all.

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
        """Lets all batches go."""
        self.onset: int | None = None
        self._kept: list[_Kept] = []

    def append(self, batch: Any, number: int | None = None) -> None:
        """Takes a copy of a batch in (training may work on it in place), and lets go what is too old.

        Args:
            batch: one whose samples cannot be counted counts as one.
            number: of the batch in the stream; default: the next.
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
        """How many samples like those kept there is room for, on either side of an onset."""
        size = max((kept.size / kept.samples for kept in self._kept), default=0.0)
        return int(min(self.samples, self.max_bytes / 2 / size)) if size else self.samples

    def divide(self, onset: int | None) -> None:
        """Serves from now on what came before ``onset``."""
        self.onset = onset
        self._trim()

    def forget_before(self, onset: int) -> None:
        """Lets go what came before ``onset``, and serves what came since."""
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

        Batches of other types (dataclasses, named tuples, objects of your own), which a checkpoint could not
        give back, are left out and said.
        """
        savable = [k for k in self._kept if is_plain(k.batch)]
        if len(savable) < len(self._kept):
            rank_zero_warn(
                "recent batches hold values of types that no checkpoint can give back, so they are not in "
                "it, and after a resume rules measure on what comes then. Use dicts, lists, tuples, tensors."
            )
        kept = [[k.number, k.samples, k.size, plain_containers(k.batch)] for k in savable]
        return {"kept": kept, "seen": self.seen, "onset": self.onset}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where the state was taken."""
        self._kept = [_Kept(*kept) for kept in state_dict["kept"]]
        self.seen, self.onset = state_dict["seen"], state_dict["onset"]


def _bytes(batch: Any) -> int:
    tensors: list[Tensor] = flat_tensors(batch)
    return sum(t.numel() * t.element_size() for t in tensors)
