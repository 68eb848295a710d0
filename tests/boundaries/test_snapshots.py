"""How much of the past is kept."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from cl_callbacks.boundaries.snapshots import Snapshots
from tests.small import Net

NOBODY: Any = SimpleNamespace(callbacks=[])


def taken(snapshots: Snapshots) -> list[int]:
    return [kept["batches"] for kept in snapshots.state_dict()["kept"]]


def test_the_last_before_a_possible_change_and_the_latest() -> None:
    snapshots, model = Snapshots(), Net()
    assert snapshots.latest == -1
    for batches in (0, 10, 20, 30, 40):
        snapshots.take(NOBODY, model, batches)
        snapshots.prune(onset=15)
    assert taken(snapshots) == [10, 40]
    assert snapshots.latest == 40
    snapshots.prune(onset=39)
    assert taken(snapshots) == [10, 40]
    snapshots.prune(onset=40)
    assert taken(snapshots) == [40]


def test_what_is_trainable_and_all_buffers() -> None:
    snapshots, model = Snapshots(), Net()
    model.net[0].requires_grad_(False)
    snapshots.take(NOBODY, model, 0)
    names = set(snapshots.state_dict()["kept"][0]["network"])
    assert "net.0.weight" not in names
    assert {"net.4.weight", "net.1.running_mean", "net.1.num_batches_tracked"} <= names


def test_copies_that_come_back_and_go_again() -> None:
    def state() -> Tensor:
        return torch.cat([t.detach().flatten().float() for t in model.state_dict().values()])

    snapshots, model = Snapshots(), Net()
    snapshots.take(NOBODY, model, 0)
    then = state()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(1)
    now = state()
    with snapshots.rewound(NOBODY, model):
        assert torch.equal(state(), then)
    assert torch.equal(state(), now)
    assert not torch.equal(now, then)


def test_weights_that_are_moved_in_the_past_move_as_far_in_the_present() -> None:
    """Others stay bit for bit, also where they are not finite, and so do statistics."""
    snapshots, model = Snapshots(), Net()
    weight, statistics = model.net[4].weight, model.net[1].running_mean
    with torch.no_grad():
        weight[0, 0] = torch.inf
        snapshots.take(NOBODY, model, 0)
        weight[0, 0] = 1.0
        model.net[0].weight[0, 0] = torch.nan
        present = {name: t.clone() for name, t in model.state_dict().items()}
        with snapshots.rewound(NOBODY, model):
            weight[1] += 0.5
            statistics += 0.5
    present["net.4.weight"][1] += 0.5
    for name, found in model.state_dict().items():
        torch.testing.assert_close(
            found, present[name], rtol=0, atol=1e-6 * (name == "net.4.weight"), equal_nan=True
        )
