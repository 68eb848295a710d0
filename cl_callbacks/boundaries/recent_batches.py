"""The most recent samples of a stream, for rules that measure on data at the end of a task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from cl_callbacks.guards.once import first_time
from cl_callbacks.tensors.batches import count_samples, take_samples
from cl_callbacks.tensors.containers import copied, is_plain, nodes, plain_containers
from cl_callbacks.tensors.shards import group_of
from cl_callbacks.training.model_outputs import OutputsOfBatch, ReadsOutputs
from cl_callbacks.training.quiet import quiet
from cl_callbacks.training.sample_count import SampleCount, agreed_samples
from cl_callbacks.training.task_batches import readers_of


class _Kept(NamedTuple):
    number: int  # index of the batch in the stream
    samples: int
    size: int  # in bytes
    batch: Any


class RecentBatches:
    """A buffer of the most recent batches that together hold at least ``samples`` samples.

    Where a change may have begun before it is found, an ``onset`` divides them: ``samples`` samples are kept
    on either side, and iteration yields only those before it.

    Batches may be of any type that can be copied. They are not even looked at if nobody in a Trainer reads
    them: see :meth:`keep_for`.

    Args:
        samples: minimum number of samples to keep, once that many were seen.
        max_bytes: memory limit; beyond it the oldest batches are dropped, and the last samples of a single
            batch.
        device: device to keep them on; default: the one they are on.

    Attributes:
        seen: number of batches appended so far, which is the index of the next.
        onset: index of the first batch that iteration leaves out; ``None`` for none.
        wanted: whether anybody reads the batches.

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
        self.seen, self.wanted = 0, True
        self._count: Callable[[Any], int] = count_samples
        self._copying: set[torch.device] = set()  # devices whose copies may still be under way
        self.clear()

    def keep_for(self, trainer: Trainer, pl_module: LightningModule, boundaries: Any) -> None:
        """Finds out whether anybody reads the batches of these boundaries, and how to count their samples."""
        readers = [reader for reader in readers_of(trainer) if reader is not boundaries]
        self.wanted = bool(readers)
        rule = next((reader for reader in readers if isinstance(reader, ReadsOutputs)), None)
        if rule is not None and group_of(pl_module.parameters()) is None:  # shards need all processes
            self._count = SampleCount(partial(_rows, trainer, pl_module, rule))

    def __getstate__(self) -> dict[str, Any]:
        """All but how to count, which refers to the Trainer: copies and other processes find it out anew."""
        self._arrive()
        return vars(self) | {"_count": count_samples}

    def clear(self) -> None:
        """Drops all batches."""
        self.onset: int | None = None
        self._kept: list[_Kept] = []

    def append(self, batch: Any, number: int | None = None) -> None:
        """Adds a copy of a batch (training may modify it in place), and drops what is too old.

        If its samples cannot be counted, it counts as one. Its number in the stream is by default ``seen``.

        Raises:
            TypeError: a batch that cannot be copied.
        """
        self.seen = self.seen if number is None else number
        if self._kept and self._kept[-1].number == number:  # a batch that a resumed training runs again
            self._kept.pop()
        if self.wanted:
            samples, size = max(1, self._count(batch)), _bytes(batch)
            if size > self.max_bytes / 2 and agreed_samples(batch) == samples:
                samples = max(1, int(samples * self.max_bytes / 2 / size))
                batch = take_samples(batch, slice(0, samples))
                size = _bytes(batch)
            elif size > self.max_bytes / 2 and not self._kept:
                rank_zero_warn(
                    f"A batch of {size / 2**20:.3g} MiB is more than half of what recent batches may take, "
                    f"and is kept whole, since samples cannot be cut out of a {type(batch).__name__}: raise "
                    f"recent_bytes, or use smaller batches."
                )
            self._kept.append(_Kept(self.seen, samples, size, self._copied(batch)))
        self.seen += 1
        self._trim()

    def _copied(self, batch: Any) -> Any:
        if self.device is not None:
            self._copying |= {t.device for t in _tensors(batch)} - {torch.device("cpu")}
        try:
            return copied(batch, self.device)
        except TypeError as error:
            raise TypeError(
                f"The most recent batches are kept for callbacks that read data when a task ends, and "
                f"{error}: let the batch consist of tensors, lists and dicts. If none of your callbacks "
                f"reads data, set `reads_task_data = False` on those that have `on_task_end`."
            ) from error

    def _arrive(self) -> None:
        """Waits for copies from a device to the CPU, before the host reads them."""
        for device in self._copying:
            torch.accelerator.synchronize(device)
        self._copying.clear()

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
        if not self.wanted:
            raise RuntimeError(
                "The most recent batches were not kept, since none of the Trainer's callbacks said that it "
                "reads them: set `reads_task_data = True` on the class of the one that does."
            )
        self._arrive()
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
        self._arrive()
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


def _rows(trainer: Trainer, pl_module: LightningModule, rule: OutputsOfBatch, batch: Any) -> int:
    with quiet(trainer, pl_module), torch.no_grad():
        return len(rule.read_batch(pl_module, batch)[0])


def _bytes(batch: Any) -> int:
    return sum(t.numel() * t.element_size() for t in _tensors(batch))


def _tensors(batch: Any) -> list[Tensor]:
    return [node for _, node in nodes(batch) if isinstance(node, Tensor)]
