"""A memory of samples of a stream, bounded in number and in bytes."""

from __future__ import annotations

import copy
import math
from bisect import insort
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cl_callbacks.functional.reservoir import fullest, reservoir_keys
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import AT_LEAST_ONE, ENDLESS, NON_NEGATIVE
from cl_callbacks.rules.rehearsal.arriving_rows import ArrivingRows
from cl_callbacks.rules.rehearsal.saved_samples import Sample, pack_samples, unpack_samples
from cl_callbacks.rules.rule_options import Select
from cl_callbacks.tensors.random_numbers import uniform_numbers
from cl_callbacks.tensors.rows import BatchRows, alike, join_rows, pad_rows, read_rows

_DRAWS = 1
"""Stream of random numbers of :meth:`SampleMemory.draw`; 0 is that of the keys."""


@dataclass
class Drawn:
    """Remembered samples that fit into one batch.

    Attributes:
        batch: on the CPU, of the structure of the batches that were added.
        share: of these samples in all that were drawn.
        extra: what was added with them, one row each; ``None`` if nothing was.
    """

    batch: Any
    share: float
    extra: Tensor | None = None


class SampleMemory:
    r"""Keeps samples of a stream of batches on the CPU, at most so many and so many bytes.

    Every sample gets a random key from the seed and its running number, and the samples with the smallest
    keys are kept (:func:`~cl_callbacks.functional.reservoir_keys`). So which samples are kept
    depends on nothing else: not on batch sizes, global random numbers or interruptions, and the memories of
    several processes merge to that of their joint stream. A sample costs a comparison, and in a reservoir
    only those that enter are copied. Samples with NaN, or larger than ``max_bytes``, do not enter.

    ===============  ============================================================================
    ``select``       what is kept
    ===============  ============================================================================
    ``"reservoir"``  each sample of the stream with the same probability
    ``"balanced"``   as many samples of each group as of any other, as far as there are so many;
                     within a group each with the same probability
    ``"loss"``       samples in proportion to the weights with which they are added
    ===============  ============================================================================

    Samples whose batches have another shape, such as texts of other lengths, are drawn as several batches,
    except that what has an ``attention_mask`` is padded.

    Sources: Vitter 1985, reservoir sampling; Chaudhry et al. 2019 (arXiv 1902.10486).

    Args:
        memory: number of samples to keep, from 1.
        max_bytes: bytes that they may take; beyond them fewer samples are kept.
        select: which, as above.
        seed: of the keys and draws.
        rank: of this process among those whose streams are remembered together.
        processes: how many these are.

    Attributes:
        count: number of samples of this process's stream so far.
        task: number of the present task, with which samples are marked.

    Raises:
        ValueError: an argument that cannot work, or a batch whose rows cannot be told.

    Example:
        >>> memory = SampleMemory(2)
        >>> for start in range(0, 100, 4):
        ...     memory.add((torch.arange(start, start + 4), ["a"] * 4))
        >>> len(memory), memory.bytes
        (2, 18)
        >>> memory.draw(2)[0].batch[0].shape
        torch.Size([2])
    """

    @checked(
        memory=AT_LEAST_ONE,
        max_bytes=ENDLESS,
        seed=NON_NEGATIVE,
        rank=NON_NEGATIVE,
        processes=AT_LEAST_ONE,
    )
    def __init__(
        self,
        memory: int,
        max_bytes: float = 2**28,
        select: Select = "reservoir",
        seed: int = 0,
        *,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.memory, self.max_bytes = memory, max_bytes
        self.select, self.seed = select, seed
        self.rank, self.processes = rank, processes
        self.count = self.task = self._bytes = self._size = 0
        self._by_task = False  # whether groups are tasks
        self._like: BatchRows | None = None  # containers of the latest batch
        self._structure: tuple[str, ...] = ()
        self._groups: dict[int, list[Sample]] = {}  # each in the order of the keys
        self._limits: dict[int, float] = {}  # by group: a sample with a key from this on is not kept
        self._waiting: list[ArrivingRows] = []
        self._accepted: list[ArrivingRows] = []  # of the latest step, which nobody has asked for yet
        self._before_batch: int | None = None  # offers that wait, while a batch is not over

    def __len__(self) -> int:
        self._settle()
        return self._size

    def __iter__(self) -> Iterator[Sample]:
        """All samples that are kept."""
        self._settle()
        return (sample for group in self._groups.values() for sample in group)

    @property
    def bytes(self) -> int:
        """Bytes of the samples that are kept."""
        self._settle()
        return self._bytes

    @property
    def next_number(self) -> int:
        """A number that no sample so far has, and that is at most those of all samples to come."""
        return (self.count + sum(rows.seen for rows in self._waiting)) * self.processes

    def join(self, rank: int, processes: int) -> None:
        """Becomes the memory of one of several processes, before it has seen any sample as such."""
        if processes != self.processes:
            self.count = -(-self.count * self.processes // processes)  # numbers go on
        self.rank, self.processes = rank, processes

    # -- what enters -------------------------------------------------------------------------------

    def add(self, batch: Any, **given: Any) -> None:
        """Adds the samples of a batch: :meth:`offer` and :meth:`accept` in one."""
        self.offer(batch, **given)
        self.accept()

    def offer(
        self,
        batch: Any,
        *,
        groups: Sequence[int] | Tensor | None = None,
        weights: Callable[[], Tensor] | None = None,
        extra: Callable[[], Tensor | None] | None = None,
    ) -> None:
        """Copies those samples of a batch that may be kept, without waiting for the device.

        Args:
            batch: tensors with one row for each sample in containers of any nesting, on any device: see
                ``tensors/rows.py``.
            groups: to which each sample belongs, for ``"balanced"``; default: the present task.
            weights: returns the weight of each sample, ``(N,)``, for ``"loss"``; called if it is needed.
            extra: returns what is to be kept beside each sample, ``(N, ...)``; likewise.
        """
        self._settle()
        rows = read_rows(batch)
        if self._structure not in ((), rows.paths):
            raise ValueError(
                f"a batch with {list(rows.paths)} cannot enter a memory of batches with "
                f"{list(self._structure)}: let all batches have one structure"
            )
        first = self.next_number // self.processes
        numbers = [(first + i) * self.processes + self.rank for i in range(rows.count)]
        keys = reservoir_keys(uniform_numbers(self.seed, numbers).tolist())
        by_key = sorted(range(rows.count), key=keys.__getitem__)
        which = by_key
        if self.select == "reservoir":
            limit = self._limits.get(0, math.inf)
            which = [i for i in by_key[: self.memory] if keys[i] < limit]
        arriving = ArrivingRows([numbers[i] for i in which], [keys[i] for i in which], rows.count)
        self._structure, self._like = rows.paths, rows.emptied()
        if which:
            arriving.copy(rows, which, groups, weights and weights(), extra and extra())
        if self.select == "balanced":
            self._by_task = groups is None
        self._waiting.append(arriving)

    def begin_batch(self) -> None:
        """Keeps what is offered from here on out of what is saved: a resumed training offers it again."""
        self._before_batch = len(self._waiting)

    def end_batch(self) -> None:
        """Ends :meth:`begin_batch`."""
        self._before_batch = None

    def accept(self) -> None:
        """Lets the samples that were offered enter; their copies may still be on the way."""
        self.count += sum(arriving.seen for arriving in self._waiting)
        self._accepted += self._waiting
        self._waiting = []

    def _settle(self) -> None:
        """Waits for the copies of the samples that were accepted, and keeps those with the smallest keys."""
        accepted, self._accepted = self._accepted, []
        for sample in (sample for arriving in accepted for sample in arriving.samples(self.task)):
            if self.select != "balanced":
                sample.group = 0
            elif self._by_task:
                sample.group = self.task
            self._insert(sample)

    def reject(self) -> None:
        """Forgets the samples that were offered, as if they had not been seen."""
        self._waiting = []

    def _insert(self, sample: Sample) -> None:
        # One that is too large would drop all others before itself, and NaN would spoil each draw with it.
        fits = sample.bytes <= self.max_bytes and not sample.is_lost
        if fits and sample.key < self._limits.get(sample.group, math.inf):
            insort(self._groups.setdefault(sample.group, []), sample, key=lambda kept: kept.key)
            self._bytes += sample.bytes
            self._size += 1
            while self._size > self.memory or self._bytes > self.max_bytes:
                self._drop()

    def _drop(self) -> None:
        """Drops the sample with the largest key, and with it all later ones with larger keys."""
        groups = [group for group, kept in self._groups.items() if kept]
        last = [self._groups[group][-1].key for group in groups]
        victim = groups[fullest(last, [len(self._groups[group]) for group in groups])]
        dropped = self._groups[victim].pop()
        self._limits[victim] = dropped.key
        self._bytes -= dropped.bytes
        self._size -= 1

    # -- what is drawn -----------------------------------------------------------------------------

    def draw(self, samples: int, number: int = 0, *, stream: int = 0, past_only: bool = False) -> list[Drawn]:
        """Draws samples at random, without replacement; all of them if there are fewer.

        Args:
            samples: how many, by each process: together they draw as one process would so many more.
            number: of the draw: the same one gives the same samples.
            stream: two draws of one number with different streams are independent of each other.
            past_only: whether to leave out samples of the present task.

        Returns:
            Batches of them, with their extras; empty if nothing is kept.
        """
        return self.batches(self.drawn(samples, number, stream=stream, past_only=past_only))

    def drawn(
        self, samples: int, number: int = 0, *, stream: int = 0, past_only: bool = False
    ) -> list[Sample]:
        """The samples of :meth:`draw`."""
        kept = [s for s in self if not past_only or s.task < self.task]
        order = uniform_numbers(self.seed, [s.number for s in kept], _DRAWS + number * 1024 + stream)
        drawn = [kept[i] for i in order.argsort()[: samples * self.processes]]
        return drawn[self.rank :: self.processes] or drawn  # some for every process

    def batches(self, drawn: list[Sample]) -> list[Drawn]:
        """Puts samples together to batches."""
        if not drawn:
            return []
        if self._like is None:
            raise RuntimeError("the containers of a batch are not saved: `offer` one before drawing")
        return list(self._batches(drawn, self._like))

    def _batches(self, drawn: list[Sample], like: BatchRows) -> Iterator[Drawn]:
        leaves = len(self._structure)
        forms: dict[Any, list[Sample]] = {}
        for sample in drawn:
            forms.setdefault(tuple(v.shape for v in sample.values[leaves:]), []).append(sample)
        for form, samples in forms.items():
            # Not longer than for an extra of another shape: outputs of tokens are as many as these.
            rows = pad_rows([sample.values[:leaves] for sample in samples], self._structure)
            for part in alike(rows, like):
                extra = torch.stack([samples[i].values[leaves] for i in part]) if form else None
                yield Drawn(join_rows([rows[i] for i in part], like), len(part) / len(drawn), extra)

    # -- tasks and processes -----------------------------------------------------------------------

    def end_task(self, before: int | None = None) -> None:
        """Ends the present task; samples with numbers from ``before`` on are of the next one."""
        self._settle()
        ended, self.task = self.task, self.task + 1
        if before is None:
            return
        for sample in [s for s in self if s.task == ended and s.number >= before]:
            sample.task = self.task
            if self._by_task:
                self._groups[ended].remove(sample)
                sample.group = self.task
                self._groups.setdefault(self.task, []).append(sample)  # still in the order of the keys
        if self._by_task and ended in self._limits:
            self._limits[self.task] = self._limits[ended]

    @property
    def limits(self) -> dict[int, float]:
        """By group: the key from which on a sample is not kept any more, where there was one too many."""
        self._settle()
        return dict(self._limits)

    def merge(self, others: Iterable[Sample], limits: Iterable[Mapping[int, float]] = ()) -> None:
        """Takes in the samples of other processes, with their :attr:`limits`.

        Afterwards the memory is that of the joint stream of all of them.
        """
        for group, limit in (item for each in limits for item in each.items()):
            self._limits[group] = min(limit, self._limits.get(group, math.inf))
        known: dict[int, Sample] = {sample.number: sample for sample in (*others, *self)}
        self._groups, self._bytes, self._size = {}, 0, 0
        for sample in known.values():
            self._insert(sample)

    # -- checkpoints -------------------------------------------------------------------------------

    def reversal(self) -> Callable[[], None]:
        """Keeps which samples there are, without copies of them, and returns what goes back to these."""
        places = [(sample, sample.task, sample.group) for sample in self]
        kept = {name: copy.copy(value) for name, value in vars(self).items()}
        groups = {group: list(samples) for group, samples in self._groups.items()}

        def revert() -> None:
            vars(self).update(kept, _groups=groups)
            for sample, task, group in places:
                sample.task, sample.group = task, group

        return revert

    def state_dict(self, without: Container[int] = ()) -> dict[str, Any]:
        """Tensors and numbers only; ``without`` the samples of some numbers, which others save."""
        waiting = self._waiting[: self._before_batch]
        return {
            "samples": pack_samples(sample for sample in self if sample.number not in without),
            "waiting": [[rows.seen, pack_samples(rows.samples(self.task))] for rows in waiting],
            "limits": self.limits,
            "count": self.count,
            "task": self.task,
            "by_task": self._by_task,
            "structure": list(self._structure),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.count, self.task = state_dict["count"], state_dict["task"]
        self._by_task, self._structure = state_dict["by_task"], tuple(state_dict["structure"])
        self._limits = dict(state_dict["limits"])
        self._groups, self._bytes, self._size, self._like, self._accepted = {}, 0, 0, None, []
        for sample in unpack_samples(state_dict["samples"]):
            self._insert(sample)
        self._waiting = [
            ArrivingRows.of(seen, list(unpack_samples(packed))) for seen, packed in state_dict["waiting"]
        ]
