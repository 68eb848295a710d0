"""The record of many tasks: linear in time and bytes, and with the figures of all scores."""

from __future__ import annotations

import io
import json
import math
import random
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cl_callbacks import functional
from cl_callbacks.observation import thinning
from cl_callbacks.observation.task_files import write_csv, write_json
from cl_callbacks.observation.task_record import TaskRecord

NAN = math.nan


def of_all(matrix: Tensor, order: list[int | None], higher: bool) -> dict[str, float]:
    """The figures of a matrix that is kept whole."""
    found = {
        "average": functional.average_accuracy(matrix, order),
        "forgetting": functional.forgetting(matrix, higher, order),
        "backward_transfer": functional.backward_transfer(matrix, higher, order),
        "forward_transfer": functional.forward_transfer(matrix, higher, order),
        "learning": functional.learning_accuracy(matrix, order),
    }
    return {name: pytest.approx(value.item(), nan_ok=True, abs=1e-12) for name, value in found.items()}


def random_record(seed: int) -> tuple[TaskRecord, Tensor, list[int | None]]:
    """A record of tasks in any order, some learned again, with missing scores; and all its scores."""
    numbers = random.Random(seed)
    loaders, tasks = numbers.randint(1, 6), numbers.randint(0, 25)
    order: list[int | None] = [numbers.choice([None, *range(loaders)]) for _ in range(tasks)]
    record, matrix = TaskRecord(seed % 2 == 0), torch.full((tasks + 1, loaders), NAN, dtype=torch.float64)
    for learned in range(tasks + 1):
        if learned:
            record.begin(order[learned - 1])
        for _ in range(numbers.choice([1, 1, 1, 2])):  # scored again, as after revised weights
            row = [
                numbers.choice([NAN, *(round(numbers.random(), 1) for _ in range(9))]) for _ in range(loaders)
            ]
            record.keep(learned, row)
        matrix[learned] = torch.tensor(row, dtype=torch.float64)
        if numbers.random() < 0.2:  # as when training is resumed
            state, record = record.state_dict(), TaskRecord(seed % 2 == 0)
            record.restore(state)
    return record, matrix, order


@pytest.mark.parametrize("rows", [5, 8, 1000])
def test_figures_are_those_of_all_scores_however_few_are_kept(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thinning, "MOST_ROWS", rows)
    monkeypatch.setattr(thinning, "LEAST_ROWS", rows)
    for seed in range(100):
        record, matrix, order = random_record(seed)
        assert of_all(matrix, order, record.higher_is_better) == record.results()
        lost = functional.forgetting_per_task(matrix, record.higher_is_better, order)
        torch.testing.assert_close(record.known.forgetting, lost[record.columns], equal_nan=True)
        assert len(record.rows) <= rows
        # What is left of the matrix has the same figures.
        kept = record.matrix[: len(matrix)]
        assert of_all(kept, record.order, record.higher_is_better) == record.results()


@pytest.mark.parametrize("rows", [5, 1000])
def test_another_order_is_noticed_however_few_scores_are_kept(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thinning, "MOST_ROWS", rows)
    monkeypatch.setattr(thinning, "LEAST_ROWS", rows)
    sentences = []
    for swapped in (None, 3, 17):
        record = TaskRecord(higher_is_better=True)
        record.assumed, known = True, [0.1] * 20
        for learned in range(21):
            if learned:
                record.begin(learned - 1)
                record.ends.append(learned)
                own = learned - 1
                known = [0.95 * score for score in known]
                known[own if swapped not in (own, own - 1) else 2 * swapped + 1 - own] = 0.9
            record.keep(learned, known)
        sentences.append(record.mismatch())
    assert sentences == [
        None,
        "in task 3, counted from 0, the score on loader 4 improved, not that on 3",
        "in task 17, counted from 0, the score on loader 18 improved, not that on 17",
    ]


def many(tasks: int, loaders: int) -> TaskRecord:
    generator = torch.Generator().manual_seed(0)
    record = TaskRecord(higher_is_better=True)
    for learned in range(tasks + 1):
        if learned:
            record.begin((learned - 1) % loaders)
            record.ends.append(learned)
        scores = torch.rand(loaders, generator=generator).tolist()
        record.keep(learned, scores)
        record.trace(learned, scores)
    return record


def cost(record: TaskRecord) -> tuple[float, int]:
    """Seconds of the figures, the least of five, and bytes of the state."""
    seconds = []
    for _ in range(5):
        record.begin(None)  # so that nothing is known from the last time
        start = time.process_time()
        record.results()
        seconds.append(time.process_time() - start)
    file = io.BytesIO()
    torch.save(record.state_dict(), file)
    return min(seconds), len(file.getvalue())


@pytest.mark.parametrize("wide", [False, True], ids=["one loader", "a loader for each task"])
def test_time_and_bytes_are_linear_in_the_tasks(wide: bool) -> None:
    (few_seconds, few_bytes), (many_seconds, many_bytes) = (
        cost(many(tasks, tasks if wide else 1)) for tasks in (500, 2000)
    )
    assert many_bytes < 5 * few_bytes
    assert many_seconds < 8 * few_seconds + 0.01  # the square would be 16
    assert many_bytes < 2000 * (1500 if wide else 150)


def test_rows_are_left_out_evenly() -> None:
    record = many(3000, 1)
    kept = sorted(record.rows)
    assert (kept[0], kept[-2:], len(kept)) == (0, [2999, 3000], 1024)
    assert max(after - before for before, after in pairwise(kept)) <= 4
    steps = [step for step, _ in record.curve]
    assert (steps[0], steps[-1], len(steps)) == (0, 3000, 1024)


def test_an_order_that_needs_what_was_left_out_is_refused() -> None:
    record = many(1200, 2)
    with pytest.raises(ValueError, match="give the order before training"):
        record.take_order([1] * 1200)
    record.take_order([task % 2 for task in range(1200)])
    few = many(10, 2)
    few.take_order([1] * 10)
    assert few.order == [0] * 10


def test_files_of_many_tasks_have_what_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thinning, "MOST_ROWS", 6)
    record = many(30, 3)
    write_json(tmp_path / "a.json", record, {"monitor": "val_acc"})
    write_csv(tmp_path / "a.csv", record, ["0", "1", "2"])
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["tasks_learned"] == sorted(record.rows)
    assert len(found["matrix"]) == 6
    matrix = torch.full((31, 3), NAN, dtype=torch.float64)
    matrix[found["tasks_learned"]] = torch.tensor(found["matrix"], dtype=torch.float64)
    for row, column, score in found["other_scores"]:
        matrix[row, column] = score
    torch.testing.assert_close(matrix, record.matrix, equal_nan=True)
    assert of_all(matrix, found["order"], True) == found["results"]
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert [int(line.partition(",")[0]) for line in lines[1:]] == sorted(record.rows)
