"""Which units are found, and why others are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from cl_callbacks.rules.renewal.unit_weights import UnitWeights
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


class Block(nn.Module):
    """A block of a residual network, with a shortcut that has weights if it halves the image."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.first, self.second = nn.Conv2d(inputs, outputs, 3, stride, 1), nn.Conv2d(outputs, outputs, 1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)])
        self.shortcut = nn.Conv2d(inputs, outputs, 1, 2) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[1](self.second(F.relu(self.norms[0](self.first(x)))))
        y += self.shortcut(x)
        return F.relu(y)


class Residual(nn.Module):
    """Two residual streams: the second begins where the image is halved."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(6, 2)
        self.blocks = nn.Sequential(Block(4, 4), Block(4, 6), Block(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


class Stream(nn.Module):
    """A residual stream that each block normalises for itself, and adds to in part."""

    def __init__(self, norm: Callable[[], nn.Module] = lambda: nn.LayerNorm(8)) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(6, 8), nn.Linear(8, 3)
        self.norms = nn.ModuleList([norm(), norm()])
        self.up = nn.ModuleList([nn.Linear(8, 5), nn.Linear(8, 5)])
        self.down = nn.ModuleList([nn.Linear(5, 8), nn.Linear(5, 8)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            x = x + 0.5 * down(up(norm(x)).relu()) / 2
        return self.out(x)


class Gated(nn.Module):
    """A layer whose outputs are gated by those of another, as in transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(6, 8, bias=False), nn.Linear(6, 8)
        self.down, self.out = nn.Linear(8, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.down(F.silu(self.gate(x)) * self.up(x)).tanh())


