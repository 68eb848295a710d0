"""Slow Kronecker factors of one layer's Fisher, one sample and one position at a time.

Nothing here changes the mode of the model: the caller decides between ``eval()`` and ``train()``.
A pair of factors is always (A, G), the one of the layer's inputs first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def positions(layer: nn.Module, layer_input: Tensor) -> Tensor:
    """List the vectors which the weight matrix is applied to, for one sample, as (T, in [+ 1]).

    a_t = [x_t, 1] for a linear layer, [patch_t, 1] for a convolution, without the 1 if there is no bias.
    """
    if isinstance(layer, nn.Linear):
        rows = list(layer_input.reshape(-1, layer.in_features))
    elif isinstance(layer, nn.Conv2d) and layer.groups == 1:
        # The layer's own padding amounts, which also cover padding="same" and the other padding modes.
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        padded = nn.functional.pad(layer_input, layer._reversed_padding_repeated_twice, mode=mode)[0]
        (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
        reach_h, reach_w = dh * (kh - 1) + 1, dw * (kw - 1) + 1
        rows = []
        for top in range(0, padded.shape[1] - reach_h + 1, sh):
            for left in range(0, padded.shape[2] - reach_w + 1, sw):
                patch = padded[:, top : top + reach_h : dh, left : left + reach_w : dw]
                rows.append(patch.reshape(-1))
    else:
        raise ValueError("the layer must be an nn.Linear or an nn.Conv2d with groups=1")
    if layer.bias is not None:
        rows = [torch.cat([row, torch.ones_like(row[:1])]) for row in rows]
    return torch.stack(rows)


def output_positions(layer: nn.Module, tensor: Tensor) -> Tensor:
    """List a tensor of the shape of the layer's output, for one sample, as (T, out).

    delta_t = tensor[0, t] for a linear layer, tensor[0, :, t] for a convolution.
    """
    if isinstance(layer, nn.Linear):
        return tensor.reshape(-1, layer.out_features)
    return tensor[0].reshape(tensor.shape[1], -1).T


def linear_factors(
    model: nn.Module, layer_name: str, inputs: Tensor, cotangents: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Second moments of a layer's inputs and of the gradients at its outputs.

    A = 1/(N T) sum_n sum_t a_nt a_nt^T, G = 1/N sum_n sum_k sum_t delta_nt^(k) delta_nt^(k)T,
    delta_nt^(k) = d (sum_j v^(k)_nj f_j(x_n)) / d (layer output at t).
    """
    layer = model.get_submodule(layer_name)
    calls: list[tuple[Tensor, Tensor]] = []

    def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # A leaf has a gradient even in a frozen model, and its clone may be changed in place afterwards.
        leaf = output.detach().clone().requires_grad_()
        calls.append((args[0].detach().clone(), leaf))
        return leaf.clone()

    handle = layer.register_forward_hook(record)
    a_sum: Tensor | float = 0.0
    g_sum: Tensor | float = 0.0
    count = 0
    try:
        for n in range(len(inputs)):
            calls.clear()
            output = model(inputs[n : n + 1])
            if len(calls) != 1:
                raise ValueError("the layer must be used exactly once per forward")
            layer_input, layer_output = calls[0]
            for a in positions(layer, layer_input):
                a_sum = a_sum + torch.outer(a, a)
                count += 1
            for cotangent in cotangents:
                value = (cotangent[n : n + 1] * output).sum()
                (delta,) = torch.autograd.grad(value, [layer_output], retain_graph=True)
                for d in output_positions(layer, delta):
                    g_sum = g_sum + torch.outer(d, d)
    finally:
        handle.remove()
    # The count is N T: the positions are averaged in A and summed in G.
    return a_sum / count, g_sum / len(inputs)


def quadratic(A: Tensor, G: Tensor, weight_change: Tensor, bias_change: Tensor | None = None) -> Tensor:
    """Compute the quadratic form of a change of a layer, with the bias as last column of its matrix.

    q = tr(G D A D^T), D = [dW, db].
    """
    D = weight_change.reshape(weight_change.shape[0], -1)
    if bias_change is not None:
        D = torch.cat([D, bias_change.reshape(-1, 1)], dim=1)
    return torch.trace(G @ D @ A @ D.T)


def dense(A: Tensor, G: Tensor) -> Tensor:
    """Write out the block of the Fisher which acts on the change D flattened row by row.

    F = kron(G, A), so that vec(D)^T F vec(D) = tr(G D A D^T).
    """
    return torch.kron(G, A)


def nearest_kronecker_sum(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Replace a sum of Kronecker products by the nearest single one, from pairs (A_k, G_k) to (A, G).

    argmin ||sum_k kron(G_k, A_k) - kron(G, A)||_F, by the SVD of sum_k vec(G_k) vec(A_k)^T.
    """
    A_0, G_0 = pairs[0]
    rearranged = torch.zeros(G_0.numel(), A_0.numel(), dtype=A_0.dtype, device=A_0.device)
    for A_k, G_k in pairs:
        rearranged = rearranged + torch.outer(G_k.reshape(-1), A_k.reshape(-1))
    U, S, Vh = torch.linalg.svd(rearranged, full_matrices=False)
    G = S[0].sqrt() * U[:, 0].reshape(G_0.shape)
    A = S[0].sqrt() * Vh[0].reshape(A_0.shape)
    # The SVD leaves a common sign open, and both factors of a positive block are positive.
    if torch.trace(G) < 0:
        A, G = -A, -G
    return A, G
