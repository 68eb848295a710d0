"""Random number generators: which are seeded, and which are as before."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Generator
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from cl_callbacks.training import generators
from cl_callbacks.training.generators import generators_kept, initial_seed, isolated_rng, seed_torch
from tests.small import Net, make_trainer

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


# -- several threads -------------------------------------------------------------------------------------


def seeds_of_overlapping_passes(trainer: Trainer, model: Net, *seeds: int) -> tuple[int, int]:
    """The global seed as another thread sees it within a pass of this one, and after both have ended."""
    entered, left = threading.Event(), threading.Event()
    within = []

    def other() -> None:
        within.append(initial_seed())
        with isolated_rng(trainer, model):
            seed_torch(trainer, model, seeds[1])
            entered.set()
            assert left.wait(10)

    thread = threading.Thread(target=other)
    with isolated_rng(trainer, model):
        seed_torch(trainer, model, seeds[0])
        random.seed(1)
        np.random.seed(1)
        assert initial_seed() == seeds[0]
        thread.start()
        assert entered.wait(10)
    left.set()
    thread.join()
    return within[0], initial_seed()


def test_passes_of_two_threads_that_overlap_leave_all_generators_as_they_were() -> None:
    trainer, model = make_trainer(), Net()
    torch.manual_seed(77)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    assert seeds_of_overlapping_passes(trainer, model, 5, 6) == (77, 77)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()
    assert not generators._KEPT


def test_a_pass_within_a_pass_restores_what_that_has_drawn() -> None:
    trainer, model = make_trainer(), Net()
    torch.manual_seed(77)
    with isolated_rng(trainer, model):
        seed_torch(trainer, model, 5)
        torch.rand(1)
        before = torch.get_rng_state()
        with isolated_rng(trainer, model):
            seed_torch(trainer, model, 6)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.initial_seed() == 77


def test_what_a_pass_within_a_pass_has_found_is_not_what_another_thread_restores() -> None:
    trainer, model = make_trainer(), Net()
    torch.manual_seed(77)
    found: list[int] = []
    with ExitStack() as passes:
        for seed in range(5, 45):  # each finds the seed of the one around it
            passes.enter_context(isolated_rng(trainer, model))
            seed_torch(trainer, model, seed)
        thread = threading.Thread(target=lambda: found.append(initial_seed()))
        thread.start()
        thread.join()
    assert found == [77]
