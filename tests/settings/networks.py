"""Networks of which a part is frozen, shared, adapted or compiled."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_callbacks import EpochBoundaries
from tests.every_rule import RECYCLING
from tests.settings.outcomes import Differs, Idle, Refused, Run, Setting, Within
from tests.settings.training import EPOCHS, Tasks, alone, make, module, train
from tests.small import CLASSES, FEATURES, Net, plain_net

# -- frozen ------------------------------------------------------------------------------------------------


class Thawing(Net):
    """Trains its head first, and everything from the second task on."""

    def on_task_start(self, trainer: Any, pl_module: Any, task: int) -> None:
        self.net[0].requires_grad_(task > 0)


def unchanged(run: Run, names: list[str]) -> Run:
    """Without the frozen weights, which are as they were."""
    initial = dict(module().named_parameters())
    for name in names:
        assert torch.equal(run.weights.pop(name), initial[name].double()), f"{name} has changed"
    return run


def frozen(rule: str | None) -> Run:
    model = module()
    model.net[0].requires_grad_(False)
    return unchanged(train(model, make(rule), precision="64-true"), ["net.0.weight", "net.0.bias"])


class OnFeatures(Tasks):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body.double()

    def samples(self) -> tuple[Tensor, ...]:
        x, y = super().samples()
        return self.body(x.double()).detach(), y


def head_alone(rule: str) -> Run:
    model = module()
    body, head = model.net[:2], model.net[2]
    return train(
        Net(nn.Sequential(nn.Identity(), nn.Identity(), head), model.optimizer),
        make(rule),
        data=OnFeatures(body),
        precision="64-true",
    )


def plain_sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)  # no momentum that the second of two fits would lack


def thawing(rule: str | None) -> Run:
    model = module(Thawing, plain_sgd)
    model.net[0].requires_grad_(False)
    return train(model, make(rule))


def begun_anew(rule: str) -> Run:
    model = module(optimizer=plain_sgd)
    boundaries, first, second = EpochBoundaries(EPOCHS), make(rule), make(rule)
    model.net[0].requires_grad_(False)
    train(model, first, boundaries=boundaries, tasks=1)
    model.net[0].requires_grad_(True)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    return train(model, second, boundaries=boundaries, data=Tasks(first=1), tasks=1)


# -- one parameter in two places ---------------------------------------------------------------------------


class Again(nn.Module):
    """Uses the weight of another layer, and does not register it."""

    def __init__(self, layer: nn.Linear, bias: nn.Parameter) -> None:
        super().__init__()
        self._layer = [layer]
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self._layer[0].weight, self.bias)


def tied(rule: str | None, registered_once: bool = False) -> Run:
    torch.manual_seed(0)
    first, second = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
    second.weight = first.weight
    again = Again(first, second.bias) if registered_once else second
    net = nn.Sequential(first, nn.Tanh(), again, nn.Tanh(), nn.Linear(FEATURES, CLASSES))
    return train(Net(net, plain_sgd), make(rule), precision="64-true")


# -- low-rank adapters -------------------------------------------------------------------------------------

RANK, ALPHA = 2, 8


class Adapted(nn.Module):
    """A frozen layer and a trained change of low rank, with the names that peft gives them."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = layer.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(layer.in_features, RANK, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(RANK, layer.out_features, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x)) * (ALPHA / RANK)


def with_peft() -> nn.Module:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0", "2"])
    return peft.inject_adapter_in_model(config, plain_net())


def by_hand() -> nn.Module:
    net = nn.Sequential(*(Adapted(m) if isinstance(m, nn.Linear) else m for m in plain_net()))
    net.load_state_dict(with_peft().state_dict())
    return net


def adapted(rule: str | None, net: Any = with_peft) -> Run:
    model = module()
    model.net = net()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if "base_layer" in name}
    found = train(model, make(rule))
    for name, weight in before.items():
        assert torch.equal(found.weights[name], weight), f"{name} has changed"
    return found


# -- compiled ----------------------------------------------------------------------------------------------


def compiled(rule: str | None) -> Run:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = module()
    model.net = torch.compile(model.net, backend="aot_eager")
    found = train(model, make(rule))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    return found


SETTINGS = [
    Setting(
        "a frozen body",
        "the head alone, on features of the body",
        frozen,
        head_alone,
        Within(1e-9, "features computed in other batches; in double precision"),
        exceptions=dict.fromkeys(
            RECYCLING,
            Idle("can replace no units in this task", "the weights that lead into units are frozen"),
        ),
    ),
    Setting(
        "a body that is unfrozen when a task begins",
        "a second training, of everything, with the rule's state loaded from the first",
        thawing,
        begun_anew,
        exceptions=dict.fromkeys(
            ("shrink", "fire"), Differs("what is unfrozen then has not learned yet, and is left as it is")
        ),
    ),
    Setting(
        "tied weights",
        "one registration, which is used twice",
        tied,
        lambda rule: tied(rule, registered_once=True),
        Within(1e-9, "another order of summation; in double precision"),
        exceptions=dict.fromkeys(
            RECYCLING, Refused("finds no units", "each weight leads into units, and reads others")
        ),
        slow=True,
    ),
    Setting(
        "LoRA (peft)",
        "adapters written by hand",
        adapted,
        lambda rule: adapted(rule, by_hand),
        exceptions={
            "cascade": Refused(
                "all weights of .*lora_B.* are 0",
                "peft's `B` begins at 0: leave it out with `exclude`, or initialise it at random",
            ),
            "fire": Refused("none among the parameters", "factors of adapters are no matrices of layers"),
        },
    ),
    Setting(
        "a submodule under `torch.compile`",
        "the same, not compiled",
        compiled,
        alone,
        slow=True,
    ),
]
