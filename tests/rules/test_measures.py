"""What each rule lets be seen of its synapses, against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cl_callbacks import BGD, EWC, MESU, BennaFusi, Cascade, KFACLaplace, MetaplasticGate, SynapticCallback
from cl_callbacks.functional.cascade import switch_probabilities
from tests.every_rule import (
    CONSOLIDATING,
    DISTILLING,
    PULLING,
    RECYCLING,
    REHEARSING,
    RENEWING,
    every_rule,
    make,
)
from tests.small import Net, fit_tasks, plain_net

RATE = 1e-2


def measures(rule: SynapticCallback, rate: float = RATE) -> dict[str, list[Tensor]]:
    view = rule.synapses.view
    with torch.no_grad():
        return rule.measures(view, [rate] * len(view))


def after_tasks(rule: SynapticCallback, tasks: int = 2, net: nn.Module | None = None) -> SynapticCallback:
    fit_tasks(Net(net or plain_net()), rule, tasks=tasks)
    return rule


@every_rule
def test_measures_are_of_each_synapse_finite_and_never_negative(rule: str) -> None:
    memory = after_tasks(make(rule), net=Net().net)
    view = memory.synapses.view
    for theta in view.parameters:
        theta.data += 0.1  # the anchor of some is where the weights are when a task has ended
    found = measures(memory)
    without = {*REHEARSING, *DISTILLING, *RENEWING, *RECYCLING}  # which know nothing of single weights
    assert bool(found) == (rule not in without)
    assert ("importance" in found) == (rule in PULLING)
    assert ("distance" in found) == (rule in {*PULLING, *CONSOLIDATING} - RENEWING)
    for measure, values in found.items():
        assert [value.shape for value in values] == [p.shape for p in view.parameters], measure
        assert all(value.isfinite().all() and (value >= 0).all() for value in values), measure
        assert any(value.any() for value in values), measure
    assert all((value <= 1).all() for value in found.get("plasticity", []))


@every_rule
def test_a_part_of_the_synapses_is_seen_as_in_the_whole(rule: str) -> None:
    memory = after_tasks(make(rule))
    view, whole = memory.synapses.view, measures(memory)
    for i, source in enumerate(view.sources):
        part = memory.measures(view.restrict_to([source]), [RATE])
        assert part.keys() == whole.keys()
        assert all(torch.equal(part[measure][0], whole[measure][i]) for measure in whole)


def test_plasticity_importance_and_drift_of_a_rule_with_an_anchor() -> None:
    memory = after_tasks(EWC(20.0))
    view, found = memory.synapses.view, measures(memory)
    for i, theta in enumerate(view.parameters):
        theta.data += 0.5
        fisher = view["importance"][i]
        torch.testing.assert_close(found["plasticity"][i], 1 / (1 + RATE * 20.0 * fisher))
        assert torch.equal(found["importance"][i], fisher)
        torch.testing.assert_close(measures(memory)["distance"][i], torch.full_like(theta, 0.5))


@pytest.mark.parametrize("rule", [r for r in PULLING if "streaming" not in r and r != "l2init"])
def test_before_anything_was_important_there_is_plasticity_alone(rule: str) -> None:
    memory = make(rule)
    memory._place(Net(plain_net()))
    found = measures(memory)
    assert list(found) == ["plasticity"]
    assert all((value == 1).all() for value in found["plasticity"])


def test_importance_shows_also_of_a_rule_that_does_not_pull() -> None:
    found = measures(after_tasks(EWC(0.0), tasks=1))
    assert any(value.any() for value in found["importance"])
    assert all((value == 1).all() for value in found["plasticity"])


@pytest.mark.parametrize("accumulate", ["nearest", "list"])
def test_factors_are_seen_as_the_diagonal_of_their_dense_products(accumulate: str) -> None:
    net = nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)),
        nn.Conv2d(1, 4, 2),
        nn.Flatten(),
        nn.LayerNorm(8),
        nn.Linear(8, 3),
        nn.Linear(3, 3, bias=False),
    )
    memory = after_tasks(KFACLaplace(20.0, accumulate=accumulate), net=net)
    found, names = measures(memory), memory.synapses.view.names
    expected = dict(zip(names, memory.synapses.view["importance"], strict=True))
    assert set(memory.memory.factors) == {"net.1.weight", "net.4.weight", "net.5.weight"}
    for name, terms in memory.memory.factors.items():
        dense = sum(torch.kron(term.outputs, term.inputs) for term in terms)
        diagonal = dense.diagonal().view(len(terms[0].outputs), -1)
        weight = expected[name]
        expected[name] = diagonal[:, : weight[0].numel()].reshape(weight.shape)
        if (bias := name.replace("weight", "bias")) in names:
            expected[bias] = diagonal[:, -1]
    for name, importance, plasticity in zip(names, found["importance"], found["plasticity"], strict=True):
        assert importance.any(), name
        torch.testing.assert_close(importance, expected[name])
        torch.testing.assert_close(plasticity, 1 / (1 + RATE * 20.0 * expected[name]))


def test_seeing_factors_leaves_the_penalty_as_it_is() -> None:
    memory = after_tasks(KFACLaplace(20.0))
    view = memory.synapses.view
    for theta in view.parameters:
        theta.data += 0.1
    before = memory.penalty(view)
    measures(memory)
    assert torch.equal(memory.penalty(view), before)


def test_a_bias_without_its_weight_is_seen_in_the_last_column() -> None:
    memory = after_tasks(KFACLaplace(20.0))
    view = memory.synapses.view
    i = view.names.index("net.2.bias")
    alone = memory.measures(view.restrict_to([view.sources[i]]), [RATE])
    (pair,) = memory.memory.factors["net.2.weight"]
    expected = pair.outputs.diagonal() * pair.inputs[-1, -1]
    torch.testing.assert_close(alone["importance"][0], expected)


@pytest.mark.parametrize("rule", [BennaFusi(4, 0.2), MESU(100, prior="chain", beakers=4, coupling=0.1)])
def test_beakers_are_seen_as_distances_between_neighbours(rule: SynapticCallback) -> None:
    after_tasks(rule)
    view, found = rule.synapses.view, measures(rule)
    levels = [view.parameters, *(view[f"beaker_{k}"] for k in (2, 3, 4))]
    for k in (1, 2, 3):
        for upper, lower, distance in zip(
            levels[k - 1], levels[k], found[f"beaker_distance_{k}"], strict=True
        ):
            assert torch.equal(distance, (upper - lower).abs())
    assert "beaker_distance_4" not in found


@pytest.mark.parametrize(("rule", "std"), [(BGD(0.1), 0.1), (MESU(100, 0.2), 0.2)])
def test_uncertain_synapses_show_their_standard_deviation(rule: SynapticCallback, std: float) -> None:
    after_tasks(rule)
    found = measures(rule)
    for mine, plasticity, sigma in zip(
        found["std"], found["plasticity"], rule.synapses.view["std"], strict=True
    ):
        assert torch.equal(mine, sigma)
        torch.testing.assert_close(plasticity, (sigma**2 / std**2).clamp(max=1))


def test_levels_of_a_cascade_have_no_sign() -> None:
    rule = after_tasks(Cascade(3))
    found, q = measures(rule), switch_probabilities(3).float()
    signed = torch.cat([level.flatten() for level in rule.synapses.view["level"]])
    levels = torch.cat([level.flatten() for level in found["level"]])
    assert (signed < 0).any()
    assert torch.equal(levels, signed.abs())
    plasticity = torch.cat([p.flatten() for p in found["plasticity"]])
    assert torch.equal(plasticity, q[levels.long() - 1])


def test_a_gate_shows_what_it_lets_through() -> None:
    rule = after_tasks(MetaplasticGate(5.0))
    for gate, weight in zip(measures(rule)["plasticity"], rule.synapses.view.parameters, strict=True):
        torch.testing.assert_close(gate, 1 - (5.0 * weight.detach()).tanh() ** 2)
