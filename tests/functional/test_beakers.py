"""The flow between beakers against a plain loop and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cl_callbacks.functional.beakers import (
    beaker_memory_trace,
    capacities,
    conductances,
    flow_,
    flow_matrix,
    largest_coupling,
    timescales,
)
from tests.references import beakers as reference


def levels_of(beakers: int, seed: int = 0) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, 3), (4,)]
    return [
        [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes] for _ in range(beakers)
    ]


@pytest.mark.parametrize("beakers", [1, 2, 5])
@pytest.mark.parametrize("ratio", [2.0, 1.5])
@pytest.mark.parametrize("leak", [True, False])
@pytest.mark.parametrize("gated", [True, False])
def test_equals_a_plain_loop(beakers: int, ratio: float, leak: bool, gated: bool) -> None:
    levels = levels_of(beakers)
    slow = [[t.clone() for t in level] for level in levels]
    gates = [torch.rand_like(t) for t in levels[0]] if gated else None
    c, g = capacities(beakers, ratio), conductances(beakers, 0.3, ratio, leak)
    assert c == reference.capacities(beakers, ratio)
    assert g == pytest.approx(reference.conductances(beakers, 0.3, ratio, leak))
    for _ in range(3):
        flow_(levels, c, g, gates)
        for i in range(2):
            gate = None if gates is None else gates[i]
            for level, new in zip(
                slow, reference.flow([level[i] for level in slow], c, g, gate), strict=True
            ):
                level[i] = new
    for fast, expected in zip(levels, slow, strict=True):
        assert all(map(torch.allclose, fast, expected))


def test_what_is_conserved_changes_by_the_input_and_the_leak_alone() -> None:
    c, g = capacities(6), conductances(6, 0.4)
    levels = levels_of(6)

    def content() -> Tensor:
        return sum(ck * level[0] for ck, level in zip(c, levels, strict=True))  # type: ignore[return-value]

    for step in range(200):
        learned = torch.randn(2, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        levels[0][0] += learned
        before, drained = content(), g[-1] * levels[-1][0]
        flow_(levels, c, g)
        torch.testing.assert_close(content(), before - drained, rtol=0, atol=1e-10)


def test_without_a_leak_all_beakers_end_at_one_level() -> None:
    c, g = capacities(4), conductances(4, 0.5, leak=False)
    levels = levels_of(4)
    mean = sum(ck * level[0] for ck, level in zip(c, levels, strict=True)) / sum(c)
    for _ in range(5000):
        flow_(levels, c, g)
    for level in levels:
        torch.testing.assert_close(level[0], mean, rtol=0, atol=1e-10)


def test_one_beaker_is_a_decay_of_the_weight() -> None:
    levels = levels_of(1)
    expected = [0.9**10 * t for t in levels[0]]
    for _ in range(10):
        flow_(levels, capacities(1), conductances(1, 0.1))
    assert all(map(torch.allclose, levels[0], expected))


def test_the_first_level_may_be_held() -> None:
    free, held = levels_of(4), levels_of(4)
    c, g = capacities(4), conductances(4, 0.4, leak=False)
    flow_(free, c, g)
    flow_(held, c, g, hold_first=True)
    assert all(map(torch.equal, held[0], levels_of(4)[0]))
    for k in (1, 2, 3):
        assert all(map(torch.equal, held[k], free[k]))


@pytest.mark.parametrize("ratio", [1.0, 1.5, 2.0, 4.0])
def test_no_overshoot_up_to_the_largest_coupling(ratio: float) -> None:
    for beakers in (1, 2, 3, 8):
        g = conductances(beakers, largest_coupling(ratio), ratio)
        eigenvalues = torch.linalg.eigvals(flow_matrix(capacities(beakers, ratio), g)).real
        assert eigenvalues.min() >= -1e-12
        assert eigenvalues.max() < 1
    # The bound is no larger than it need be: of a long row of equal beakers twice as much diverges.
    g = conductances(64, 2.2 * largest_coupling(1.0), 1.0)
    assert torch.linalg.eigvals(flow_matrix(capacities(64, 1.0), g)).real.min() < -1


@pytest.mark.parametrize("beakers", [6, 10])
def test_an_impulse_fades_as_the_inverse_root_of_its_age(beakers: int) -> None:
    """Slope −0.50 ± 0.02 in double logarithms, where the chain is neither at its beginning nor its end."""
    coupling = 0.25
    last = timescales(beakers, coupling)[-1]
    ages = torch.logspace(math.log10(32), math.log10(last / 8), 40, dtype=torch.float64).round()
    trace, _ = beaker_memory_trace(ages, capacities(beakers), conductances(beakers, coupling))
    x, y = ages.log(), trace.log()
    slope = ((x - x.mean()) @ (y - y.mean()) / (x - x.mean()).square().sum()).item()
    assert slope == pytest.approx(-0.5, abs=0.02)


def test_the_trace_is_that_of_the_flow() -> None:
    c, g = capacities(5), conductances(5, 0.3)
    ages = torch.arange(60)
    trace, energy = beaker_memory_trace(ages, c, g)
    expected = torch.tensor(reference.impulse_response(59, 5, 0.3, 2.0, True), dtype=torch.float64)
    torch.testing.assert_close(trace, expected, rtol=0, atol=1e-12)
    long, _ = beaker_memory_trace(torch.arange(20_000), c, g)
    assert energy == pytest.approx(long.square().sum().item(), rel=1e-9)
    flowing = [[torch.zeros(1, dtype=torch.float64)] for _ in range(5)]
    flowing[0][0] += 1
    for age in range(60):
        assert flowing[0][0].item() == pytest.approx(trace[age].item(), abs=1e-12)
        flow_(flowing, c, g)


def test_weights_of_several_dtypes_each_flow_in_the_wider_of_theirs_and_their_beakers() -> None:
    """A narrow weight is rounded once; a wide one keeps its digits beside narrow beakers."""
    dtypes = [torch.float32, torch.bfloat16, torch.float64]
    weights = [torch.full((2,), 1.0 + 2.0**-40 * (d == torch.float64), dtype=d) for d in dtypes]
    beakers = [torch.zeros(2) for _ in dtypes]
    flow_([weights, beakers], capacities(2), conductances(2, 0.5, leak=False))
    for weight, dtype in zip(weights, dtypes, strict=True):
        assert weight.dtype == dtype
        assert torch.allclose(weight.double(), torch.full((2,), 0.5, dtype=torch.float64), rtol=1e-12)
    assert (weights[2] != 0.5).all()
    assert all((beaker == 0.25).all() for beaker in beakers)
