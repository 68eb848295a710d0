"""A loss that contradicts the labels, for the rules that measure a Fisher information."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_callbacks import EWC, MAS, KFACLaplace
from tests.small import FEATURES, Net, loader, make_trainer, task


def one_hot(y: Tensor) -> Tensor:
    return F.one_hot(y, FEATURES).float()


LOSSES: dict[str, Any] = {
    "gaussian": [
        lambda z, x, y: F.mse_loss(z, x),
        lambda z, x, y: F.smooth_l1_loss(z, x) + z.square().mean(),
        lambda z, x, y: F.huber_loss(z.gather(1, y[:, None]), x[:, :1]),
        lambda z, x, y: F.triplet_margin_loss(z, z.roll(1, 0), z.roll(2, 0)),
        lambda z, x, y: torch.cdist(z, z).mean(),
    ],
    "bernoulli": [
        lambda z, x, y: F.binary_cross_entropy_with_logits(z, one_hot(y)),
        lambda z, x, y: F.binary_cross_entropy(z.sigmoid(), one_hot(y)),
    ],
    "categorical": [
        lambda z, x, y: F.cross_entropy(z, y, label_smoothing=0.1) + F.mse_loss(z, x),
        lambda z, x, y: F.mse_loss(z.softmax(1), one_hot(y)),
        lambda z, x, y: F.nll_loss(z - z.logsumexp(1, keepdim=True), y),
        lambda z, x, y: (z.relu().sum(1) - z.gather(1, y[:, None])[:, 0]).mean(),
    ],
}  # fmt: skip
CASES = [(likelihood, loss) for likelihood, losses in LOSSES.items() for loss in losses]


class Coder(Net):
    def __init__(self, loss: Any) -> None:
        super().__init__(nn.Linear(FEATURES, FEATURES))
        self.loss = loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return self.loss(self(x), x, y)


@pytest.mark.parametrize(("likelihood", "loss"), CASES)
@pytest.mark.parametrize("rule", [EWC, KFACLaplace])
def test_a_loss_of_numbers_is_refused_before_the_first_step(rule: Any, likelihood: str, loss: Any) -> None:
    trainer, data = make_trainer(rule()), loader(*task(0))
    if likelihood == "categorical":
        trainer.fit(Coder(loss), data)
        return
    with pytest.raises(ValueError, match=f"without a softmax: give likelihood='{likelihood}'"):
        trainer.fit(Coder(loss), data)
    assert trainer.global_step == 0
    make_trainer(rule(likelihood="categorical")).fit(Coder(loss), data)
    make_trainer(MAS()).fit(Coder(loss), data)


def test_the_remedy_works() -> None:
    class OfInputs(EWC):
        def outputs(self, pl_module: Any, batch: Any) -> Any:
            return pl_module(batch[0]), batch[0]

    class OfNothing(EWC):
        def outputs(self, pl_module: Any, batch: Any) -> Any:
            return pl_module(batch[0])

    for rule in (OfInputs(likelihood="gaussian", estimator="empirical"), OfNothing(likelihood="gaussian")):
        make_trainer(rule).fit(Coder(LOSSES["gaussian"][0]), loader(*task(0)))
        assert rule.tasks == 1
