"""Layers of half precision have the per-sample gradients of single precision, from the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cl_callbacks.gradients.attention_gradients import attention_gradients
from cl_callbacks.gradients.layer_gradients import has_rule, layer_gradients

N = 40  # more than the 8 bits of a sum in half precision keep apart
LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), lambda: torch.randn(N, 6)),
    "linear, positions": (lambda: nn.Linear(6, 4), lambda: torch.randn(N, 5, 6)),
    "convolution": (lambda: nn.Conv2d(2, 4, 3), lambda: torch.randn(N, 2, 5, 5)),
    "embedding": (lambda: nn.Embedding(7, 4), lambda: torch.randint(7, (N, 5))),
    "layer norm": (lambda: nn.LayerNorm(6), lambda: torch.randn(N, 5, 6)),
    "group norm": (lambda: nn.GroupNorm(2, 4), lambda: torch.randn(N, 4, 5)),
    "batch norm": (lambda: nn.BatchNorm1d(4).eval(), lambda: torch.randn(N, 4, 5)),
    "synchronised batch norm": (lambda: nn.SyncBatchNorm(4).eval(), lambda: torch.randn(N, 4, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_they_are_of_the_layers_that_are_known(name: str) -> None:
    assert has_rule(LAYERS[name][0]())


@pytest.mark.parametrize("magnitude", [Tensor.square_, Tensor.abs_])
@pytest.mark.parametrize("name", LAYERS)
def test_half_precision_becomes_single_before_any_product(name: str, magnitude: object) -> None:
    torch.manual_seed(0)
    make, inputs = LAYERS[name]
    layer, x = make().bfloat16(), inputs()
    x = x.bfloat16() if x.is_floating_point() else x
    delta = torch.randn_like(layer(x))
    half = layer_gradients(layer, x, delta)
    full = layer_gradients(layer.float(), x.float() if x.is_floating_point() else x, delta.float())
    for key in full:
        totals = [torch.zeros(getattr(layer, key).shape) for _ in range(2)]
        half[key].add_to(totals[0], magnitude, 1 << 10)
        full[key].add_to(totals[1], magnitude, 1 << 10)
        torch.testing.assert_close(*totals, rtol=1e-6, atol=1e-6)


def test_so_does_attention() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).bfloat16()
    x, delta = torch.randn(2, N, 5, 8).bfloat16()
    half = attention_gradients(attention, ((x, x, x), {}), delta)
    x = x.float()
    full = attention_gradients(attention.float(), ((x, x, x), {}), delta.float())
    for key in full:
        torch.testing.assert_close(half[key].rows(0, N), full[key].rows(0, N))
