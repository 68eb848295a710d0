"""Half precision, mixed and true."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from tests.settings.outcomes import Refused, Run, Setting
from tests.settings.training import EPOCHS, Tasks, make, module, train
from tests.small import Net

# -- 16-mixed, with an overflow in the first epoch of each task --------------------------------------------

SCALE = 2.0**12
HUGE = 2  # number of the batch that overflows, before the last and smaller one


class WithHugeBatches(Tasks):
    """Not in the last epoch of a task, whose data importance is measured on."""

    def samples(self) -> tuple[Tensor, ...]:
        x, y = super().samples()
        if self.trainer.current_epoch % EPOCHS:
            return x, y
        at, size = HUGE * self.batch_size, self.batch_size
        huge = torch.full_like(x[:size], 1e6)  # infinite in half precision
        return torch.cat([x[:at], huge, x[at:]]), torch.cat([y[:at], y[:size], y[at:]])


class UsesUpDraws(Callback):
    """A rule that sees drawn weights has drawn for the step that was skipped, too."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == HUGE and trainer.current_epoch % EPOCHS == 0:
            self.rule.weight_noise.draws += self.rule.draws


def half(scale: float) -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale))


def overflowing(rule: str | None) -> Run:
    plugin = half(SCALE)
    found = train(module(), make(rule), data=WithHugeBatches(), plugins=[plugin])
    assert plugin.scaler is not None
    assert plugin.scaler.get_scale() == SCALE / 4, "both huge batches overflow, and no other"
    return found


def without_huge_batches(rule: str) -> Run:
    # The scale is a power of two, so which one it is makes no difference to what is not tiny.
    memory = make(rule)
    draws = [] if memory.weight_noise is None else [UsesUpDraws(memory)]
    return train(module(), memory, *draws, plugins=[half(SCALE / 4)])


# -- bfloat16 ----------------------------------------------------------------------------------------------


class Autocasting(Net):
    """Its training steps, and the forward alone on which importance is measured."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().training_step(batch, batch_idx)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            return super().forward(x)


class Converted(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.bfloat16())


def fused(rule: str | None) -> Run:
    optimizer = partial(torch.optim.SGD, lr=0.1, fused=True)
    return train(module(optimizer=optimizer), make(rule), plugins=[half(SCALE)])


SETTINGS = [
    Setting(
        '`precision="16-mixed"`, steps skipped on overflow',
        "the same data without the batches that overflow (whose draws of the weights count as made)",
        overflowing,
        without_huge_batches,
    ),
    Setting(
        '`precision="16-mixed"`, a fused optimizer',
        "",
        fused,
        outcome=Refused(
            "fused=False", "it unscales gradients inside its step, after the rules have seen them"
        ),
    ),
    Setting(
        '`precision="bf16-mixed"`',
        "full precision, with `training_step` and `forward` under `torch.autocast`",
        lambda rule: train(module(), make(rule), precision="bf16-mixed"),
        lambda rule: train(module(Autocasting), make(rule)),
    ),
    Setting(
        '`precision="bf16-true"`',
        "full precision, with a module converted to bfloat16",
        lambda rule: train(module(), make(rule), precision="bf16-true"),
        lambda rule: train(module(Converted).bfloat16(), make(rule)),
    ),
]
