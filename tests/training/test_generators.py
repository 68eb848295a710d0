"""Random number generators: which are seeded, and which are as before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from cl_callbacks.training.generators import generators_kept

DATA = range(8)
OWNERS: dict[str, Callable[[Generator], Any]] = {
    "itself": lambda g: g,
    "loader": lambda g: DataLoader(DATA, shuffle=True, generator=g),  # type: ignore[arg-type]
    "sampler": lambda g: DataLoader(DATA, sampler=RandomSampler(DATA, generator=g)),  # type: ignore[arg-type]
    "sampler of batches": lambda g: DataLoader(
        DATA,  # type: ignore[arg-type]
        batch_sampler=BatchSampler(RandomSampler(DATA, generator=g), 2, False),
    ),
}


@pytest.mark.parametrize("owner", OWNERS)
def test_generators_of_loaders_are_kept(owner: str) -> None:
    generator = Generator().manual_seed(0)
    loader = OWNERS[owner](generator)
    before = generator.get_state()
    with pytest.raises(KeyError), generators_kept([loader, loader, DataLoader(DATA)]):  # type: ignore[arg-type]
        torch.rand(3, generator=generator) if loader is generator else list(loader)
        assert not torch.equal(generator.get_state(), before)
        raise KeyError
    assert torch.equal(generator.get_state(), before)
