"""The metaplastic gate in a Trainer, and on a binary network as in the paper."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cl_callbacks import MetaplasticGate
from tests.references.metaplasticity import gated
from tests.small import CLASSES, FEATURES, Net, fit_tasks, loader, make_trainer, plain_net, task, weights

sys.path.insert(0, str(Path(__file__).parents[3] / "examples"))
from digits import BinaryLinear


def binary_net() -> nn.Module:
    return nn.Sequential(
        BinaryLinear(FEATURES, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Hardtanh(),
        BinaryLinear(8, CLASSES), nn.BatchNorm1d(CLASSES, track_running_stats=False),
    )  # fmt: skip


@pytest.mark.parametrize("make", [plain_net, binary_net])
@pytest.mark.parametrize(
    "optimizer", [partial(torch.optim.Adam, lr=0.05, weight_decay=0.01), partial(torch.optim.SGD, lr=0.5)]
)
def test_equals_a_plain_loop(make: Any, optimizer: Any) -> None:
    torch.manual_seed(0)
    model, slow = Net(make(), optimizer).double(), make().double()
    slow.load_state_dict(model.net.state_dict())
    x, y = task(0)[0].double(), task(0)[1]
    make_trainer(MetaplasticGate(3.0), max_epochs=5).fit(model, loader(x, y))
    stepping = optimizer(slow.parameters())
    for _ in range(5):
        for start in range(0, len(x), 8):
            before = [p.detach().clone() for p in slow.parameters()]
            stepping.zero_grad()
            F.cross_entropy(slow(x[start : start + 8]), y[start : start + 8]).backward()
            stepping.step()
            for p, b in zip(slow.parameters(), before, strict=True):
                if p.ndim > 1:
                    p.detach().copy_(gated(b, p.detach(), 3.0))
    torch.testing.assert_close(weights(model), weights(slow), rtol=1e-8, atol=1e-10)


def test_one_dimension_is_exempt_unless_named() -> None:
    rule, named = MetaplasticGate(), MetaplasticGate(parameters="bias", name="biases")
    fit_tasks(Net(), rule, named, tasks=1)
    assert rule.synapses.view.names == ["net.0.weight", "net.4.weight"]
    assert named.synapses.view.names == ["net.0.bias", "net.1.bias", "net.4.bias"]


def test_binary_layers_compute_with_signs_and_pass_the_gradient() -> None:
    layer = BinaryLinear(4, 3)
    x = torch.randn(5, 4)
    with torch.no_grad():
        layer.weight[0, 0] = 0.0
    y = layer(x)
    signs = torch.where(layer.weight >= 0, 1.0, -1.0)
    assert torch.equal(y, x @ signs.T)
    y.sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(3, 4))


@pytest.mark.parametrize("steepness", [-1.0, float("inf")])
def test_arguments_that_cannot_work(steepness: float) -> None:
    with pytest.raises(ValueError, match="steepness must be"):
        MetaplasticGate(steepness)
