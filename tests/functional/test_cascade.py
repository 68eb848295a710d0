"""The cascade against a plain loop and its stationary distribution."""

from __future__ import annotations

import pytest
import torch

from cl_callbacks.functional.cascade import (
    cascade_,
    cascade_memory_trace,
    deepen_probabilities,
    switch_probabilities,
    transition_matrix,
)
from tests.references import cascade as reference


@pytest.mark.parametrize("levels", [1, 2, 5])
@pytest.mark.parametrize("x", [0.5, 0.3, 0.8])
def test_equals_a_plain_loop(levels: int, x: float) -> None:
    torch.manual_seed(0)
    states = torch.randint(1, levels + 1, (600,)) * (2 * torch.randint(0, 2, (600,)) - 1)
    events, uniform = 2 * torch.rand(600, dtype=torch.float64) - 1, torch.rand(600, dtype=torch.float64)
    events[:50], events[50:200] = 0.0, events[50:200].sign()
    found = states.double()
    cascade_([found], [events], [uniform], levels, x)
    triples = zip(states.tolist(), events.tolist(), uniform.tolist(), strict=True)
    expected = [reference.step(s, e, u, levels, x) for s, e, u in triples]
    assert found.tolist() == expected
    assert (found != states).float().mean() > 0.1


@pytest.mark.parametrize("levels", [1, 3, 10])
def test_probabilities_and_transitions_equal_the_reference(levels: int) -> None:
    for k in range(1, levels + 1):
        assert switch_probabilities(levels)[k - 1].item() == reference.switch_probability(k, levels)
        assert deepen_probabilities(levels)[k - 1].item() == reference.deepen_probability(k, levels)
    for share in (0.5, 0.8):
        expected = torch.tensor(reference.transition_matrix(levels, potentiation=share), dtype=torch.float64)
        found = transition_matrix(levels, potentiation=share)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    half = transition_matrix(levels, probability=0.5)
    eye = torch.eye(2 * levels, dtype=torch.float64)
    torch.testing.assert_close(half, (eye + transition_matrix(levels)) / 2)


@pytest.mark.parametrize("levels", [2, 6, 12])
def test_all_states_are_occupied_alike(levels: int) -> None:
    uniform = torch.full((2 * levels,), 0.5 / levels, dtype=torch.float64)
    matrix = transition_matrix(levels)
    torch.testing.assert_close(uniform @ matrix, uniform, rtol=0, atol=1e-10)
    start = torch.zeros(2 * levels, dtype=torch.float64)
    start[0] = 1
    settled = start @ torch.linalg.matrix_power(matrix, 2**20)
    torch.testing.assert_close(settled, uniform, rtol=0, atol=1e-10)


def test_the_signal_begins_at_two_over_the_number_of_levels() -> None:
    """… which the deepest levels make up for: a fresh event moves few of the synapses."""
    for levels in (2, 5, 10):
        assert cascade_memory_trace(torch.tensor([0]), levels)[0].item() == pytest.approx(
            2 / levels, abs=1e-12
        )


def test_a_simple_synapse_forgets_exponentially() -> None:
    ages = torch.arange(50)
    trace = cascade_memory_trace(ages, levels=1, probability=0.2)
    torch.testing.assert_close(trace, 0.2 * 0.8 ** ages.double())


def test_the_trace_is_that_of_simulated_synapses() -> None:
    levels, synapses = 4, 400_000
    generator = torch.Generator().manual_seed(0)

    def rand() -> torch.Tensor:
        return torch.rand(synapses, generator=generator)

    def stored(states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        states = states.clone()
        cascade_([states], [wanted], [rand()], levels)
        return states

    states = (1 + (levels * rand()).floor()) * (rand() - 0.5).sign()
    memory = (rand() - 0.5).sign()
    states = stored(states, memory)
    for age, expected in enumerate(cascade_memory_trace(torch.arange(12), levels).tolist()):
        signal = (states.sign() * memory).mean().item()
        assert signal == pytest.approx(expected, abs=5 / synapses**0.5), age
        states = stored(states, (rand() - 0.5).sign())
