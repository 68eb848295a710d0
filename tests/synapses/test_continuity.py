"""Weights that were begun anew, and others that were not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_callbacks.synapses.continuity import ELEMENTS, Continuity
from cl_callbacks.synapses.state import Synapses
from cl_callbacks.synapses.view import SynapseView
from tests.small import CLASSES, FEATURES, task

STEPS = 200


def view_of(net: nn.Module) -> SynapseView:
    named = dict(net.named_parameters())
    return Synapses({}).place(named, list(named))


def network(seed: int = 0, adapter: bool = False) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(FEATURES, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, CLASSES)
    )
    if adapter:  # begins at 0, as the second matrix of an adapter of low rank
        nn.init.zeros_(net[2].weight)
    nn.init.zeros_(net[2].bias)
    return net


def trained(net: nn.Module, kind: type[torch.optim.Optimizer], rate: float) -> list[dict[str, Tensor]]:
    """The network's weights at every tenth step of a training, from the second step on."""
    x, y = task(0, 48)
    optimizer, found = kind(net.parameters(), lr=rate), []
    for step in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(net(x[step % 3 :: 3]), y[step % 3 :: 3]).backward()
        optimizer.step()
        if step % 10 == 1:  # not after the first, in which a layer before zeros has no gradient
            found.append({name: t.clone() for name, t in net.state_dict().items()})
    return found


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize(
    ("kind", "rate"), [(torch.optim.SGD, 0.5), (torch.optim.Adam, 3e-3), (torch.optim.Adam, 0.1)]
)
def test_no_point_on_the_way_of_a_training_is_new(
    kind: type[torch.optim.Optimizer], rate: float, adapter: bool
) -> None:
    for seed in range(5):
        way = trained(network(seed, adapter), kind, rate)
        for best in way:
            continuity, net = Continuity(), network(seed, adapter)
            continuity.begin(view_of(net))
            net.load_state_dict(way[-1])
            continuity.end(view_of(net))
            net.load_state_dict(best)
            assert continuity.begin(view_of(net)) == []


@pytest.mark.parametrize("known", [False, True])
def test_a_layer_that_is_drawn_again_is_new(known: bool) -> None:
    found = []
    for seed in range(20):
        net, continuity = network(seed), Continuity()
        if known:
            continuity.begin(view_of(net))
        trained(net, torch.optim.Adam, 3e-3)
        continuity.end(view_of(net))
        torch.manual_seed(100 + seed)
        net[2].reset_parameters()
        net[4] = nn.Linear(16, CLASSES)  # under the name of the old one
        found += continuity.begin(view_of(net))
    assert found.count("2.weight") == 20
    assert found.count("4.weight") >= 16  # of 48 elements chance may make two alike
    assert not {"0.weight", "0.bias"} & set(found)


def test_zeros_are_new_whatever_their_number() -> None:
    net, continuity = nn.Linear(2, 2), Continuity()
    continuity.end(view_of(net))
    nn.init.zeros_(net.bias)
    assert continuity.begin(view_of(net)) == ["bias"]


def test_weights_that_are_those_of_the_start_again_are_new() -> None:
    """As of a layer that is reset with the random numbers of the first time."""
    net, continuity = network(), Continuity()
    continuity.begin(view_of(net))
    trained(net, torch.optim.Adam, 1e-3)
    continuity.end(view_of(net))
    net[2].load_state_dict(network()[2].state_dict())
    assert continuity.begin(view_of(net)) == ["2.weight", "2.bias"]


def test_zeros_that_were_zero_are_not() -> None:
    net, continuity = nn.Linear(2, 2), Continuity()
    nn.init.zeros_(net.bias)
    continuity.end(view_of(net))
    assert continuity.begin(view_of(net)) == []


def test_is_said_once() -> None:
    net, continuity = nn.Linear(16, 16, bias=False), Continuity()
    for expected in (["weight"], [], []):
        continuity.end(view_of(net))
        net.reset_parameters()
        assert continuity.begin(view_of(net)) == expected


def test_a_head_that_has_grown_is_not_compared() -> None:
    continuity = Continuity()
    continuity.end(view_of(nn.Linear(16, 3)))
    assert continuity.begin(view_of(nn.Linear(16, 5))) == []


@pytest.mark.parametrize("shape", [(40, 40), (1024,), (2000, 3), (7, 300)])
def test_a_sample_of_large_tensors_is_enough(shape: tuple[int, ...]) -> None:
    assert torch.Size(shape).numel() >= ELEMENTS
    weight, continuity = nn.Parameter(torch.randn(shape)), Continuity()
    view = Synapses({}).place({"weight": weight}, ["weight"])
    continuity.end(view)
    assert continuity.begin(view) == []
    with torch.no_grad():
        weight.copy_(torch.randn(shape))
    assert continuity.begin(view) == ["weight"]


def test_another_type_of_numbers_is_no_new_weight() -> None:
    net, continuity = nn.Linear(16, 16), Continuity()
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float16):
        continuity.end(view_of(net))
        assert continuity.begin(view_of(net.to(dtype))) == []


def test_restored_state_is_compared_with_its_anchors() -> None:
    net = nn.Linear(16, 16, bias=False)
    anchors = [p.detach().clone() for p in net.parameters()]
    assert Continuity(restored=True).begin(view_of(net), anchors) == []
    net.reset_parameters()
    assert Continuity(restored=True).begin(view_of(net), anchors) == ["weight"]
    assert Continuity().begin(view_of(net), anchors) == []
    assert Continuity(restored=True).begin(view_of(net)) == []
