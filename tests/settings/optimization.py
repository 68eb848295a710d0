"""How gradients become a step: accumulated, clipped, by hand, by several optimizers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from tests.every_rule import COUNTING, DISTILLING, RECYCLING, REHEARSING
from tests.odd_optimizers import Evaluating, Plain, Sam
from tests.settings.outcomes import Differs, Refused, Run, Setting, Within
from tests.settings.training import BATCH, Tasks, alone, make, module, sgd, train
from tests.small import Net

# -- from other random numbers -----------------------------------------------------------------------------


def plain(rule: str | None, drawn: int = 0) -> Run:
    model = module()
    torch.rand(drawn)
    return train(model, make(rule))


# -- accumulation: 4, 4 and 2 micro-batches ----------------------------------------------------------------


class Weighted(Net):
    """As Lightning weights an incomplete window: by as many micro-batches as a whole one has."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (len(batch[0]) / BATCH)


def accumulated(rule: str | None) -> Run:
    data = Tasks(batch_size=BATCH // 4)
    return train(module(), make(rule), data=data, accumulate_grad_batches=4, precision="64-true")


def in_whole_batches(rule: str) -> Run:
    # Rules that sum over observations count those of an incomplete window as what they are.
    return train(module(Net if rule in COUNTING else Weighted), make(rule), precision="64-true")


# -- clipping ----------------------------------------------------------------------------------------------


class Clipping(torch.optim.SGD):
    """Clips what the closure has left in ``.grad``, the pulls of the rules among it, before it steps."""

    def __init__(self, parameters: Any, clip: Any) -> None:
        super().__init__(parameters, lr=0.1, momentum=0.9)
        self.clip = clip

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure()
        self.clip([p for group in self.param_groups for p in group["params"]])
        super().step()
        return loss


def clipped(rule: str | None, **options: Any) -> Run:
    return train(module(), make(rule), **options)


def clipping_by_itself(rule: str, clip: Any) -> Run:
    return train(module(optimizer=partial(Clipping, clip=clip)), make(rule))


# -- several optimizers ------------------------------------------------------------------------------------


class ByHand(Net):
    automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [sgd(self.net[0].parameters()), sgd(self.net[2].parameters())]

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
        for optimizer in self.optimizers():
            optimizer.step()


def two_groups(parameters: Any) -> torch.optim.Optimizer:
    parameters = list(parameters)
    return sgd([{"params": parameters[:2]}, {"params": parameters[2:]}])


class Alternating(ByHand):
    """As adversarial training does: while one steps, the other's parameters look frozen."""

    toggles = True

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        for optimizer in self.optimizers():
            if self.toggles:
                self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()
            self.zero_grad()  # what the other has left behind is not stepped upon in either run
            if self.toggles:
                self.untoggle_optimizer(optimizer)


class NotToggling(Alternating):
    toggles = False


# -- steps that Lightning does not hear of ------------------------------------------------------------------


class Unheard(ByHand):
    """Steps the optimizers past Lightning's wrappers."""

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        return super().optimizers(use_pl_optimizer=False)


class SteppingItself(Net):
    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
        optimizer_closure()
        optimizer.optimizer.step()


class Sharp(Net):
    """Sharpness-aware minimisation by the two steps of its optimizer."""

    automatic_optimization = False
    rho = 0.05

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer = self.optimizers()
        self.gradients(batch)
        optimizer.first_step()
        self.gradients(batch)
        optimizer.second_step()

    def gradients(self, batch: Any) -> None:
        self.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))


class SharpWithoutMoving(Sharp):
    """The same gradients, with the weights where they are, and an ordinary optimizer."""

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        self.gradients(batch)
        named = {name: p for name, p in self.net.named_parameters() if p.grad is not None}
        norm = torch.stack([p.grad.norm() for p in named.values()]).norm()  # type: ignore[union-attr]
        higher = {n: (p + p.grad * (self.rho / norm)).detach().requires_grad_() for n, p in named.items()}
        outputs = torch.func.functional_call(self.net, higher, (batch[0],))
        loss = nn.functional.cross_entropy(outputs, batch[1])
        for p, gradient in zip(named.values(), torch.autograd.grad(loss, list(higher.values())), strict=True):
            p.grad = gradient
        self.optimizers().step()


def sam(parameters: Any) -> Sam:
    return Sam(parameters, torch.optim.SGD, Sharp.rho, lr=0.1, momentum=0.9)


# -- refused -----------------------------------------------------------------------------------------------


