"""Random numbers beside parameters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cl_callbacks.tensors import random_numbers
from cl_callbacks.tensors.random_numbers import Draws

FILLS = {"normal": (Tensor.normal_, 0.0, 1.0), "uniform": (Tensor.uniform_, 0.5, 12**-0.5)}


def drawn(fill: object, sizes: list[int], seed: int = 0, number: int = 0) -> list[Tensor]:
    parameters = [torch.zeros(size) for size in sizes]
    draws = Draws(fill, parameters, parameters)  # type: ignore[arg-type]
    draws.draw(seed, number)
    return [draws[p] for p in parameters]


@pytest.mark.parametrize("kind", FILLS)
def test_pieces_differ_and_are_distributed_as_they_should_be(kind: str) -> None:
    fill, mean, std = FILLS[kind]
    (found,) = drawn(fill, [3 * random_numbers.PIECE + 5])
    pieces = found[: 3 * random_numbers.PIECE].view(3, -1)
    assert pieces.mean(1).tolist() == pytest.approx([mean] * 3, abs=5 * std / random_numbers.PIECE**0.5)
    assert pieces.std(1).tolist() == pytest.approx([std] * 3, rel=0.01)
    correlations = torch.corrcoef(pieces) - torch.eye(3)
    assert correlations.abs().max() < 5 / random_numbers.PIECE**0.5
    assert (found[-5:] != 0).all()


@pytest.mark.parametrize("kind", FILLS)
def test_the_number_of_threads_makes_no_difference(kind: str) -> None:
    sizes = [random_numbers.PIECE, 7, random_numbers.PIECE + 3]
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(drawn(FILLS[kind][0], sizes, 1, 2))
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *found))


def test_seed_and_number_make_a_difference_and_nothing_else_does() -> None:
    state = torch.get_rng_state()
    (first,), (again,) = drawn(Tensor.normal_, [50]), drawn(Tensor.normal_, [50])
    assert torch.equal(first, again)
    assert torch.equal(state, torch.get_rng_state())
    for other in (drawn(Tensor.normal_, [50], seed=1), drawn(Tensor.normal_, [50], number=1)):
        assert (other[0] != first).all()


def test_dtypes_have_numbers_of_their_own() -> None:
    parameters = [torch.zeros(50), torch.zeros(50, dtype=torch.float64)]
    draws = Draws(Tensor.normal_, parameters, parameters)
    draws.draw(0, 0)
    single, double = (draws[p] for p in parameters)
    assert single.dtype != double.dtype
    assert ((single - double).abs() > 1e-3).float().mean() > 0.9


def test_they_are_beside_their_parameters_alone() -> None:
    a, b = torch.zeros(2, 3), torch.zeros(4)
    draws = Draws(Tensor.normal_, [a, b], [a, b])
    assert draws[a].shape == (2, 3)
    assert a in draws
    assert torch.zeros(4) not in draws
    assert draws.are_beside([a, b], [a, b])
    assert not draws.are_beside([b, a], [b, a])
    assert not draws.are_beside([a], [a])
    assert not draws.are_beside([a, b], [a, torch.zeros(5)])  # the state of a parameter that has grown
    assert not draws.are_beside([a, b], [a.double(), b])
    Draws(Tensor.normal_).draw(0, 0)  # of none


def test_they_may_be_drawn_where_nothing_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_numbers, "PIECE", 16)
    learning = drawn(Tensor.normal_, [50])
    with torch.inference_mode():
        inferring = drawn(Tensor.normal_, [50])
    assert torch.equal(*learning, *inferring)
