"""The pass that measures importance runs the network in the Trainer's precision, and sums in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from cl_callbacks import BGD, EWC, MAS, MESU, DriftBoundaries, EpochBoundaries, KFACLaplace, PlateauBoundaries
from tests.gradients.test_precision import OnlyHalf, half_only
from tests.peak_memory import PeakMemory
from tests.references.fisher import exact_fisher
from tests.small import CLASSES, FEATURES, Net, loader, make_trainer, plain_net, task

MIXED = ["bf16-mixed", "16-mixed"]


def plugin(precision: Any) -> MixedPrecision:
    """Also float16, which Lightning does not offer on a CPU."""
    scaler = torch.amp.GradScaler("cpu") if precision == "16-mixed" else None
    return MixedPrecision(precision, "cpu", scaler)


@pytest.mark.parametrize(("precision", "within"), [("bf16-mixed", 2e-2), ("16-mixed", 2e-3)])
def test_importance_is_that_of_full_precision_to_rounding(precision: str, within: float) -> None:
    ewc, model = EWC(1.0, samples=None, normalize=None), Net(plain_net(), lambda p: torch.optim.SGD(p, 0.0))
    make_trainer(ewc, plugins=[plugin(precision)]).fit(model, loader(*task(0)))
    expected = exact_fisher(model.net, task(0)[0])
    for found, value in zip(ewc.synapses.view["importance"], expected.values(), strict=True):
        assert found.dtype is torch.float32
        assert 0 < (found - value).norm() < within * value.norm()


@pytest.mark.parametrize("kind", [EWC, MAS, KFACLaplace])
def test_a_network_that_is_certain_does_not_underflow(kind: Any) -> None:
    """Its cotangents and outputs are so small that float16 has no numbers for them."""

    class Faint(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).float() * 1e-6

    found = []
    for plugins in ([], [plugin("16-mixed")]):
        torch.manual_seed(0)
        rule = kind(1.0, samples=None, normalize=None)
        model = Faint(plain_net(), lambda p: torch.optim.SGD(p, 0.0))
        make_trainer(rule, plugins=plugins).fit(model, loader(*task(0)))
        found.append(rule.importance_of_each(rule.synapses.view))
    for value, expected in zip(found[1], found[0], strict=True):
        assert expected.norm() > 0
        assert (value - expected).norm() < 1e-2 * expected.norm()


class Flash(Net):
    """Takes float32 nowhere."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(FEATURES, 8), OnlyHalf(), nn.Linear(8, CLASSES)))


@pytest.mark.parametrize("precision", MIXED)
@pytest.mark.parametrize(
    "make",
    [
        lambda: [EWC(1.0), EpochBoundaries(1)],
        lambda: [MAS(1.0), EpochBoundaries(1)],
        lambda: [KFACLaplace(1.0), EpochBoundaries(1)],
        lambda: [MESU(50), EpochBoundaries(1)],
        lambda: [BGD(draws=2), EpochBoundaries(1)],
        lambda: [EWC(1.0), DriftBoundaries(min_task_batches=5)],
        lambda: [MAS(1.0), PlateauBoundaries(hard_samples=4)],
    ],
)
def test_a_network_that_refuses_float32_is_measured(make: Any, precision: str) -> None:
    callbacks = make()
    trainer = make_trainer(*callbacks, plugins=[plugin(precision)], max_epochs=2)
    trainer.fit(Flash(), loader(*task(0)))
    for rule in callbacks[:-1]:
        for values in rule.synapses.view.fields.values():
            assert all(t.isfinite().all() for t in values)


def test_the_stand_in_refuses_float32() -> None:
    with pytest.raises(RuntimeError, match="only half precision"):
        half_only()(torch.zeros(1, 5))


# -- memory ------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.rise = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.fall = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fall(F.gelu(self.rise(self.norm(x))))


class Pooled(Net):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(*(Block(16) for _ in range(6))), lambda p: torch.optim.SGD(p, 0.01))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x).mean(1))


class Steps(Callback):
    """The peak of the latest training step."""

    def __init__(self, memory: PeakMemory) -> None:
        self.memory, self.peak = memory, 0

    def on_train_batch_start(self, *args: Any) -> None:
        self.memory.restart()

    def on_train_batch_end(self, *args: Any) -> None:
        self.peak = self.memory.peak


def peaks(kind: Any, plugins: list[MixedPrecision]) -> tuple[int, int]:
    memory, found = PeakMemory(), []

    class Weighed(kind):  # type: ignore[misc]
        def consolidate(self, *args: Any) -> bool:
            memory.restart()
            done = super().consolidate(*args)
            found.append(memory.peak)
            return done

    steps, (x, y) = Steps(memory), (torch.randn(64, 32, 16), torch.randint(CLASSES, (64,)))
    trainer = make_trainer(steps, Weighed(1.0, samples=None, estimator="sampled"), plugins=plugins)
    with memory:
        trainer.fit(Pooled(), DataLoader(TensorDataset(x, y), 32))
    return steps.peak, found[0]


@pytest.mark.parametrize("kind", [EWC, KFACLaplace])
def test_mixed_precision_saves_memory_in_the_pass_as_in_training(kind: Any) -> None:
    """In full precision it is up to twice a training step: the cotangents of all layers are held as well."""
    step, full = peaks(kind, [])
    mixed_step, mixed = peaks(kind, [plugin("bf16-mixed")])
    assert mixed_step < 0.7 * step
    assert mixed < 0.8 * full
    assert mixed < 2.5 * mixed_step