class Searching(torch.optim.SGD):
    """Looks at the loss elsewhere before it steps, as sharpness-aware minimisation does."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        parameters = [p for group in self.param_groups for p in group["params"]]
        with torch.enable_grad():
            closure()
        ascent = torch._foreach_mul([p.grad for p in parameters], 0.05)
        torch._foreach_add_(parameters, ascent)
        with torch.enable_grad():
            loss = closure()
        torch._foreach_sub_(parameters, ascent)
        super().step()
        return loss


def refused(rule: str | None, optimizer: Any) -> Run:
    return train(module(optimizer=optimizer), make(rule))


MOVED = Refused(
    "changed while they were drawn", "SAM moves weights during `training_step`, when they are drawn at random"
)
OWN_STEPS = Refused(
    "use automatic optimization", "remembered samples go through `training_step`, which steps"
)
NO_LOSS = dict.fromkeys(REHEARSING, OWN_STEPS) | dict.fromkeys(
    DISTILLING,
    Refused("use automatic optimization", "which batches a step is for is known to `training_step` alone"),
)
NO_LOSS |= dict.fromkeys(
    RECYCLING,
    Refused("use automatic optimization", "`training_step` is run once more to see what reads a unit"),
)
OWN_PASSES = Refused("set draws=1", "`draws` above 1 repeats passes, and these are the module's own")

SETTINGS = [
    Setting(
        "nothing special",
        "itself, after one more number was drawn from the global generator",
        plain,
        partial(plain, drawn=1),
    ),
    Setting(
        "`accumulate_grad_batches=4`, the last window incomplete",
        "batches four times as large, the last with its loss weighted as Lightning weights it",
        accumulated,
        in_whole_batches,
        Within(1e-9, "another order of summation; in double precision"),
        {
            "mesu draws": Differs(
                "each micro-batch is seen with draws of its own, so there are more of them"
            ),
            "er past": Differs("the twin also weights the loss of remembered samples by their number"),
            "er joined": Differs("samples are joined to each micro-batch, so there are more of them"),
            **dict.fromkeys(DISTILLING, Differs("the twin weights the task's loss of the last batch alone")),
        },
    ),
    Setting(
        "`gradient_clip_val`, by norm",
        "an optimizer that clips in its step",
        partial(clipped, gradient_clip_val=0.1),
        partial(clipping_by_itself, clip=partial(clip_grad_norm_, max_norm=0.1)),
    ),
    Setting(
        "`gradient_clip_val`, by value",
        "an optimizer that clips in its step",
        partial(clipped, gradient_clip_val=0.01, gradient_clip_algorithm="value"),
        partial(clipping_by_itself, clip=partial(clip_grad_value_, clip_value=0.01)),
    ),
    Setting(
        "manual optimization, two optimizers",
        "automatic optimization, one optimizer with two parameter groups",
        lambda rule: train(module(ByHand), make(rule)),
        lambda rule: train(module(optimizer=two_groups), make(rule)),
        exceptions={
            **NO_LOSS,
            "mesu draws": OWN_PASSES,
            "rwalk": Differs("`window_steps` counts the steps of both optimizers"),
            **dict.fromkeys(
                ("cascade", "shrink steps", "upgd"),
                Differs("each step of each optimizer has random numbers of its own"),
            ),
        },
    ),
    Setting(
        "alternating optimizers, `toggle_optimizer`",
        "the same without toggling",
        lambda rule: train(module(Alternating), make(rule)),
        lambda rule: train(module(NotToggling), make(rule)),
        exceptions={**NO_LOSS, "mesu draws": OWN_PASSES},
    ),
    Setting(
        "manual optimization, `use_pl_optimizer=False`, two optimizers",
        "the same by Lightning's optimizers",
        lambda rule: train(module(Unheard), make(rule)),
        lambda rule: train(module(ByHand), make(rule)),
        exceptions={**NO_LOSS, "mesu draws": OWN_PASSES},
    ),
    Setting(
        "`optimizer_step` of the module, which steps torch's optimizer",
        "Lightning's own `optimizer_step`",
        lambda rule: train(module(SteppingItself), make(rule)),
        alone,
    ),
    Setting(
        "an optimizer with Lightning's `Optimizable` and without torch's hooks",
        "`torch.optim.SGD`",
        lambda rule: train(module(optimizer=Plain), make(rule)),
        alone,
    ),
    Setting(
        "an optimizer that wraps another and evaluates the closure itself",
        "the inner optimizer",
        lambda rule: train(module(optimizer=lambda parameters: Evaluating(sgd(parameters))), make(rule)),
        alone,
    ),
    Setting(
        "SAM, `first_step` and `second_step`",
        "its second gradient, taken without moving the weights, in `torch.optim.SGD`",
        lambda rule: train(module(Sharp, sam), make(rule)),
        lambda rule: train(module(SharpWithoutMoving), make(rule)),
        exceptions={**NO_LOSS, "mesu draws": OWN_PASSES, "bgd": MOVED, "mesu": MOVED, "mesu chain": MOVED},
    ),
    Setting(
        "LBFGS",
        "",
        partial(refused, optimizer=torch.optim.LBFGS),
        outcome=Refused("first-order optimizer", "it evaluates the loss several times in a step"),
    ),
    Setting(
        "another optimizer that calls its closure several times in a step",
        "",
        partial(refused, optimizer=partial(Searching, lr=0.1)),
        outcome=Refused(
            "Searching evaluates the loss several times", "at weights that it does not step from"
        ),
    ),
    Setting(
        "`maximize=True`",
        "",
        partial(refused, optimizer=partial(torch.optim.SGD, lr=0.1, maximize=True)),
        outcome=Refused("maximize=True climbs", "a pull would become a push"),
    ),
]
