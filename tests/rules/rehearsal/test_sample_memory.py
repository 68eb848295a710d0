"""What a memory of samples keeps of a stream, and in which form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from cl_callbacks import SampleMemory

SEEDS, STREAM, KEPT = 2000, 40, 8


def kept(memory: SampleMemory) -> list[int]:
    return sorted(int(sample.values[0]) for sample in memory)


def fed(memory: SampleMemory, numbers: Any, size: int = 5, **given: Any) -> SampleMemory:
    numbers = torch.as_tensor(numbers)
    for part in numbers.split(size):
        memory.add((part, part), **{name: make(part) for name, make in given.items()})
    return memory


def assert_frequencies(found: Tensor, expected: float) -> None:
    """Within four standard errors of a share of :data:`SEEDS` trials."""
    share = found.double() / SEEDS
    assert (share - expected).abs().max() < 4 * math.sqrt(expected * (1 - expected) / SEEDS)


def test_each_sample_of_a_stream_is_kept_equally_often() -> None:
    counts = torch.zeros(STREAM)
    for seed in range(SEEDS):
        counts[kept(fed(SampleMemory(KEPT, seed=seed), torch.arange(STREAM), size=20))] += 1
    assert_frequencies(counts, KEPT / STREAM)


def test_each_sample_of_two_processes_is_kept_equally_often() -> None:
    counts = torch.zeros(STREAM)
    for seed in range(SEEDS):
        pair = [SampleMemory(KEPT, seed=seed, rank=rank, processes=2) for rank in range(2)]
        for rank, memory in enumerate(pair):
            fed(memory, torch.arange(rank, STREAM, 2), size=10)
        pair[0].merge(pair[1], [pair[1].limits])
        assert len(pair[0]) == KEPT
        counts[kept(pair[0])] += 1
    assert_frequencies(counts, KEPT / STREAM)


def test_processes_together_keep_what_one_would() -> None:
    """Whose stream has their samples in turn; and each of them has the same after the merge."""
    alone = fed(SampleMemory(KEPT), torch.arange(STREAM))
    pair = [SampleMemory(KEPT, rank=rank, processes=2) for rank in range(2)]
    for rank, memory in enumerate(pair):
        fed(memory, torch.arange(rank, STREAM, 2), size=3)
    own = [(list(memory), memory.limits) for memory in pair]
    for memory, (others, limits) in zip(pair, own[::-1], strict=True):
        memory.merge(others, [limits])
        assert kept(memory) == kept(alone)
        assert memory.bytes == alone.bytes


def test_what_is_kept_does_not_depend_on_the_sizes_of_batches() -> None:
    assert kept(fed(SampleMemory(KEPT), torch.arange(STREAM), 1)) == kept(
        fed(SampleMemory(KEPT), torch.arange(STREAM), 17)
    )


def test_global_random_numbers_are_neither_used_nor_changed() -> None:
    torch.manual_seed(0)
    first = fed(SampleMemory(KEPT), torch.arange(STREAM))
    state = torch.get_rng_state()
    torch.manual_seed(1)
    second = fed(SampleMemory(KEPT), torch.arange(STREAM))
    second.draw(3)
    assert kept(first) == kept(second)
    torch.manual_seed(0)
    assert torch.equal(state, torch.get_rng_state())


def test_balanced_by_class_keeps_as_many_of_each() -> None:
    numbers = torch.arange(200)  # one in ten is of class 1, and three in all of class 2
    memory = fed(SampleMemory(13, select="balanced"), numbers, groups=lambda n: (n % 10 == 0) + 2 * (n > 196))
    classes = [sample.group for sample in memory]
    assert {c: classes.count(c) for c in set(classes)} == {0: 5, 1: 5, 2: 3}


def test_within_a_class_each_is_kept_equally_often() -> None:
    counts = torch.zeros(STREAM)
    for seed in range(SEEDS):
        memory = SampleMemory(KEPT, select="balanced", seed=seed)
        counts[kept(fed(memory, torch.arange(STREAM), 20, groups=lambda n: (n < 8).long()))] += 1
    assert_frequencies(counts[:8], 4 / 8)
    assert_frequencies(counts[8:], 4 / 32)


def test_balanced_by_task_without_classes() -> None:
    memory = SampleMemory(9, select="balanced")
    for task in range(3):
        fed(memory, torch.arange(100 * task, 100 * task + 30 * (task + 1)))
        memory.end_task()
    tasks = [sample.task for sample in memory]
    assert [tasks.count(task) for task in range(3)] == [3, 3, 3]


def test_samples_enter_in_proportion_to_their_weights() -> None:
    """The first that is drawn of all; a weight of 0 never is."""
    counts, weights = torch.zeros(4), torch.tensor([1.0, 2.0, 0.0, 5.0])
    for seed in range(SEEDS):
        memory = SampleMemory(1, select="loss", seed=seed)
        memory.add((torch.arange(4), torch.arange(4)), weights=lambda: weights)
        counts[kept(memory)] += 1
    share = counts.double() / SEEDS
    expected = weights.double() / 8
    assert ((share - expected).abs() <= 4 * (expected * (1 - expected) / SEEDS).sqrt()).all()


def test_bytes_are_those_of_tensors_and_texts_and_bounded() -> None:
    batch = {"x": torch.zeros(10, 3, dtype=torch.float16), "y": torch.zeros(10, dtype=torch.uint8)}
    memory = SampleMemory(100)
    memory.add(batch | {"text": ["four"] * 10})
    assert memory.bytes == 10 * (3 * 2 + 1 + 4)
    tensors = [v for sample in memory for v in sample.values if isinstance(v, Tensor)]
    assert {t.dtype for t in tensors} == {torch.float16, torch.uint8}
    assert sum(t.untyped_storage().nbytes() for t in tensors) == 10 * 7, "views of whole batches"
    small = SampleMemory(100, max_bytes=50)
    for _ in range(5):
        small.add(batch | {"text": ["four"] * 10})
    assert len(small) == 4 and small.bytes == 44
    # The same samples as those with the smallest keys, and not those that came first.
    assert {s.number for s in small} != set(range(4))


def test_a_sample_larger_than_all_that_may_be_kept_does_not_enter() -> None:
    memory = SampleMemory(10, max_bytes=100)
    memory.add((torch.zeros(2, 5), torch.zeros(2)))
    memory.add((torch.zeros(20, 30), torch.zeros(20)))
    assert len(memory) == 2


def test_samples_with_nan_do_not_enter() -> None:
    memory, x = SampleMemory(10), torch.ones(4, 2)
    x[1, 0] = torch.nan
    memory.add((x, torch.arange(4)))
    assert sorted(int(sample.values[1]) for sample in memory) == [0, 2, 3]
    assert memory.count == 4


def test_those_that_do_not_enter_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fed(SampleMemory(2), torch.arange(1000))
    copied: list[Any] = []
    stack = torch.stack
    monkeypatch.setattr(torch, "stack", lambda tensors: copied.append(len(tensors)) or stack(tensors))
    fed(memory, torch.arange(1000), size=10)
    assert sum(copied) < 20  # both tensors of about 2 ln 2 = 1.4 samples


def test_rejected_samples_leave_nothing() -> None:
    plain, other = SampleMemory(KEPT), SampleMemory(KEPT)
    for start in range(0, STREAM, 4):
        part = torch.arange(start, start + 4)
        plain.add((part, part))
        other.offer((part + 1000, part))
        other.reject()
        other.add((part, part))
    assert kept(plain) == kept(other) and plain.count == other.count


def test_draws_are_of_different_samples_and_independent() -> None:
    memory = fed(SampleMemory(20), torch.arange(STREAM))
    (first,), (second,), (other,) = (
        memory.draw(10, 0), memory.draw(10, 1), memory.draw(10, 0, stream=1)
    )  # fmt: skip
    assert len(set(first.batch[0].tolist())) == 10
    assert len({tuple(part.batch[0].tolist()) for part in (first, second, other)}) == 3
    assert torch.equal(first.batch[0], memory.draw(10, 0)[0].batch[0])
    assert len(memory.draw(1000)[0].batch[0]) == 20


def test_each_remembered_sample_is_drawn_equally_often() -> None:
    memory = fed(SampleMemory(20), torch.arange(20))
    counts = torch.zeros(20)
    for number in range(SEEDS):
        counts[memory.draw(5, number)[0].batch[0]] += 1
    assert_frequencies(counts, 5 / 20)


def test_processes_draw_shares_of_one_draw() -> None:
    memory = fed(SampleMemory(20), torch.arange(20))
    whole = memory.draw(10)[0].batch[0].tolist()
    shares = []
    for rank in range(2):
        memory.rank, memory.processes = rank, 2
        shares += memory.draw(5)[0].batch[0].tolist()
    assert sorted(shares) == sorted(whole)


def test_only_tasks_that_have_ended_and_late_ends() -> None:
    memory = fed(SampleMemory(100), torch.arange(20))
    assert memory.draw(5, past_only=True) == []
    memory.end_task(before=12)
    assert sorted(memory.draw(50, past_only=True)[0].batch[0].tolist()) == list(range(12))


def test_a_late_end_leaves_a_balanced_memory_as_an_end_in_time() -> None:
    found = []
    for late in (False, True):
        memory = SampleMemory(10, select="balanced")
        fed(memory, torch.arange(60))
        if not late:
            memory.end_task()
        fed(memory, torch.arange(60, 70))
        if late:
            memory.end_task(before=60)
        fed(memory, torch.arange(70, 200))
        found.append([sample.task for sample in memory].count(0))
    assert found == [5, 5]


BATCHES: dict[str, Any] = {
    "pair": (torch.arange(6).view(3, 2), torch.arange(3)),
    "nested": {"a": [torch.arange(3.0), {"b": torch.ones(3, 1, 2)}], "task": 7, "t": torch.tensor(4)},
    "texts": {"text": ["a", "bc", "def"], "label": torch.arange(3)},
    "texts alone": {"text": ["a", "bc", "def"]},
    "sizes": ([torch.zeros(2, 2), torch.ones(2, 3), torch.zeros(2, 4)], torch.arange(3)),
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches_of_any_nesting_come_back(name: str) -> None:
    batch, memory = BATCHES[name], SampleMemory(10)
    memory.add(batch)
    order = torch.tensor([s.number for s in memory])
    (drawn,) = memory.draw(3)
    chosen = uniform_order(memory)
    assert sorted(order.tolist()) == [0, 1, 2]
    compare(drawn.batch, batch, chosen)


def uniform_order(memory: SampleMemory) -> list[int]:
    """The order in which samples are drawn, by a batch that shows it."""
    numbers = SampleMemory(10, seed=memory.seed)
    numbers.add((torch.arange(3), torch.arange(3)))
    return numbers.draw(3)[0].batch[0].tolist()


def compare(found: Any, batch: Any, order: list[int]) -> None:
    assert type(found) is type(batch)
    if isinstance(batch, Tensor):
        assert torch.equal(found, batch[order] if batch.ndim else batch)
    elif isinstance(batch, dict):
        assert list(found) == list(batch)
        for key, value in batch.items():
            compare(found[key], value, order)
    elif isinstance(batch, list) and len(batch) == 3:
        for one, i in zip(found, order, strict=True):
            assert torch.equal(one, batch[i]) if isinstance(one, Tensor) else one == batch[i]
    elif isinstance(batch, list | tuple):
        for one, value in zip(found, batch, strict=True):
            compare(one, value, order)
    else:
        assert found == batch


def test_packed_sequences_come_back() -> None:
    sequences = [torch.randn(n, 2) for n in (4, 2, 3)]
    memory = SampleMemory(10)
    memory.add((pack_sequence(sequences, enforce_sorted=False), torch.arange(3)))
    packed, labels = memory.draw(3)[0].batch
    for found, label in zip(unpack_sequence(packed), labels.tolist(), strict=True):
        assert torch.equal(found, sequences[label])


def test_what_a_batch_has_once_divides_what_is_drawn() -> None:
    memory = SampleMemory(10)
    for task in range(2):
        memory.add({"x": torch.full((3 + task,), float(task)), "task": torch.tensor(task)})
    drawn = memory.draw(10)
    assert {part.batch["task"].item(): part.share for part in drawn} == {0: 3 / 7, 1: 4 / 7}
    assert all((part.batch["x"] == part.batch["task"]).all() for part in drawn)


def test_texts_are_as_long_as_what_is_kept_for_each_of_their_tokens() -> None:
    memory = SampleMemory(10)
    for length in (2, 3):
        texts = {name: torch.ones(2, length) for name in ("input_ids", "attention_mask")}
        memory.add(texts, extra=lambda length=length: torch.full((2, length, 5), float(length)))
    found = {part.batch["input_ids"].shape[1]: part for part in memory.draw(4)}
    assert found.keys() == {2, 3}
    for length, part in found.items():
        assert part.extra is not None
        assert torch.equal(part.extra, torch.full((2, length, 5), float(length)))
        assert part.share == 0.5


def test_texts_of_other_lengths_are_padded_where_there_is_a_mask() -> None:
    memory = SampleMemory(10)
    for length in (2, 4):
        ids = torch.full((2, length), length)
        memory.add({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids})
    (drawn,) = memory.draw(10)
    for ids, mask, labels in zip(*drawn.batch.values(), strict=True):
        length = int(ids[0])
        assert ids.tolist() == [length] * length + [0] * (4 - length)
        assert mask.tolist() == [1] * length + [0] * (4 - length)
        assert labels.tolist() == [length] * length + [-100] * (4 - length)
    plain = SampleMemory(10)
    for length in (2, 4):
        plain.add((torch.zeros(2, length), torch.zeros(2)))
    assert sorted(part.batch[0].shape for part in plain.draw(10)) == [(2, 2), (2, 4)]


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        ((torch.zeros(9, 4, 2), torch.zeros(4)), r"rows of a tuple cannot be told, .* \[4, 9\] entries"),
        (7, "there are no tensors"),
        ({"x": torch.zeros(3), "graph": object()}, "a dict holds a object"),
    ],
)
def test_batches_whose_rows_cannot_be_told(batch: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        SampleMemory(3).add(batch)


def test_batches_of_another_structure() -> None:
    memory = SampleMemory(3)
    memory.add({"x": torch.zeros(2)})
    with pytest.raises(ValueError, match="one structure"):
        memory.add({"y": torch.zeros(2)})


@pytest.mark.parametrize("select", ["reservoir", "balanced", "loss"])
def test_a_memory_goes_on_from_its_state(select: Any, tmp_path: Any) -> None:
    given: dict[str, Any] = {
        "balanced": {"groups": lambda n: n % 3},
        "loss": {"weights": lambda n: lambda: n.double() + 1},
    }.get(select, {})
    whole = fed(SampleMemory(KEPT, select=select), torch.arange(STREAM), **given)
    part = fed(SampleMemory(KEPT, select=select), torch.arange(STREAM // 2), **given)
    more = torch.arange(STREAM // 2, STREAM)
    part.offer((more[:5], more[:5]), **{name: make(more[:5]) for name, make in given.items()})
    torch.save(part.state_dict(), tmp_path / "state.pt")
    again = SampleMemory(KEPT, select=select)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    again.accept()
    fed(again, more[5:], **given)
    assert kept(whole) == kept(again) and whole.limits == again.limits and whole.bytes == again.bytes
    assert torch.equal(whole.draw(3)[0].batch[0], again.draw(3)[0].batch[0])


@pytest.mark.parametrize(
    "arguments", [{"memory": 0}, {"memory": 3, "max_bytes": 0}, {"memory": 3, "select": "best"}]
)
def test_arguments_that_cannot_work(arguments: Any) -> None:
    with pytest.raises(ValueError, match=next(reversed(arguments))):
        SampleMemory(**arguments)
