"""Which samples are kept for a task that may be over already."""

from __future__ import annotations

import copy
import pickle
from typing import Any, NamedTuple

import pytest
import torch

from cl_callbacks import EWC, BatchBoundaries
from cl_callbacks.boundaries.recent_batches import RecentBatches
from tests.small import Net, loader, make_trainer, task


def numbers(recent: RecentBatches) -> list[int]:
    return [int(batch["x"][0]) for batch in recent]


def filled(batches: int, samples: int = 6, size: int = 2, **options: float) -> RecentBatches:
    recent = RecentBatches(samples, **options)
    for i in range(batches):
        recent.append({"x": torch.full((size,), i)})
    return recent


def test_copies_and_as_many_as_needed() -> None:
    recent = RecentBatches(samples=5)
    for i in range(6):
        batch = {"x": torch.full((2,), i)}
        recent.append(batch)
        batch["x"].fill_(-1)
    assert numbers(recent) == [3, 4, 5]


def test_an_onset_parts_them() -> None:
    recent = filled(4)
    recent.divide(onset=3)
    assert numbers(recent) == [1, 2]
    for i in range(4, 20):
        recent.append({"x": torch.full((2,), i)})
    assert numbers(recent) == [1, 2]  # whatever has come since
    recent.forget_before(3)
    assert numbers(recent) == [17, 18, 19]


def test_a_suspicion_that_was_none() -> None:
    recent = filled(5)
    recent.divide(onset=5)
    for i in range(5, 8):
        recent.append({"x": torch.full((2,), i)})
    recent.divide(onset=6)
    assert numbers(recent) == [3, 4, 5]
    recent.divide(onset=8)
    assert numbers(recent) == [5, 6, 7]


def test_bounded_in_bytes() -> None:
    """Eight bytes a sample: two batches of two fit on either side."""
    recent = filled(10, samples=100, max_bytes=64)
    assert recent.capacity == 4
    assert numbers(recent) == [8, 9]
    recent.divide(onset=9)
    for i in range(10, 20):
        recent.append({"x": torch.full((2,), i)})
    assert numbers(recent) == [8]
    assert sum(kept.size for kept in recent._kept) <= 64
    # A batch that is larger by itself is cut.
    assert [len(batch["x"]) for batch in filled(3, samples=100, size=50, max_bytes=64)] == [4]
    assert [len(batch["x"]) for batch in filled(3, samples=100, size=50, max_bytes=1)] == [1]


def test_goes_on_from_its_state() -> None:
    recent, restored = filled(8), RecentBatches(6)
    recent.divide(onset=6)
    restored.load_state_dict(copy.deepcopy(recent.state_dict()))
    assert numbers(restored) == numbers(recent)
    restored.forget_before(6)
    restored.append({"x": torch.full((2,), 8)})
    assert numbers(restored) == [6, 7, 8]


def test_batches_whose_samples_cannot_be_counted_are_let_go_too() -> None:
    recent = RecentBatches(2, max_bytes=10)
    for i in range(100):
        recent.append([f"sentence {i}"])
    assert list(recent) == [["sentence 98"], ["sentence 99"]]
    assert recent.capacity == 2


def test_without_a_bound() -> None:
    assert filled(5, samples=6, max_bytes=float("inf")).capacity == 6


def test_a_batch_that_cannot_be_cut_is_kept_whole_and_said() -> None:
    recent = RecentBatches(10, max_bytes=16)
    with pytest.warns(UserWarning, match="kept whole.*raise recent_bytes"):
        recent.append({"x": torch.zeros(4, 3), "y": torch.zeros(3)})
    [kept] = recent
    assert {key: len(value) for key, value in kept.items()} == {"x": 4, "y": 3}


def test_copies_do_not_hold_the_trainer() -> None:
    class OnTriples(EWC):
        def outputs(self, pl_module: Any, batch: Any) -> Any:
            return pl_module(batch[0]), batch[1]

    boundaries = BatchBoundaries(key=2)
    x, y = task(0)
    make_trainer(OnTriples(1.0), boundaries).fit(Net(), loader(x, y, torch.zeros(len(x))))
    again = pickle.loads(pickle.dumps(boundaries.recent_batches))
    assert [len(batch[0]) for batch in again] == [8, 8, 8]


def test_what_no_checkpoint_can_give_back_is_left_out() -> None:
    class Graph:
        pass

    recent = RecentBatches(10)
    for batch in ({"x": torch.zeros(2)}, {"x": Graph()}, Pair(torch.zeros(2), torch.zeros(2))):
        recent.append(batch)
    with pytest.warns(UserWarning, match="no checkpoint can give back"):
        state = recent.state_dict()
    assert [type(kept[3]) for kept in state["kept"]] == [dict]


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


def test_a_batch_that_is_run_again_is_kept_once() -> None:
    recent = RecentBatches(samples=8)
    for number in (0, 1, 2, 2, 3):
        recent.append(torch.full((1,), number), number)
    assert [batch.item() for batch in recent] == [0, 1, 2, 3]
    assert recent.seen == 4
