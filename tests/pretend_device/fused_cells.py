"""The cells of LSTM and GRU, of which torch expects one kernel each of a device that is not the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

_libraries: list[torch.library.Library] = []  # an implementation lasts as long as its library


def register() -> None:
    """Makes ``nn.LSTM`` and ``nn.GRU`` run on the pretend device."""
    aten = torch.library.Library("aten", "IMPL")
    _libraries.append(aten)
    aten.impl("_thnn_fused_lstm_cell", lstm_cell, "PrivateUse1")
    aten.impl("_thnn_fused_lstm_cell_backward_impl", lstm_cell_backward, "PrivateUse1")
    aten.impl("_thnn_fused_gru_cell", gru_cell, "PrivateUse1")
    aten.impl("_thnn_fused_gru_cell_backward", gru_cell_backward, "PrivateUse1")


def _with(gates: Tensor, bias: Tensor | None) -> Tensor:
    return gates if bias is None else gates + bias


def lstm_cell(
    inner: Tensor,
    hidden: Tensor,
    cx: Tensor,
    inner_bias: Tensor | None = None,
    hidden_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    i, f, g, o = (_with(inner, inner_bias) + _with(hidden, hidden_bias)).chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    cy = f * cx + i * g
    return o * cy.tanh(), cy, torch.cat([i, f, g, o], 1)


def lstm_cell_backward(
    grad_hy: Tensor | None, grad_cy: Tensor | None, cx: Tensor, cy: Tensor, gates: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    i, f, g, o = gates.chunk(4, 1)
    grad_hy = torch.zeros_like(cy) if grad_hy is None else grad_hy
    through = grad_hy * o * (1 - cy.tanh() ** 2) + (0 if grad_cy is None else grad_cy)
    grads = torch.cat(
        [
            through * g * i * (1 - i),
            through * cx * f * (1 - f),
            through * i * (1 - g**2),
            grad_hy * cy.tanh() * o * (1 - o),
        ],
        1,
    )
    return grads, through * f, grads.sum(0)


def gru_cell(
    inner: Tensor,
    hidden: Tensor,
    hx: Tensor,
    inner_bias: Tensor | None = None,
    hidden_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    ir, iz, in_ = _with(inner, inner_bias).chunk(3, 1)
    hr, hz, hn = _with(hidden, hidden_bias).chunk(3, 1)
    r, z = (ir + hr).sigmoid(), (iz + hz).sigmoid()
    n = (in_ + r * hn).tanh()
    return (1 - z) * n + z * hx, torch.cat([r, z, n, hx, hn], 1)


def gru_cell_backward(
    grad: Tensor, workspace: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    r, z, n, hx, hn = workspace.chunk(5, 1)
    at_n = grad * (1 - z) * (1 - n**2)
    at_z = grad * (hx - n) * z * (1 - z)
    at_r = at_n * hn * r * (1 - r)
    inner, hidden = torch.cat([at_r, at_z, at_n], 1), torch.cat([at_r, at_z, at_n * r], 1)
    return inner, hidden, grad * z, inner.sum(0), hidden.sum(0)
