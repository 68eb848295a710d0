"""Equations on units, against loops over single ones."""

from __future__ import annotations

import math

import pytest
import torch

from cl_callbacks.functional import (
    bias_shift,
    debiased,
    held_magnitude,
    incoming_magnitude,
    outgoing_magnitude,
    relative_activity,
    silence_log_probability,
)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("kernel", [(), (2, 2)])
def test_magnitudes_of_the_weights_around_a_unit(columns: int, kernel: tuple[int, ...]) -> None:
    weight = random(4, 5 * columns, *kernel)
    for i, found in enumerate(outgoing_magnitude([weight, 2 * weight], 5)):
        own = weight[:, i * columns : (i + 1) * columns].flatten().tolist()
        assert float(found) == pytest.approx(3 * sum(map(abs, own)), rel=1e-12)
    rows = weight.transpose(0, 1)
    for i, found in enumerate(incoming_magnitude(rows, 5)):
        own = rows[i * columns : (i + 1) * columns].flatten().tolist()
        assert float(found) == pytest.approx(sum(map(abs, own)), rel=1e-12)


@pytest.mark.parametrize("columns", [1, 3])
def test_what_holds_a_unit_is_what_earlier_tasks_lose_without_it(columns: int) -> None:
    """Of a rule that pulls: the penalty of weights that go to 0, with the step's size in front."""
    readers = [random(4, 5 * columns), random(2, 5 * columns) + 1]
    importance, stiffness = [r.flip(0).abs() for r in readers], 0.3
    plasticity = [1 / (1 + stiffness * omega) for omega in importance]
    for i, found in enumerate(held_magnitude(readers, plasticity, 5)):
        own = slice(i * columns, (i + 1) * columns)
        lost = sum(
            float((o[:, own] * r[:, own] ** 2).sum()) for o, r in zip(importance, readers, strict=True)
        )
        assert float(found) == pytest.approx(stiffness * lost, rel=1e-9)
    assert not held_magnitude(readers, [torch.ones_like(r) for r in readers], 5).any()
    assert held_magnitude(readers, [torch.zeros_like(r) for r in readers], 5).isfinite().all()


def test_an_average_of_one_value_is_that_value_at_any_age() -> None:
    average, ages = torch.zeros(2), []
    for age in range(1, 40):
        average.lerp_(torch.tensor([3.0, -2.0]), 0.1)
        ages.append(debiased(average, 0.9, torch.tensor([float(age)])))
    torch.testing.assert_close(torch.stack(ages), torch.tensor([[3.0, -2.0]]).expand(39, 2))
    assert debiased(torch.zeros(1), 0.9, torch.zeros(1)).tolist() == [0.0]


def test_a_bias_makes_up_for_inputs_at_their_mean() -> None:
    layer, gone = torch.nn.Linear(6, 4).double(), torch.tensor([1, 4])
    mean = random(6)
    before = layer(mean)
    with torch.no_grad():
        layer.bias += bias_shift(layer.weight, mean, gone)
        layer.weight[:, gone] = 0.0
    torch.testing.assert_close(layer(mean), before, rtol=0, atol=1e-14)


def test_a_bias_makes_up_for_channels_away_from_the_border() -> None:
    layer, mean = torch.nn.Conv2d(3, 2, 3).double(), random(3)
    images = mean[None, :, None, None].expand(1, 3, 5, 5)
    before = layer(images)
    with torch.no_grad():
        layer.bias += bias_shift(layer.weight, mean, torch.tensor([2]))
        layer.weight[:, 2] = 0.0
    torch.testing.assert_close(layer(images), before, rtol=0, atol=1e-14)


def test_activity_beside_that_of_the_layer() -> None:
    assert relative_activity(torch.tensor([0.0, 2.0, 4.0])).tolist() == [0.0, 1.0, 2.0]
    assert relative_activity(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def test_a_silence_is_as_likely_as_so_many_misses() -> None:
    values = [[0.3, 0.01, 1.0, 0.0], [5.0, 100.0, 0.0, 9.0]]
    rate, silent = torch.tensor(values, dtype=torch.float64)
    found = silence_log_probability(rate, silent).exp().tolist()
    assert found == pytest.approx([math.prod([0.7] * 5), 0.99**100, 1.0, 1.0], rel=1e-9)