class Squeezed(nn.Module):
    """A convolution of each channel by itself, scaled by what the mean of all channels says."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.each, self.last = (
            nn.Conv2d(1, 6, 1),
            nn.Conv2d(6, 6, 3, groups=6),
            nn.Conv2d(6, 3, 1),
        )
        self.norm, self.squeeze, self.excite = nn.GroupNorm(2, 6), nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)
        self.out = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.each(F.relu(self.first(x)))))
        x = x * self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))).sigmoid()
        return self.out(self.last(x).mean([-1, -2]))


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


def first_half_overwritten(h: Tensor, x: Tensor) -> Tensor:
    h[:, :2][:] = x[:, :2]
    return h


def filled(buffer: Tensor, h: Tensor) -> Tensor:
    buffer[:] = h
    return buffer


def divided(h: Tensor) -> Tensor:
    h.view(3, 2, 2)
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


def named(*layers: str) -> tuple[str, ...]:
    return tuple(f"{layer}.{name}" for layer in layers for name in ("weight", "bias"))


def test_layers_that_write_to_one_residual_stream_have_the_same_units() -> None:
    found, left_out = found_in(Residual(), 2, 1, 8, 8)
    first, second = "blocks.0", "blocks.1"
    assert found == [
        Units(
            *("stem", 4, named("stem", f"{first}.second"), (f"{first}.norms.1",)),
            (f"{first}.first.weight", f"{second}.first.weight", f"{second}.shortcut.weight"),
        ),
        Units(
            *(f"{first}.first", 4, named(f"{first}.first")),
            (f"{first}.norms.0",),
            (f"{first}.second.weight",),
        ),
        Units(
            *(f"{second}.first", 6, named(f"{second}.first")),
            (f"{second}.norms.0",),
            (f"{second}.second.weight",),
        ),
        Units(
            *(f"{second}.second", 6, named(f"{second}.second", f"{second}.shortcut", "blocks.2.second")),
            ("blocks.2.norms.1", f"{second}.norms.1"),
            ("blocks.2.first.weight", "out.weight"),
        ),
        Units(
            "blocks.2.first", 6, named("blocks.2.first"), ("blocks.2.norms.0",), ("blocks.2.second.weight",)
        ),
    ]
    assert left_out == {"out": "read by sum"}


def test_a_stream_that_blocks_normalise_and_add_to_in_part() -> None:
    [stream, *inner], left_out = found_in(Stream(), 3, 6)
    incoming, readers = named("enter", "down.0", "down.1"), ("up.0.weight", "up.1.weight", "out.weight")
    assert stream == Units("enter", 8, incoming, ("norms.0", "norms.1"), readers)
    assert [units.layer for units in inner] == ["up.0", "up.1"]
    assert left_out == {"out": "read by sum"}


def test_a_gate_and_what_it_gates_have_the_same_units() -> None:
    found, left_out = found_in(Gated(), 3, 6)
    assert found == [
        Units("gate", 8, ("gate.weight", *named("up")), (), ("down.weight",)),
        Units("down", 4, named("down"), (), ("out.weight",)),
    ]
    assert left_out == {"out": "read by sum"}


def test_a_convolution_of_each_channel_belongs_to_what_it_reads() -> None:
    found, left_out = found_in(Squeezed(), 2, 1, 5, 5)
    readers = ("squeeze.weight", "last.weight")
    assert found[0] == Units("first", 6, named("first", "each", "excite"), ("norm",), readers)
    assert [units.layer for units in found[1:]] == ["squeeze", "last"]
    assert left_out == {"out": "read by sum"}


def logged(h: Tensor) -> Tensor:
    h.detach().norm(dim=1).log()
    return h


def without_some(h: Tensor) -> Tensor:
    """Stochastic depth as timm writes it."""
    return h * h.new_empty(len(h), 1).bernoulli_(0.5)


MASK = torch.tensor([[1.0], [0.0], [1.0]])


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.second(self.first(x) * MASK),
        lambda self, x: self.second((1 - self.first(x)) / 3.0 + 2),
        lambda self, x: self.second(self.first(x) / (1 + MASK)),
        lambda self, x: self.second(self.first(x).unsqueeze(0).sum(0)),
        lambda self, x: self.second(self.first(x) + self.first(x).relu()),
        lambda self, x: self.second(self.first(x).mul_(MASK)),
        lambda self, x: self.second(torch.div(input=self.first(x), other=2.0)),
        lambda self, x: self.second(logged(self.first(x))),
        lambda self, x: self.second(without_some(self.first(x))),
        lambda self, x: self.second(input=self.first(x).relu() ** 2),
        lambda self, x: self.second((h := self.first(x)) * (h > 0)),
        lambda self, x: self.second(self.first(x).detach()),
        lambda self, x: self.second(self.first(x).mT.mT),
        lambda self, x: self.second(self.first(x).masked_fill(MASK > 0, 0.0)),
        lambda self, x: self.second(self.first(x)).sum() + 0.1 * sum(p.norm() for p in self.parameters()),
    ],
)
def test_what_does_the_same_to_each_unit_leaves_them(forward: Any) -> None:
    found, _ = found_in(Written(forward), 3, 4)
    assert [(units.layer, units.outgoing) for units in found] == [("first", ("second.weight",))]


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.second(F.pad(self.first(x), (1, 2))),
        lambda self, x: self.second(F.interpolate(self.first(x), scale_factor=2)),
        lambda self, x: self.third(self.first(x).mean(-1)),
        lambda self, x: self.second(self.first(x).amax(2, keepdim=True).expand(-1, -1, 3)),
        lambda self, x: self.second(self.first(x).reshape(3, 4, 3, 2).flatten(2)),
        lambda self, x: self.third(self.first(x).transpose(1, 2).reshape(-1, 4)),
        lambda self, x: self.third(self.first(x).transpose(1, 2)[:, -1]),
        lambda self, x: self.third(self.first(x)[..., :2].transpose(1, 2)[:, None].sum(1)),
        lambda self, x: self.second((h := self.first(x)) * self.third(h.mean(2))[..., None].expand_as(h)),
    ],
)
def test_what_changes_positions_leaves_channels(forward: Any) -> None:
    module = Written(forward, first=nn.Conv1d(2, 4, 1), second=nn.Conv1d(4, 2, 1))
    [units], _ = found_in(module, 3, 2, 6)
    assert (units.layer, units.number, units.columns) == ("first", 4, 1)


@pytest.mark.parametrize(
    ("norm", "shape"), [(nn.GroupNorm(2, 4), (3, 4)), (nn.InstanceNorm1d(4, affine=True), (3, 4, 5))]
)
def test_norms_of_groups_of_channels(norm: nn.Module, shape: tuple[int, ...]) -> None:
    layers = {"first": nn.Conv1d(4, 4, 1), "second": nn.Conv1d(4, 2, 1)} if len(shape) == 3 else {}
    module = Written(lambda self, x: self.second(self.norm(self.first(x))), norm=norm, **layers)
    [units], _ = found_in(module, *shape)
    assert units == Units("first", 4, named("first"), ("norm",), ("second.weight",))


def test_several_heads_read_the_same_units() -> None:
    module = Written(lambda self, x: self.second(self.first(x).relu()) + self.third(self.first(x).relu()))
    found, _ = found_in(module, 3, 4)
    assert [units.outgoing for units in found] == [("second.weight", "third.weight")]


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda self, x: self.second(x + self.first(x)), "read by add"),
        (lambda self, x: self.second(self.first(x) * x), "read by mul"),
        (lambda self, x: self.second(self.first(x) / self.third(x)), "read by div"),
        (lambda self, x: self.second(1 / self.first(x)), "read by rdiv"),
        (lambda self, x: self.second(self.first(x) - self.first(x).mean(-1, keepdim=True)), "read by mean"),
        (lambda self, x: self.second(self.first(x)[:, None] + self.third(x)[..., None]), "read by add"),
        (
            lambda self, x: self.second(self.first(x).unsqueeze(1) * self.third(x).unsqueeze(2)),
            "read by mul",
        ),
        (lambda self, x: self.second(self.first(x) + self.third(x)) + self.third(x).norm(), "read by norm"),
        (lambda self, x: self.second(divided(self.first(x))), "read as channels and as numbers"),
        (lambda self, x: self.second(self.third(self.first(x)) + self.third(x)), "third.weight reads others"),
        (lambda self, x: self.second(F.layer_norm(self.first(x), (3, 4))), "read by layer_norm"),
        (lambda self, x: self.second(self.first(x)) + self.first(x).norm(), "read by norm"),
        (lambda self, x: self.second(self.first(x)[:, [1, 0, 2, 3]]), "read by getitem"),
        (lambda self, x: self.second(overwritten(self.first(x), x)), "read by setitem"),
        (
            lambda self, x: F.linear(self.first(x), 2 * self.second.weight),
            "read by a linear of computed weights",
        ),
        (lambda self, x: F.linear(self.first(x), self.second.weight), "read by second in another way"),
        (lambda self, x: self.second(self.first(self.first(x))), "its weights are used elsewhere"),
        (lambda self, x: self.second(self.first(x)) + self.second(x), "second.weight reads others too"),
        (lambda self, x: self.second(self.first(x)) * self.second.weight.sum(), "second.weight reads others"),
        (lambda self, x: self.second(self.first(x)) + x @ self.second.weight.T, "second.weight reads others"),
        (lambda self, x: self.second(self.first(x)) + self.second.weight.sum(), "second.weight reads others"),
        (lambda self, x: self.first(x) @ self.second.weight, "read by matmul"),
        (lambda self, x: self.second((h := self.first(x)) + self.third(x)) + h.norm().log(), "read by norm"),
        (lambda self, x: self.second(self.third(x) + (h := self.first(x))) + h.norm().log(), "read by norm"),
        (lambda self, x: self.second(h := self.first(x)) * h.detach().max(), "read by max"),
        (lambda self, x: self.second(x.type_as(h := self.first(x)) + h), "read by add"),
        (lambda self, x: self.second(F.pad(self.first(x)[..., None], (0, 0, 1, -1))[..., 0]), "read by pad"),
        (lambda self, x: self.second(self.first(x).pow(-1)), "read by pow"),
        (
            lambda self, x: torch.vmap(lambda row: self.second(self.first(row)))(x),
            "it runs within torch.vmap",
        ),
        (lambda self, x: self.second(torch.div(input=x, other=self.first(x))), "read by div"),
        (lambda self, x: self.second(filled(torch.zeros(3, 4), self.first(x))), "read by setitem"),
        (lambda self, x: self.second(first_half_overwritten(self.first(x), x)), "read by setitem"),
    ],
)
def test_what_reads_them_in_another_way(forward: Any, reason: str) -> None:
    found, left_out = found_in(Written(forward), 3, 4)
    assert "first" not in [units.layer for units in found]
    assert left_out["first"].startswith(reason)


class Rows(nn.Module):
    """The output of a linear layer as channels of several positions each."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.first, self.between, self.out = nn.Linear(4, 12), between, nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.between(self.first(x).view(-1, 4, 3)).flatten(1))


