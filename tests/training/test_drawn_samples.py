"""What is drawn at the end of a task follows the global seed, and goes on after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from torch import Tensor

from cl_callbacks import EWC, MAS, EpochBoundaries, KFACLaplace
from tests.every_rule import assert_same, state
from tests.small import Net, loader, make_trainer, plain_net, task

SAMPLED: dict[str, Any] = {
    "ewc": lambda: EWC(estimator="sampled", samples=10),
    "kfac": lambda: KFACLaplace(samples=10),
    "mas": lambda: MAS(samples=10),
}


class SeedsItself(Net):
    """A module that seeds torch itself, as many do for their initial weights."""

    def __init__(self) -> None:
        torch.manual_seed(7)
        super().__init__(plain_net(), lambda p: torch.optim.SGD(p, lr=0.0))


@pytest.fixture(autouse=True)
def seed_of_the_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts back what ``seed_everything`` leaves in the environment."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")


def importance(rule: Any) -> Tensor:
    found = {k: v for k, v in state(rule).items() if "importance" in k or "factors" in k}
    return torch.cat([t.flatten() for t in found.values()])


def trained(rule: Any, seed: int, seed_it: Any) -> Tensor:
    seed_it(seed)
    model = SeedsItself() if seed_it is seed_everything else Net(plain_net())
    if seed_it is not seed_everything:
        model.load_state_dict(SeedsItself().state_dict())
        seed_it(seed)
        model.optimizer = lambda p: torch.optim.SGD(p, lr=0.0)
    make_trainer(rule).fit(model, loader(*task(0, samples=40)))
    return importance(rule)


@pytest.mark.parametrize("rule", SAMPLED)
@pytest.mark.parametrize("seed_it", [seed_everything, torch.manual_seed])
def test_follows_the_global_seed(rule: str, seed_it: Any) -> None:
    first, again, other = (trained(SAMPLED[rule](), seed, seed_it) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("rule", SAMPLED)
def test_a_resumed_training_draws_the_same_whatever_its_seed(rule: str, tmp_path: Path) -> None:
    whole, first, rest = (SAMPLED[rule]() for _ in range(3))
    data = loader(*task(0, samples=40))
    seed_everything(1, verbose=False)
    make_trainer(whole, EpochBoundaries(1), max_epochs=2).fit(SeedsItself(), data)
    seed_everything(1, verbose=False)
    trainer = make_trainer(first, EpochBoundaries(1), max_epochs=1)
    trainer.fit(SeedsItself(), data)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    seed_everything(2, verbose=False)
    resumed = make_trainer(rest, EpochBoundaries(1), max_epochs=2)
    resumed.fit(SeedsItself(), data, ckpt_path=tmp_path / "one.ckpt")
    assert rest.tasks == 2
    assert_same(state(rest), state(whole))


def test_a_state_without_a_seed_is_loaded() -> None:
    rule = EWC(samples=10)
    make_trainer(rule).fit(SeedsItself(), loader(*task(0)))
    saved = {key: value for key, value in rule.state_dict().items() if key != "seed"}
    other = EWC(samples=10)
    other.load_state_dict(saved)
    assert other.seed == -1
    make_trainer(other).fit(SeedsItself(), loader(*task(0)))
    assert other.seed >= 0
