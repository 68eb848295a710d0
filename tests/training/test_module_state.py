"""A module as it was, whatever has happened to it."""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from cl_callbacks.training.module_state import ModuleState


class Holder(nn.Module):
    """Everything that a module may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.metric = MeanMetric()
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("lost", torch.ones(2), persistent=False)
        self.tensor, self.number, self.text = torch.ones(2), 1, "before"
        self.nested = {"a": [1, {"b": torch.ones(2)}], "c": {1, 2}}
        self.queue: deque[int] = deque([1, 2], maxlen=2)
        self.ordered = OrderedDict(a=1, b=2)
        self.nested["self"] = self.nested  # type: ignore[assignment]


def held(module: Holder) -> list[Any]:
    nested = module.nested
    values = [module.number, module.text, nested["a"][0], nested["c"], list(module.queue), module.ordered]
    tensors = [module.tensor, nested["a"][1]["b"], module.lost, module.metric.mean_value]
    modes = [(name, each.training) for name, each in module.named_modules()]
    required = [(name, p.requires_grad) for name, p in module.named_parameters()]
    state = [value.tolist() for value in module.state_dict().values()]
    return copy.deepcopy(
        [values, [t.tolist() for t in tensors], modes, required, state, sorted(vars(module))]
    )


def spoil(module: Holder) -> None:
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers(), module.tensor, module.nested["a"][1]["b"]):
            tensor.add_(1)
    module.lost = torch.zeros(5)
    module.metric.update(7.0)
    module.number, module.text, module.more = 2, "after", 3
    module.nested["a"].append(4)
    module.nested["a"][0] = None
    module.nested["c"].add(3)
    del module.nested["a"][2]
    module.queue.append(3)
    module.ordered.move_to_end("a")
    module.layers[1].eval()
    module.layers[0].weight.requires_grad_(False)
    module.layers.add_module("head", nn.Linear(3, 3))
    module.layers[0].bias.data = torch.zeros(9)
    module.layers[1].bias.grad = torch.ones(3)
    module.register_forward_hook(lambda *args: None)


def test_it_is_restored_as_often_as_wanted() -> None:
    module = Holder()
    state, before = ModuleState(module), held(module)
    objects = [module.layers[0].weight, module.nested["a"], module.tensor, module.lost, module._forward_hooks]
    for _ in range(2):
        spoil(module)
        assert held(module) != before
        state.restore()
        assert held(module) == before
        now = [module.layers[0].weight, module.nested["a"], module.tensor, module.lost, module._forward_hooks]
        assert all(a is b for a, b in zip(objects, now, strict=True))
        assert module.layers[1].bias.grad is None and not module._forward_hooks


def test_gradients_are_kept() -> None:
    layer = nn.Linear(1, 1)
    layer.weight.grad = torch.ones(1, 1)
    state = ModuleState(layer)
    layer.weight.grad.zero_()
    state.restore()
    assert layer.weight.grad is not None and layer.weight.grad.item() == 1


def test_a_hook_of_before_can_be_removed_afterwards() -> None:
    layer = nn.Linear(1, 1)
    heard: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: heard.append(output))
    ModuleState(layer).restore()
    layer(torch.ones(1))
    handle.remove()
    layer(torch.ones(1))
    assert len(heard) == 1


def test_tensors_of_inference_are_restored_too() -> None:
    module = Holder()
    with torch.inference_mode():
        module.tensor = torch.ones(2)
        state = ModuleState(module)
        module.tensor.add_(1)
    state.restore()
    assert module.tensor.tolist() == [1, 1] and module.tensor.is_inference()