@pytest.mark.parametrize(
    "between",
    [nn.Conv1d(4, 4, 3, padding=1, groups=4), nn.BatchNorm1d(4), nn.GroupNorm(2, 4), nn.LayerNorm(3)],
)
def test_what_has_one_row_for_a_unit_of_several_rows(between: nn.Module) -> None:
    found, left_out = found_in(Rows(between), 3, 4)
    assert "first" in left_out
    assert [units.layer for units in found] in ([], ["between"])


def test_values_that_several_heads_share_have_no_units() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        q = self.first(x).view(3, 5, 4, 2).transpose(1, 2)
        k, v = (layer(x).view(3, 5, 2, 2).transpose(1, 2) for layer in (self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.second(y.transpose(1, 2).reshape(3, 5, 8))

    layers = {"first": nn.Linear(4, 8), "key": nn.Linear(4, 4), "second": nn.Linear(8, 4)}
    module = Written(forward, value=nn.Linear(4, 4), **layers)
    found, left_out = found_in(module, 3, 5, 4)
    assert not found
    assert left_out["value"] == left_out["first"] == "read by scaled_dot_product_attention"


def test_queries_are_no_units_of_attention_to_something_else() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        q, k = (layer(x).view(3, 5, 2, 2).transpose(1, 2) for layer in (self.first, self.third))
        v = x.view(3, 5, 2, 2).transpose(1, 2)
        return self.second(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))

    assert not found_in(Written(forward), 3, 5, 4)[0]


def test_pooling_over_channels_mixes_units() -> None:
    layers = {"first": nn.Conv1d(2, 4, 1), "second": nn.Conv1d(4, 2, 1)}
    module = Written(lambda self, x: self.second(F.avg_pool2d(self.first(x), 3, 1, 1)), **layers)
    found, left_out = found_in(module, 3, 2, 6)
    assert (found, left_out["first"]) == ([], "read by avg_pool2d")


def test_one_unit_and_what_all_units_would_have() -> None:
    module = Written(lambda self, x: self.second(self.first(x) + x[:, :1]), second=nn.Linear(1, 2))
    module.first = nn.Linear(4, 1)
    assert found_in(module, 3, 4)[1]["first"] == "read by add"


def test_layers_that_are_not_followed_are_said() -> None:
    layers = {
        "first": nn.Conv1d(4, 4, 1, groups=2),
        "second": nn.Conv1d(4, 2, 1, padding_mode="circular", padding=1),
    }
    module = Written(lambda self, x: self.second(self.first(self.third(x.mT).mT)), **layers)
    _, left_out = found_in(module, 3, 4, 5)
    assert left_out == {
        "first": "it has groups",
        "third": "read by first in another way",
        "second": "read by sum",
    }
    module.first, module.third = nn.Conv1d(4, 4, 1, padding_mode="reflect", padding=0), nn.Linear(4, 4)
    assert [units.layer for units in found_in(module, 3, 4, 5)[0]] == ["third", "first"]


@pytest.mark.parametrize("times", range(5))
def test_pruned_weights_have_no_units(times: int) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    for layer in module[::2]:
        prune.l1_unstructured(layer, "weight", 0.3)
    found, left_out = found_in(module, 3, 4)
    assert (found, left_out) == ([], dict.fromkeys("024", "its weights are computed"))


def test_a_norm_that_is_written_by_hand() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)

    module = Written(lambda self, x: self.second(self.norm(self.first(x))), norm=Norm())
    [units], _ = found_in(module, 3, 4)
    assert units.norms == ("norm",)


