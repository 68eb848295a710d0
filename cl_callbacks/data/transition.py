"""Gradual changes: neighbouring tasks mixed, for some steps around the change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from cl_callbacks.tensors.batches import cat_samples


class Ramp:
    r"""How likely a sample is from a neighbouring task.

    Between two tasks the share of the later one grows linearly from 0 to 1 over ``width`` batches, of which
    half come before the change.

    Args:
        width: of the ramp, in batches.
        since: how many epochs of the task have come before; ``None`` if no task was before it.
        until: how many are left, this one included; ``None`` if no task is to come.

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
        """Shares of the task before and of the task after in a batch.

        Args:
            batch: its number in the epoch.
            batches: in an epoch.
        """
        before = after = 0.0
        if self.since is not None:
            before = 0.5 - (self.since * batches + batch + 0.5) / self.width
        if self.until is not None:
            after = 0.5 - (self.until * batches - batch - 0.5) / self.width
        return max(0.0, before), max(0.0, after)


class Blend(Dataset[Any]):
    """A task's data set, followed by those of its neighbours: index ``k * size + i`` is of the k-th.

    Args:
        datasets: the task itself, the one before and the one after; ``None`` where there is none.

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
        """Samples in the form in which the data sets give several at once, those of one task together."""
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
    """Batches of which some samples are taken from neighbouring tasks.

    Args:
        sampler: of the task itself.
        batch_size: as in torch.
        drop_last: as in torch.
        size: of the task's data set.
        ramp: how many samples.
        epochs: of a task.
        limit: of batches in an epoch, a number or a share, as in Lightning's ``limit_train_batches``.
        seed: of which samples are taken in an epoch; ``None`` for torch's random numbers.
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
    """A task's loader with samples of its neighbours in it.

    Args:
        plain: the task's loader.
        neighbours: data sets of the task before and of the task after.
        ramp: how much of them.
        epochs: of a task.
        limit: of batches in an epoch.
        seed: of the choice in this epoch; ``None`` for torch's random numbers.
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
