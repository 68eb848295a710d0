"""A loader that Lightning can resume in the middle of an epoch: it keeps its place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


class Resumable(DataLoader):
    """Batches of four of a process's share of the data, in another order in each epoch if shuffled."""

    def __init__(
        self, data: TensorDataset, *, shuffle: bool = True, processes: int = 1, rank: int = 0
    ) -> None:
        super().__init__(data, 4, sampler=DistributedSampler(data, processes, rank, shuffle))
        self.place = 0

    def __iter__(self) -> Iterator[Any]:
        start = self.place % len(self)
        for index, batch in enumerate(super().__iter__()):
            if index >= start:
                self.place = index + 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.place = state_dict["place"]