def test_a_gate_of_whole_heads_is_no_unit_of_theirs() -> None:
    module = Written(
        lambda self, x: self.second((self.first(x).view(3, 2, 2) * self.gate(x).unsqueeze(2)).flatten(1)),
        gate=nn.Linear(4, 2),
    )
    found, left_out = found_in(module, 3, 4)
    assert (found, left_out["first"], left_out["gate"]) == ([], "read by mul", "read by mul")


def test_a_convolution_of_each_position_of_a_channel_is_no_part_of_it() -> None:
    layers = {"first": nn.Conv1d(1, 4, 1), "each": nn.Conv1d(8, 8, 1, groups=8), "second": nn.Conv1d(8, 2, 1)}
    module = Written(lambda self, x: self.second(self.each(self.first(x).flatten(1).unsqueeze(2))), **layers)
    found, left_out = found_in(module, 3, 1, 2)
    assert left_out["first"] == "read as channels and as numbers"
    assert [units.layer for units in found] == ["each"]


def test_one_layer_may_read_a_stream_at_several_places() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        begun, h = self.first(x), self.norm(self.third(x))
        return self.second(h) + self.second(self.norm(begun + h))

    found, _ = found_in(Written(forward, norm=nn.LayerNorm(4)), 3, 4)
    assert found == [Units("first", 4, named("first", "third"), ("norm",), ("second.weight",))]


