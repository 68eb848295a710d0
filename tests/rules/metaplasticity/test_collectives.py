"""What processes tell each other in the steps of rules that draw weights, beside what they do without."""

from __future__ import annotations

from collections import Counter
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, TensorDataset

from cl_callbacks import BGD, MESU
from tests.processes import train_together
from tests.small import Net, make_trainer, plain_net, task

EPOCHS, BATCHES, ACCUMULATED = 2, 5, 2
STEPS = EPOCHS * 3  # two windows of two batches, and one of the last
RULES: dict[str, Any] = {
    "none": lambda: None,
    "mesu": lambda: MESU(50, 0.2),
    "bgd": lambda: BGD(0.1),
    "bgd sum": lambda: BGD(0.1, reduction="sum"),
    "mesu draws": lambda: MESU(50, 0.2, draws=3),
    "bgd counting": lambda: Counting(0.1),
}


class Counting(BGD):
    """One process has twice as many observations as the other."""

    def observations(self, batch: Any) -> int:
        return super().observations(batch) * (1 + torch.distributed.get_rank())


class Collectives(Callback):
    """Counts the collectives within the training batches, those of Lightning and DDP too."""

    def __init__(self) -> None:
        self.found = Counter[str]()

    def on_train_batch_start(self, *args: Any) -> None:
        self.profile = profile(activities=[ProfilerActivity.CPU])
        self.profile.start()

    def on_train_batch_end(self, *args: Any) -> None:
        self.profile.stop()
        for event in self.profile.events():
            if event.name.startswith("c10d::"):
                self.found[event.name] += 1


def learn(rank: int, folder: str) -> None:
    for name, make in RULES.items():
        rule, collectives = make(), Collectives()
        torch.manual_seed(0)
        model = Net(plain_net(), partial(torch.optim.SGD, lr=0.1))
        callbacks = [collectives] if rule is None else [collectives, rule]
        trainer = make_trainer(
            *callbacks, max_epochs=EPOCHS, accumulate_grad_batches=ACCUMULATED, strategy="ddp", devices=2
        )
        data = TensorDataset(*task(0, samples=2 * 4 * BATCHES))
        trainer.fit(model, DataLoader(data, 4))
        state = {} if rule is None else rule.synapses.state_dict()
        scale = None if rule is None else torch.as_tensor(rule._scale)
        torch.save((dict(collectives.found), state, scale), Path(folder) / f"{name}.{rank}.pt")


@cache
def found() -> dict[tuple[str, int], Any]:
    with TemporaryDirectory() as folder:
        train_together(2, learn, folder)
        return {(n, rank): torch.load(Path(folder) / f"{n}.{rank}.pt") for n in RULES for rank in range(2)}


@pytest.mark.parametrize(
    ("rule", "sums"),
    # One number in a step; with three draws also what was gathered over them, and DDP's own of two further
    # passes. Nothing in batches without a step.
    [("mesu", STEPS), ("bgd", STEPS), ("bgd sum", 0), ("mesu draws", 4 * STEPS), ("bgd counting", STEPS)],
)
def test_a_step_takes_one_sum_and_no_barrier(rule: str, sums: int) -> None:
    for rank in range(2):
        without, beside = (found()[name, rank][0] for name in ("none", rule))
        assert without["c10d::allreduce_"] >= STEPS
        more = Counter(beside)
        more.subtract(without)
        compared = more.pop("c10d::allgather_")  # once, what the processes draw: sizes, then texts
        assert compared == 2
        assert {name: n for name, n in more.items() if n} == ({"c10d::allreduce_": sums} if sums else {})


@pytest.mark.parametrize("rule", RULES)
def test_processes_agree(rule: str) -> None:
    """Also on the number of observations, of which one may have more."""
    (_, first, scale), (_, second, other) = (found()[rule, rank] for rank in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert rule == "none" or torch.equal(scale, other)
    # A last window of one batch counts twice, since Lightning divides its loss by two.
    expected = {"mesu": 16, "bgd": 16, "mesu draws": 16, "bgd sum": 4, "bgd counting": 24}
    assert rule == "none" or scale == expected[rule]
