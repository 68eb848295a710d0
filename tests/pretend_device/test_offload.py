"""State that is kept on the CPU while the network trains on a device: copies that overlap with computations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from cl_callbacks.synapses import offload
from tests.every_rule import RULES, assert_same, make, state
from tests.pretend_device.device import trainer_on, waits
from tests.small import Net, loader, plain_net, task, weights

keeping_rule = pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "metaplastic"])
ROWS = 13  # elements of a block, in tests with several: a row or two


class Waits(Callback):
    """How often the host waits in each batch."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.before = waits()

    def on_train_batch_end(self, *args: Any) -> None:
        self.found.append(waits() - self.before)


def trained(rule: Any, *callbacks: Callback) -> tuple[Net, list[int]]:
    torch.manual_seed(0)
    model, counted = Net(plain_net()), Waits()
    trainer = trainer_on(rule, *callbacks, counted, max_epochs=2, log_every_n_steps=1000)
    for index in range(3):
        if index:
            trainer.fit_loop.max_epochs += 2
        trainer.fit(model, loader(*task(index, 40)))
    return model, counted.found


@keeping_rule
@pytest.mark.parametrize("elements", [2**23, ROWS])
def test_training_is_the_same_and_the_host_waits_as_often(
    rule: str, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offload, "BLOCK_ELEMENTS", elements)
    here, there = make(rule), make(rule, state_device="cpu")
    (expected, without), (found, within) = trained(here), trained(there)
    assert torch.equal(weights(found).cpu(), weights(expected).cpu())
    assert_same({k: t.cpu() for k, t in state(there).items()}, {k: t.cpu() for k, t in state(here).items()})
    print(rule, without, within)