def test_incoming_weights_of_all_layers_count() -> None:
    module = Gated()
    [units, _], _ = found_in(module, 3, 6)
    expected = module.gate.weight.abs().sum(1) + module.up.weight.abs().sum(1)
    torch.testing.assert_close(UnitWeights(module, units).incoming_magnitude(), expected.detach())


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.LayerNorm, nn.RMSNorm])
def test_norms_between_units_and_what_reads_them(kind: type[nn.Module]) -> None:
    module = Written(lambda self, x: self.second(self.norm(self.first(x)).relu()), norm=kind(4))
    found, left_out = found_in(module, 3, 4)
    assert found == [Units("first", 4, ("first.weight", "first.bias"), ("norm",), ("second.weight",))]
    module.written = lambda self, x: self.third(self.norm(self.second(self.norm(self.first(x)))))
    found, left_out = found_in(module, 3, 4)
    assert (found, left_out["first"], left_out["second"]) == ([], *["its norm is used elsewhere too"] * 2)
    module.written = lambda self, x: self.second(self.norm(self.first(x))) + self.norm(x)
    assert found_in(module, 3, 4)[1]["first"] == "its norm is used elsewhere too"


@pytest.mark.parametrize("shared", ["weight", "bias"])
def test_layers_that_share_weights_have_no_units(shared: str) -> None:
    module = Written(lambda self, x: self.third(self.second(self.first(x).relu()).relu()))
    setattr(module.second, shared, getattr(module.first, shared))
    found, left_out = found_in(module, 3, 4)
    assert not found
    assert left_out["second"] == "its weights are used elsewhere too"


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
