"""The metrics over a stream of tasks, as torchmetrics expects them to behave."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nan
from torchmetrics import MetricCollection
from torchmetrics.wrappers import MetricTracker

from cl_callbacks import (
    AverageAccuracy,
    BackwardTransfer,
    Forgetting,
    ForwardTransfer,
    Intransigence,
    LastTasksAccuracy,
    LearningAccuracy,
    TaskMatrixMetric,
    functional,
)
from tests.processes import train_together

ROWS = torch.tensor([[0.1, 0.2, 0.3], [0.8, 0.25, nan], [0.9, 0.7, 0.5], [0.6, 0.75, 0.95]])
JOINT = [0.9, 0.9, 1.0]

METRICS: list[tuple[Callable[..., TaskMatrixMetric], Callable[[Tensor], Tensor]]] = [
    (AverageAccuracy, functional.average_accuracy),
    (lambda **options: LastTasksAccuracy(2, **options), lambda m: functional.last_tasks_accuracy(m, 2)),
    (LearningAccuracy, functional.learning_accuracy),
    (Forgetting, functional.forgetting),
    (BackwardTransfer, functional.backward_transfer),
    (ForwardTransfer, functional.forward_transfer),
    (
        lambda **options: Intransigence(JOINT, **options),
        lambda m: functional.intransigence(m, torch.tensor(JOINT)),
    ),
]
NAMES = ["average", "last", "learning", "forgetting", "before", "ahead", "intransigence"]
every_metric = pytest.mark.parametrize(("build", "function"), METRICS, ids=NAMES)


def told(metric: TaskMatrixMetric | MetricCollection, rows: Tensor = ROWS) -> None:
    for learned, row in enumerate(rows):
        metric.update(row, learned)


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(-1e9), b.nan_to_num(-1e9))


def collection(groups: Any = True) -> MetricCollection:
    metrics = {name: build() for name, (build, _) in zip(NAMES, METRICS, strict=True)}
    return MetricCollection({**metrics, "easier": Intransigence([0.5] * 3)}, compute_groups=groups)


# torchmetrics does not find states with NaN in them to be equal, and leaves each metric its own.
every_grouping = pytest.mark.parametrize("groups", [True, [[*NAMES, "easier"]]], ids=["found", "named"])


@every_metric
def test_a_metric_follows_the_stream_task_by_task(build: Callable, function: Callable) -> None:
    metric = build()
    for learned in range(4):
        metric.update(ROWS[learned], learned)
        so_far = ROWS.clone()
        so_far[learned + 1 :] = nan
        assert same(metric.compute(), function(so_far))


@pytest.mark.parametrize("kind", [Forgetting, BackwardTransfer, ForwardTransfer, Intransigence])
def test_a_difference_of_losses_is_that_of_negated_scores(kind: type[TaskMatrixMetric]) -> None:
    negated = [-score for score in JOINT]
    losses = kind(*[JOINT] * (kind is Intransigence), higher_is_better=False)
    scores = kind(*[negated] * (kind is Intransigence))
    told(losses)
    told(scores, -ROWS)
    assert same(losses.compute(), scores.compute())
    assert losses.higher_is_better is scores.higher_is_better


@pytest.mark.parametrize("kind", [AverageAccuracy, LastTasksAccuracy, LearningAccuracy])
def test_a_mean_of_losses_is_their_mean_and_better_when_lower(kind: type[TaskMatrixMetric]) -> None:
    losses, scores = kind(higher_is_better=False), kind()
    told(losses)
    told(scores)
    assert same(losses.compute(), scores.compute())
    assert scores.higher_is_better is True and losses.higher_is_better is False


def test_losses_are_forgotten_when_they_rise() -> None:
    metric = Forgetting(higher_is_better=False)
    told(metric, torch.tensor([[2.0, 3.0], [0.5, 2.5], [1.5, 0.25]]))
    assert metric.compute() == 1.0


def test_which_way_is_better_is_what_a_tracker_takes_for_the_best() -> None:
    for metric, best in [(AverageAccuracy(), 0.9), (AverageAccuracy(higher_is_better=False), 0.5)]:
        tracker = MetricTracker(metric, maximize=metric.higher_is_better)
        for score in (0.7, 0.9, 0.5):
            tracker.increment()
            tracker.update(torch.tensor([score]), 1)
        assert tracker.best_metric() == pytest.approx(best)
    assert Forgetting(higher_is_better=False).higher_is_better is False
    assert BackwardTransfer(higher_is_better=False).higher_is_better is True


def test_rows_come_in_any_order_and_the_matrix_grows_with_them() -> None:
    metric = AverageAccuracy()
    metric.update(torch.tensor([0.5, 0.75]), 2)
    metric.update(torch.tensor([0.25]), 1)
    assert same(metric.matrix, torch.tensor([[nan, nan], [0.25, nan], [0.5, 0.75]]))
    metric.update(torch.tensor([0.1, 0.2, 0.3]), 0)
    expected = torch.tensor([[0.1, 0.2, 0.3], [0.25, nan, nan], [0.5, 0.75, nan], [nan] * 3])
    assert same(metric.matrix, expected)
    metric.update(torch.tensor([0.5]), 4)  # more tasks learned than measured
    assert metric.matrix.shape == (5, 4)
    assert metric.compute() == 0.5


def test_a_row_that_is_recorded_again_takes_the_place_of_the_old_one() -> None:
    metric = AverageAccuracy()
    metric.update(torch.tensor([0.5, 0.75]), 2)
    metric.update(torch.tensor([0.25]), 2)
    assert same(metric.matrix[2], torch.tensor([0.25, nan]))


def test_a_row_is_kept_apart_from_its_graph_and_from_later_changes() -> None:
    metric, row = AverageAccuracy(), torch.ones(2, requires_grad=True)
    assert not metric(row, 2).requires_grad  # update is given gradients when a metric is called
    with torch.no_grad():
        row.zero_()
    assert metric.compute() == 1.0


def test_a_call_returns_the_row_alone_and_records_it() -> None:
    metric, forgetting = AverageAccuracy(), Forgetting()
    for learned in range(4):
        value = metric(ROWS[learned], learned)
        assert same(value, ROWS[learned, :learned].nanmean())
        assert forgetting(ROWS[learned], learned).isnan()
    assert same(forgetting.compute(), functional.forgetting(ROWS))


def test_tasks_may_be_learned_in_any_order_and_again() -> None:
    order = [2, 0, 0]
    for build, function in (
        (AverageAccuracy, functional.average_accuracy),
        (LearningAccuracy, functional.learning_accuracy),
        (partial(LastTasksAccuracy, 1), partial(functional.last_tasks_accuracy, last=1)),
        (Forgetting, functional.forgetting),
        (BackwardTransfer, functional.backward_transfer),
        (ForwardTransfer, functional.forward_transfer),
        (partial(Intransigence, JOINT), partial(functional.intransigence, reference=torch.tensor(JOINT))),
    ):
        metric = build(order=order)
        told(metric)
        assert same(metric.compute(), function(ROWS, order=order))
        assert not same(metric.compute(), function(ROWS))


def test_reset_forgets_the_stream() -> None:
    metric = AverageAccuracy()
    told(metric)
    metric.reset()
    assert metric.matrix.shape == (1, 0)
    metric.update(torch.tensor([0.5]), 1)
    assert metric.compute() == 0.5


@every_metric
def test_a_stream_goes_on_from_a_state_dict_and_from_a_pickle(build: Callable, function: Callable) -> None:
    metric = build()
    told(metric, ROWS[:3])
    loaded = build()
    loaded.load_state_dict(metric.state_dict())
    for copy in (loaded, pickle.loads(pickle.dumps(metric)), metric.clone()):
        copy.update(ROWS[3], 3)
        assert same(copy.compute(), function(ROWS))
    assert metric.matrix.shape == (4, 3) and metric.matrix[3].isnan().all()


def test_a_state_dict_is_tensors_that_weights_only_loads(tmp_path: Path) -> None:
    metric = collection()
    told(metric)
    torch.save(metric.state_dict(), tmp_path / "state")
    loaded = collection()
    loaded.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert all(same(each.matrix, ROWS) for each in loaded.values())


def test_metrics_move_to_a_device_with_all_they_need() -> None:
    metric = Intransigence(JOINT).to("meta")
    assert metric.matrix.device.type == metric.device.type == "meta"
    metric.update(torch.rand(2, device="meta"), 2)
    assert metric.matrix.is_meta and metric.matrix.shape == (3, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_metrics_compute_on_a_gpu() -> None:
    metric = collection().to("cuda")
    told(metric)  # rows from the CPU
    expected = collection()
    told(expected)
    for name, value in metric.compute().items():
        assert value.is_cuda
        torch.testing.assert_close(value.cpu(), expected.compute()[name])


def test_double_precision_is_kept_where_it_is_asked_for() -> None:
    metric = AverageAccuracy().set_dtype(torch.float64)
    metric.update(torch.tensor([0.1], dtype=torch.float64), 1)
    assert metric.compute().item() == 0.1


@every_grouping
def test_a_collection_computes_what_its_metrics_do_alone(groups: Any) -> None:
    together, apart = collection(groups), collection(False)
    for rows in (ROWS.flip(1), ROWS):  # a second stream after a reset
        for both in (together, apart):
            both.reset()
            told(both, rows)
        for name, value in apart.compute().items():
            assert same(together.compute()[name], value)
        shared = len({id(metric.matrix) for metric in together.values(copy_state=False)}) == 1
        assert shared is isinstance(groups, list)


@every_grouping
def test_a_collection_that_is_called_computes_what_its_metrics_do_alone(groups: Any) -> None:
    together, apart = collection(groups), collection(False)
    told(apart)
    for learned, row in enumerate(ROWS):
        together(row, learned)
    for name, value in apart.compute().items():
        assert same(together.compute()[name], value)


def test_what_is_no_row_of_scores_is_refused() -> None:
    metric = AverageAccuracy()
    with pytest.raises(ValueError, match="one score per task"):
        metric.update(torch.zeros(2, 2), 1)
    with pytest.raises(ValueError, match="negative"):
        metric.update(torch.zeros(2), -1)
    with pytest.raises(ValueError, match="at least 1"):
        LastTasksAccuracy(last=0)


def in_two_processes(rank: int, folder: str) -> None:
    dist.init_process_group("gloo")
    equal, shares = collection(), AverageAccuracy()
    told(equal)
    for learned, row in enumerate(ROWS):
        shares.update(row if rank == 0 else torch.tensor([nan, row[1], row[2] + 0.5]), learned)
    values = {"equal": equal.compute(), "shares": shares.compute()}
    equal.update(ROWS[0], 3)  # the local matrix is back after compute
    values["later"] = equal.compute()
    torch.save(values, os.path.join(folder, f"{rank}.pt"))


def test_processes_that_hold_the_same_matrix_compute_what_one_does(tmp_path: Path) -> None:
    train_together(2, in_two_processes, str(tmp_path))
    alone = collection()
    told(alone)
    later = collection()
    told(later, torch.stack([ROWS[0], ROWS[1], ROWS[2], ROWS[0]]))
    for rank in range(2):
        values = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert all(same(values["equal"][name], value) for name, value in alone.compute().items())
        assert all(same(values["later"][name], value) for name, value in later.compute().items())
        # Task 0 was measured by the first process alone, task 2 differently by both.
        torch.testing.assert_close(values["shares"], torch.tensor((0.6 + 0.75 + (0.95 + 0.25)) / 3))


def test_equal_matrices_stay_equal_to_the_last_bit_in_any_number_of_processes() -> None:
    matrix = torch.rand(40, 39, generator=torch.Generator().manual_seed(0))
    matrix[3] = nan
    for processes in (2, 3, 7):
        reduced = AverageAccuracy()._reductions["matrix"](torch.stack([matrix] * processes))
        assert reduced.dtype == matrix.dtype and same(reduced, matrix)
