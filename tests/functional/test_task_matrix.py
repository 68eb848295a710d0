"""What a stream of tasks has left behind: by hand, and against loops over lists."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nan

from cl_callbacks import functional
from tests.references import task_matrix as reference

#        task:  0     1     2
MATRIX = torch.tensor(
    [
        [0.10, 0.20, 0.30],  # before training
        [0.80, 0.25, 0.35],  # task 0 learned
        [0.90, 0.70, 0.50],
        [0.60, 0.75, 0.95],
    ],
    dtype=torch.float64,
)
JOINT = torch.tensor([0.9, 0.9, 1.0], dtype=torch.float64)

# Worked by hand: after no, one, two and all three tasks.
BY_HAND: dict[str, tuple[Callable[..., Tensor], list[float]]] = {
    "average_accuracy": (
        functional.average_accuracy,
        [nan, 0.80, (0.90 + 0.70) / 2, (0.60 + 0.75 + 0.95) / 3],
    ),
    "last_tasks_accuracy": (
        partial(functional.last_tasks_accuracy, last=2),
        [nan, 0.80, (0.90 + 0.70) / 2, (0.75 + 0.95) / 2],
    ),
    "learning_accuracy": (
        functional.learning_accuracy,
        [nan, 0.80, (0.80 + 0.70) / 2, (0.80 + 0.70 + 0.95) / 3],
    ),
    # Task 0 was best after task 1, and task 1 is better now than it ever was.
    "forgetting": (
        functional.forgetting,
        [nan, nan, 0.80 - 0.90, ((0.90 - 0.60) + (0.70 - 0.75)) / 2],
    ),
    "backward_transfer": (
        functional.backward_transfer,
        [nan, nan, 0.90 - 0.80, ((0.60 - 0.80) + (0.75 - 0.70)) / 2],
    ),
    "forward_transfer": (
        functional.forward_transfer,
        [nan, nan, 0.25 - 0.20, ((0.25 - 0.20) + (0.50 - 0.30)) / 2],
    ),
    "intransigence": (
        partial(functional.intransigence, reference=JOINT),
        [nan, 0.9 - 0.8, ((0.9 - 0.8) + (0.9 - 0.7)) / 2, ((0.9 - 0.8) + (0.9 - 0.7) + (1.0 - 0.95)) / 3],
    ),
}
DIFFERENCES = ["forgetting", "forgetting_per_task", "backward_transfer", "forward_transfer"]


def until(matrix: Tensor, learned: int) -> Tensor:
    """What is known of a stream when so many of its tasks have been learned."""
    known = matrix.clone()
    known[learned + 1 :] = nan
    return known


def close(value: Tensor, expected: Any) -> None:
    torch.testing.assert_close(value, torch.as_tensor(expected, dtype=value.dtype), equal_nan=True)


def random_matrices(count: int, tasks: int = 5) -> list[Tensor]:
    """Streams with a random share of the scores missing and a random number of tasks learned."""
    random = torch.Generator().manual_seed(0)
    matrices = []
    for n in range(count):
        matrix = torch.rand(tasks + 1, tasks, generator=random, dtype=torch.float64)
        missing = torch.rand(matrix.shape, generator=random) < (n % 4) * 0.25
        matrices.append(until(matrix.masked_fill(missing, nan), n % (tasks + 1)))
    return matrices


@pytest.mark.parametrize("learned", range(4))
@pytest.mark.parametrize("name", BY_HAND)
def test_every_quantity_is_what_it_is_by_hand_after_each_task(name: str, learned: int) -> None:
    function, expected = BY_HAND[name]
    close(function(until(MATRIX, learned)), expected[learned])


def test_the_forgetting_of_each_task_is_what_it_is_by_hand() -> None:
    close(functional.forgetting_per_task(MATRIX), [0.90 - 0.60, 0.70 - 0.75, nan])
    close(functional.forgetting_per_task(until(MATRIX, 2)), [0.80 - 0.90, nan, nan])


def test_losses_that_rise_are_forgotten_and_losses_that_fall_are_transferred() -> None:
    losses = torch.tensor([[2.0, 3.0], [0.5, 2.5], [1.5, 0.25]])
    assert functional.forgetting(losses, higher_is_better=False) == 1.0  # 1.5 - 0.5
    assert functional.backward_transfer(losses, higher_is_better=False) == -1.0
    assert functional.forward_transfer(losses, higher_is_better=False) == 0.5  # 3.0 - 2.5
    reference_losses = torch.tensor([0.25, 0.25])
    assert functional.intransigence(losses, reference_losses, higher_is_better=False) == 0.125
    assert functional.average_accuracy(losses) == 0.875  # (1.5 + 0.25) / 2


@pytest.mark.parametrize("name", [name for name in BY_HAND if "last" not in name and name != "intransigence"])
def test_random_streams_with_gaps_agree_with_loops_over_lists(name: str) -> None:
    for matrix in random_matrices(48):
        close(getattr(functional, name)(matrix), getattr(reference, name)(matrix.tolist()))


def test_what_else_is_asked_of_a_stream_agrees_with_loops_over_lists() -> None:
    for n, matrix in enumerate(random_matrices(48)):
        scores, joint = matrix.tolist(), torch.rand(6, dtype=torch.float64)
        assert functional.tasks_learned(matrix) == reference.learned(scores)
        close(functional.forgetting_per_task(matrix), reference.forgetting_per_task(scores))
        close(functional.intransigence(matrix, joint), reference.intransigence(scores, joint.tolist()))
        last = 1 + n % 7
        close(functional.last_tasks_accuracy(matrix, last), reference.last_tasks_accuracy(scores, last))


@pytest.mark.parametrize("name", DIFFERENCES)
def test_lower_is_better_is_higher_is_better_of_the_negated_scores(name: str) -> None:
    function = getattr(functional, name)
    for matrix in random_matrices(24):
        close(function(matrix, higher_is_better=False), function(-matrix))


def test_an_intransigence_in_losses_is_that_of_negated_scores() -> None:
    for matrix in random_matrices(24):
        joint = torch.rand(5, dtype=torch.float64)
        close(
            functional.intransigence(matrix, joint, higher_is_better=False),
            functional.intransigence(-matrix, -joint),
        )


def test_a_score_from_before_a_task_was_learned_is_no_memory_of_it() -> None:
    matrix = torch.tensor([[0.1, 1.0, 0.1], [0.5, 1.0, 0.1], [0.5, 0.5, 0.1], [0.5, 0.25, 0.5]])
    close(functional.forgetting_per_task(matrix), [0.0, 0.25, nan])


def test_a_perplexity_that_overflowed_is_forgotten_without_bound() -> None:
    matrix = torch.tensor([[9.0, 9.0], [2.0, 9.0], [torch.inf, 2.0]])
    assert functional.forgetting(matrix, higher_is_better=False) == torch.inf
    assert functional.backward_transfer(matrix, higher_is_better=False) == -torch.inf


@pytest.mark.parametrize("shape", [(3, 3), (3,), (2, 3), (4, 3, 1)])
@pytest.mark.parametrize("name", [name for name in BY_HAND if name != "intransigence"])
def test_a_matrix_of_another_shape_is_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(T \+ 1, T\).*before any training"):
        BY_HAND[name][0](torch.zeros(shape))


def test_references_that_do_not_cover_the_tasks_learned_are_refused() -> None:
    two = torch.tensor([0.9, 0.9])
    close(functional.intransigence(until(MATRIX, 2), two), 0.15)
    with pytest.raises(ValueError, match="3 tasks have been learned"):
        functional.intransigence(MATRIX, two)


def random_orders(count: int) -> list[tuple[Tensor, list[int | None]]]:
    """Matrices of 1 to 7 tasks on 4 loaders in random orders, with repetitions and tasks without a loader."""
    random = torch.Generator().manual_seed(1)
    made = []
    for n in range(count):
        rows = 2 + n % 7
        matrix = torch.rand(rows, 4, generator=random, dtype=torch.float64)
        missing = torch.rand(matrix.shape, generator=random) < (n % 3) * 0.2
        drawn = torch.randint(5, (rows - 1,), generator=random).tolist()
        made.append((matrix.masked_fill(missing, nan), [None if task == 4 else task for task in drawn]))
    return made


@pytest.mark.parametrize("higher", [True, False])
def test_tasks_in_any_order_agree_with_loops_over_lists(higher: bool) -> None:
    for matrix, order in random_orders(70):
        expected = reference.in_order(matrix.tolist(), order, 1.0 if higher else -1.0)
        for name, value in expected.items():
            given = {} if "accuracy" in name else {"higher_is_better": higher}
            close(getattr(functional, name)(matrix, order=order, **given), value)


def test_an_order_is_the_same_as_columns_in_that_order() -> None:
    permuted = MATRIX[:, [1, 2, 0]]  # column 0 is of the task learned second
    for function, _ in BY_HAND.values():
        if function is not BY_HAND["intransigence"][0]:
            close(function(permuted, order=[2, 0, 1]), function(MATRIX))
    close(
        functional.intransigence(permuted, JOINT[[1, 2, 0]], order=[2, 0, 1]), BY_HAND["intransigence"][1][3]
    )


def test_a_task_that_is_learned_twice_is_by_hand() -> None:
    #                        task:  0    1
    matrix = torch.tensor([[0.1, 0.2], [0.8, 0.3], [0.5, 0.9], [0.7, 0.6], [0.4, 0.8]]).double()
    order = [0, 1, 0, 1]
    close(functional.average_accuracy(matrix, order), 0.6)
    close(functional.forgetting_per_task(matrix, order=order), [0.8 - 0.4, nan])
    close(functional.backward_transfer(matrix, order=order), 0.4 - 0.7)  # since it was learned last
    close(functional.forward_transfer(matrix, order=order), 0.3 - 0.2)
    close(functional.learning_accuracy(matrix, order), (0.8 + 0.9 + 0.7 + 0.8) / 4)
    close(functional.last_tasks_accuracy(matrix, 1, order), 0.8)


def test_an_order_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"more than once.*give `order`"):
        functional.forgetting(torch.rand(5, 2))
    with pytest.raises(ValueError, match="each of the 3 tasks learned, below 3"):
        functional.forgetting(MATRIX, order=[0, 1])
    with pytest.raises(ValueError, match="below 3"):
        functional.forgetting(MATRIX, order=[0, 1, 3])


def test_no_tasks_to_look_back_on_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        functional.last_tasks_accuracy(MATRIX, last=0)


def test_a_stream_without_tasks_has_no_figures() -> None:
    for function, _ in BY_HAND.values():
        assert function(torch.empty(1, 0)).isnan()
