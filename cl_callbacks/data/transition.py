"""Gradual changes: mixes neighbouring tasks for some batches around the change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from cl_callbacks.tensors.batches import cat_samples


class Ramp:
    r"""Probability that a sample comes from a neighbouring task, by batch.

    Between two tasks the share of the later one grows linearly from 0 to 1 over ``width`` batches, of which
    half come before the change.

    Args:
        width: length of the ramp in batches.
        since: number of epochs of the task before this one; ``None`` for the first task.
        until: number of epochs left, this one included; ``None`` for the last task.

    Example:
        >>> ramp = Ramp(width=4, since=0, until=1)
        >>> for batch in range(6): print(ramp(batch, batches=6))
        (0.375, 0.0)
        (0.125, 0.0)
        (0.0, 0.0)
        (0.0, 0.0)
        (0.0, 0.125)
        (0.0, 0.375)
    """

    def __init__(self, width: int, since: int | None, until: int | None) -> None:
        self.width, self.since, self.until = width, since, until

    def __call__(self, batch: int, batches: int) -> tuple[float, float]:
        """Returns the shares of the previous and of the next task in a batch, of ``batches`` in an epoch."""
        before = after = 0.0
        if self.since is not None:
            before = 0.5 - (self.since * batches + batch + 0.5) / self.width
        if self.until is not None:
            after = 0.5 - (self.until * batches - batch - 0.5) / self.width
        return max(0.0, before), max(0.0, after)


class Blend(Dataset[Any]):
    """A task's data set and those of its neighbours: index ``k * size + i`` is sample i of the k-th.

    Args:
        datasets: of the task, of the previous and of the next one; ``None`` where there is none.

    Example:
        >>> Blend([[1, 2], None, [3]]).__getitems__([0, 4, 5])
        [1, 3, 3]
    """

    def __init__(self, datasets: Sequence[Any]) -> None:
        self.datasets = list(datasets)
        self.size = len(self.datasets[0])

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        part, row = divmod(index, self.size)
        return self.datasets[part][row % len(self.datasets[part])]

    def __getitems__(self, indices: list[int]) -> Any:
        """Fetches samples as the data sets' own ``__getitems__`` return them, grouped by task."""
        found: Any = None
        for part, dataset in enumerate(self.datasets):
            rows = [i % self.size for i in indices if i // self.size == part]
            if rows:
                some = _several(dataset, [row % len(dataset) for row in rows])
                if found is None:
                    found = some
                else:
                    found = [*found, *some] if isinstance(some, list) else cat_samples(found, some)
        return found


def _several(dataset: Any, rows: list[int]) -> Any:
    return dataset.__getitems__(rows) if hasattr(dataset, "__getitems__") else [dataset[i] for i in rows]


class BlendedBatches(BatchSampler):
    """A batch sampler that takes some samples of each batch from neighbouring tasks.

    Args:
        sampler: sampler of the task itself.
        batch_size: as in torch.
        drop_last: as in torch.
        size: number of samples of the task.
        ramp: shares of the neighbouring tasks.
        epochs: number of epochs of a task.
        limit: limit of batches per epoch, a number or a share, as in Lightning's ``limit_train_batches``.
        seed: seed of the choice of samples in this epoch; ``None`` for torch's global random numbers.
    """

    def __init__(
        self,
        sampler: Sampler[int],
        batch_size: int,
        drop_last: bool,
        size: int,
        ramp: Ramp,
        epochs: int,
        limit: int | float,
        seed: int | None = None,
    ) -> None:
        super().__init__(sampler, batch_size, drop_last)
        self.seed = seed
        self.size, self.ramp, self.epochs, self.limit = size, ramp, epochs, limit

    def __iter__(self) -> Iterator[list[int]]:
        batches = len(self)  # of this process
        batches = min(batches, self.limit) if isinstance(self.limit, int) else int(batches * self.limit)
        if self.ramp.width > self.epochs * batches:
            raise ValueError(
                f"transition_batches={self.ramp.width} is longer than a task, which has "
                f"{self.epochs * batches} batches: only neighbouring tasks can be mixed"
            )
        generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        for number, batch in enumerate(super().__iter__()):
            before, after = self.ramp(number, batches)
            mixed = bool(before or after)
            draws = torch.rand(len(batch), generator=generator).tolist() if mixed else [1.0] * len(batch)
            parts = [1 if draw < before else 2 if draw < before + after else 0 for draw in draws]
            yield [part * self.size + index for part, index in zip(parts, batch, strict=True)]


def blended(
    plain: DataLoader,
    neighbours: Sequence[Any],
    ramp: Ramp,
    epochs: int,
    limit: int | float,
    seed: int | None = None,
) -> DataLoader:
    """Returns a task's plain loader with samples of its neighbours mixed in.

    These are the data sets of the previous and of the next task; ``None`` where there is none. The other
    arguments are those of :class:`BlendedBatches`.
    """
    sampler: Any = plain.sampler
    size = len(plain.dataset)  # type: ignore[arg-type]
    batches = BlendedBatches(sampler, plain.batch_size or 1, plain.drop_last, size, ramp, epochs, limit, seed)
    return DataLoader(
        Blend([plain.dataset, *neighbours]),
        batch_sampler=batches,
        num_workers=plain.num_workers,
        collate_fn=plain.collate_fn,
    )
