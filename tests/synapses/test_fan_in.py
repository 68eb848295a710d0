"""The scale of each layer, in which state may begin."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.testing._internal.distributed.fake_pg import FakeStore

from cl_callbacks.synapses.fan_in import fan_in, weight_scale
from cl_callbacks.synapses.state import Synapses

FIELDS = {"std": partial(weight_scale, factor=2.0)}


def named(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters())


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Linear(100, 3), {"weight": 100, "bias": 100}),
        (nn.Conv2d(4, 8, 3), {"weight": 36, "bias": 36}),
        (nn.Conv2d(4, 8, 3, groups=2), {"weight": 18, "bias": 18}),
        (nn.Embedding(50, 7), {"weight": 7}),
        (nn.LayerNorm(12), {"weight": 12, "bias": 12}),
        (nn.BatchNorm2d(5), {"weight": 5, "bias": 5}),
        (
            nn.MultiheadAttention(16, 2),
            {"in_proj_weight": 16, "in_proj_bias": 16, "out_proj.weight": 16, "out_proj.bias": 16},
        ),
        (nn.LSTM(5, 3), {"weight_ih_l0": 5, "bias_ih_l0": 5, "weight_hh_l0": 3, "bias_hh_l0": 3}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_inputs_of_each_unit(layer: nn.Module, expected: dict[str, int]) -> None:
    assert {name: fan_in(name, named(layer)) for name in expected} == expected
    nested = {f"net.0.{name}": p for name, p in layer.named_parameters()}
    assert {name: fan_in(f"net.0.{name}", nested) for name in expected} == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda layer: prune.identity(layer, "weight"), {"weight_orig": 12, "bias": 12}),
        (lambda layer: prune.identity(layer, "bias"), {"weight": 12, "bias_orig": 12}),
        (weight_norm, {"weight_g": 1, "weight_v": 12, "bias": 12}),
        (spectral_norm, {"weight_orig": 12, "bias": 12}),
        (
            parametrizations.weight_norm,
            {f"parametrizations.weight.original{i}": n for i, n in enumerate((1, 12))} | {"bias": 12},
        ),
        (parametrizations.spectral_norm, {"parametrizations.weight.original": 12, "bias": 12}),
    ],
)
def test_a_bias_belongs_to_a_matrix_of_another_name(change: Any, expected: dict[str, int]) -> None:
    layer = nn.Linear(12, 5)
    change(layer)
    assert {name: fan_in(name, named(layer)) for name in named(layer)} == expected


def test_a_scalar_has_one_input() -> None:
    assert fan_in("scale", {"scale": torch.ones(())}) == 1


def test_state_begins_in_units_of_the_layer() -> None:
    model = nn.Sequential(nn.Linear(100, 3), nn.Unflatten(1, (3, 1, 1)), nn.Conv2d(3, 4, 3, padding=1))
    view = Synapses(FIELDS).place(named(model), list(named(model)))
    for std, expected in zip(view["std"], (0.2, 0.2, 2 / 27**0.5, 2 / 27**0.5), strict=True):
        torch.testing.assert_close(std, torch.full_like(std, expected))


def test_new_rows_of_a_head_get_the_scale_of_the_head_and_old_ones_keep_their_state() -> None:
    model, synapses = nn.Linear(4, 2), Synapses(FIELDS)
    for std in synapses.place(named(model), ["weight", "bias"])["std"]:
        std.fill_(7.0)
    grown = nn.Linear(4, 3)
    for std in synapses.place(named(grown), ["weight", "bias"])["std"]:
        assert (std[:2] == 7.0).all()
        assert (std[2:] == 1.0).all()


@pytest.fixture
def mesh() -> Iterator[object]:
    """Of two processes, of which this is the first; the other is pretended."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        yield init_device_mesh("cpu", (2,))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("dim", [0, 1])
def test_a_shard_has_the_scale_of_the_whole_layer(mesh: object, dim: int) -> None:
    layer = nn.Linear(16, 8)
    model: dict[str, Tensor] = {
        "weight": distribute_tensor(layer.weight.detach(), mesh, [Shard(dim)], src_data_rank=None),  # type: ignore[arg-type]
        "bias": distribute_tensor(layer.bias.detach(), mesh, [Shard(0)], src_data_rank=None),  # type: ignore[arg-type]
        "norm": distribute_tensor(torch.ones(64), mesh, [Shard(0)], src_data_rank=None),  # type: ignore[arg-type]
    }
    assert isinstance(model["weight"], DTensor)
    whole = Synapses(FIELDS).place({**named(layer), "norm": torch.ones(64)}, list(model))
    sharded = Synapses(FIELDS).place(model, list(model))
    for full, part, factor in zip(whole["std"], sharded["std"], (2, 2, 2), strict=True):
        assert part.numel() == full.numel() // factor
        assert (part == full.flatten()[0]).all()
    assert math.isclose(sharded["std"][2][0], 2 / 8)
