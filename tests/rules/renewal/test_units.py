"""Which units are found, and why others are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from cl_callbacks.rules.renewal.units import Units, find_units
from cl_callbacks.rules.renewal.units_tried import read_elsewhere


class Images(nn.Module):
    """Convolutions with BatchNorm and pooling, flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.hidden, self.out = nn.Conv2d(4, 6, 3), nn.Linear(6 * 9, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        x = F.max_pool2d(F.dropout(torch.relu_(self.second(x))), 2)
        return self.out(torch.tanh(self.hidden(x.flatten(1))))


class Attending(nn.Module):
    """Attention as transformers write it."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).view(*x.shape[:2], 2, 4).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


class Written(nn.Module):
    """A network of three layers, put together by a function."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.written = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.written(self, x)


def overwritten(h: Tensor, x: Tensor) -> Tensor:
    h[:, 0] = x[:, 0]
    return h


def found_in(module: nn.Module, *shape: int) -> tuple[list[Units], dict[str, str]]:
    return find_units(module, lambda: module(torch.randn(shape)).sum())


def test_units_of_convolutions_and_linear_layers() -> None:
    found, left_out = found_in(Images(), 3, 1, 8, 8)
    assert found == [
        Units("first", 4, ("first.weight", "first.bias"), ("norm",), ("second.weight",)),
        Units("second", 6, ("second.weight", "second.bias"), (), ("hidden.weight",), columns=9),
        Units("hidden", 5, ("hidden.weight", "hidden.bias"), (), ("out.weight",)),
    ]
    assert left_out == {"out": "read by sum"}


def test_heads_of_attention_are_units_of_the_values() -> None:
    found, left_out = found_in(Attending(), 3, 5, 8)
    assert found == [
        Units("value", 2, ("value.weight", "value.bias"), (), ("out.weight",), rows=4, columns=4)
    ]
    assert left_out["query"] == left_out["key"] == "read by scaled_dot_product_attention"


def test_a_transformer_of_torch() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
    found, left_out = found_in(layer, 3, 5, 8)
    assert [(units.layer, units.outgoing) for units in found] == [("linear1", ("linear2.weight",))]
    assert left_out["linear2"] == "read by add"


def test_several_heads_read_the_same_units() -> None:
    module = Written(lambda self, x: self.second(self.first(x).relu()) + self.third(self.first(x).relu()))
    found, _ = found_in(module, 3, 4)
    assert [units.outgoing for units in found] == [("second.weight", "third.weight")]


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda self, x: self.second(x + self.first(x)), "read by add"),
        (lambda self, x: self.second(self.first(x) * self.third(x)), "read by mul"),
        (lambda self, x: self.second(F.group_norm(self.first(x), 2)), "read by group_norm"),
        (lambda self, x: self.second(F.layer_norm(self.first(x), (3, 4))), "read by layer_norm"),
        (lambda self, x: self.second(self.first(x)) + self.first(x).norm(), "read by norm"),
        (lambda self, x: self.second(self.first(x)[:, [1, 0, 2, 3]]), "read by getitem"),
        (lambda self, x: self.second(overwritten(self.first(x), x)), "read by setitem"),
        (
            lambda self, x: F.linear(self.first(x), 2 * self.second.weight),
            "read by a linear of computed weights",
        ),
        (lambda self, x: F.linear(self.first(x), self.second.weight), "second.weight is used elsewhere"),
        (lambda self, x: self.second(self.first(self.first(x))), "its weights are shared"),
        (lambda self, x: self.second(self.first(x)) + self.second(x), "second.weight reads others too"),
        (lambda self, x: self.second(self.first(x)) + self.second.weight.sum(), "second.weight reads others"),
        (lambda self, x: self.first(x) @ self.second.weight, "read by matmul"),
    ],
)
def test_what_reads_them_in_another_way(forward: Any, reason: str) -> None:
    found, left_out = found_in(Written(forward), 3, 4)
    assert "first" not in [units.layer for units in found]
    assert left_out["first"].startswith(reason)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.LayerNorm, nn.RMSNorm])
def test_norms_between_units_and_what_reads_them(kind: type[nn.Module]) -> None:
    module = Written(lambda self, x: self.second(self.norm(self.first(x)).relu()), norm=kind(4))
    found, left_out = found_in(module, 3, 4)
    assert found == [Units("first", 4, ("first.weight", "first.bias"), ("norm",), ("second.weight",))]
    module.written = lambda self, x: self.third(self.norm(self.second(self.norm(self.first(x)))))
    found, left_out = found_in(module, 3, 4)
    assert (found, left_out["first"], left_out["second"]) == ([], *["its norm is shared"] * 2)
    module.written = lambda self, x: self.second(self.norm(self.first(x))) + self.norm(x)
    assert found_in(module, 3, 4)[1]["first"] == "its norm is shared"


@pytest.mark.parametrize("shared", ["weight", "bias"])
def test_layers_that_share_weights_have_no_units(shared: str) -> None:
    module = Written(lambda self, x: self.third(self.second(self.first(x).relu()).relu()))
    setattr(module.second, shared, getattr(module.first, shared))
    found, left_out = found_in(module, 3, 4)
    assert not found
    assert left_out["second"] == "its weights are shared"


def test_weights_that_are_computed_have_no_units() -> None:
    module = Written(lambda self, x: self.third(self.second(self.first(x))))
    parametrizations.weight_norm(module.second)
    found, left_out = found_in(module, 3, 4)
    assert not found
    assert "computed" in left_out["first"]


class Unseen(torch.autograd.Function):
    """A function of which torch does not see what it reads."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy().copy())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def test_what_nobody_can_follow_is_found_by_trying() -> None:
    module = Written(
        lambda self, x: self.third(self.second(self.first(x)).relu()) + Unseen.apply(self.first(x))
    )
    units = [
        Units("first", 4, ("first.weight", "first.bias"), (), ("second.weight",)),
        Units("second", 4, ("second.weight", "second.bias"), (), ("third.weight",)),
    ]
    before, x = [p.clone() for p in module.parameters()], torch.randn(3, 4)
    assert read_elsewhere(module, units, lambda: module(x)) == ["first"]
    assert read_elsewhere(module, units[1:], lambda: module(x)) == []
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))
    in_another = read_elsewhere(module, units[1:], lambda: module(x), in_any_process=lambda _: True)
    assert in_another == ["second"]
