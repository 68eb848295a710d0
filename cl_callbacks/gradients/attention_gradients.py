r"""Per-sample gradients of packed self-attention, in closed form around the attention itself.

:class:`torch.nn.MultiheadAttention` applies its weights without calling submodules. Its two linear maps,
:math:`p = x W^\top + b` in front of the attention :math:`h = \mathrm{attention}(p)` and
:math:`y = h W_o^\top + b_o` behind it, are layers like others once :math:`h` and the cotangents of :math:`p`
are known. The attention, cheap compared with the maps, is run again for both, for all samples at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_callbacks.gradients.layer_gradients import Gradients, linear_gradients

Inputs = tuple[Sequence[Any], Mapping[str, Any]]
ATTENTION_WEIGHTS = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")


def is_self_attention(
    module: nn.Module, inputs: Inputs, deltas: Sequence[Tensor | None]
) -> TypeGuard[nn.MultiheadAttention]:
    """Whether :func:`attention_gradients` is valid for a call.

    Query, key and value are one tensor, projected by one matrix; there is no dropout, nothing is added to the
    keys, and only the first output has a cotangent.
    """
    if type(module).forward is not nn.MultiheadAttention.forward:
        return False
    query, key, value = _arguments(module, inputs, "query", "key", "value")
    return (
        query is key is value
        and query.ndim == 3
        and module.in_proj_weight is not None
        and module.bias_k is None
        and not module.add_zero_attn
        and not (module.training and module.dropout)
        and not any(delta is not None for delta in deltas[1:])
    )


def attention_gradients(
    attention: nn.MultiheadAttention, inputs: Inputs, delta: Tensor, start: int = 0, stop: int | None = None
) -> Gradients:
    """Per-sample gradients of all parameters of a self-attention, by their name within it.

    Args:
        attention: a module for whose call :func:`is_self_attention` holds.
        inputs: its positional and keyword arguments.
        delta: the cotangents of its first output, of the same shape.
        start: the first sample to compute them for.
        stop: the one after the last; default: all from ``start``.

    Returns:
        Gradients of these samples; computed in at least float32.

    Example:
        >>> attention, x = nn.MultiheadAttention(4, 2, batch_first=True), torch.randn(3, 5, 4)
        >>> gradients = attention_gradients(attention, ((x, x, x), {}), torch.randn(3, 5, 4))
        >>> gradients["out_proj.weight"].rows(0, 3).shape
        torch.Size([3, 4, 4])
    """
    x, padding, mask = _arguments(attention, inputs, "query", "key_padding_mask", "attn_mask")
    if not attention.batch_first:
        x, delta = x.transpose(0, 1), delta.transpose(0, 1)
    dtype, part, samples = torch.promote_types(delta.dtype, torch.float32), slice(start, stop), len(x)
    x, delta = x[part].to(dtype), delta[part].to(dtype)
    weight, bias, out_weight = (
        None if p is None else p.detach().to(dtype)
        for p in (attention.in_proj_weight, attention.in_proj_bias, attention.out_proj.weight)
    )
    with torch.enable_grad():
        projected = F.linear(x, weight, bias).requires_grad_()
        q, k, v = projected.unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        padding = None if padding is None else padding[part]
        if mask is not None and mask.ndim == 3:  # (N * heads, T, T)
            mask = mask.unflatten(0, (samples, -1))[part].flatten(0, 1)
        scores = _additive(padding, mask, len(x), dtype)
        attended = F.scaled_dot_product_attention(q, k, v, scores).transpose(1, 2).flatten(2)
    [of_projected] = torch.autograd.grad(attended, projected, delta @ out_weight)
    before = linear_gradients(x, of_projected)
    behind = linear_gradients(attended.detach(), delta)
    return {
        "in_proj_weight": before["weight"],
        "in_proj_bias": before["bias"],
        "out_proj.weight": behind["weight"],
        "out_proj.bias": behind["bias"],
    }


def _arguments(module: nn.Module, inputs: Inputs, *names: str) -> list[Any]:
    args, kwargs = inputs
    given = inspect.signature(nn.MultiheadAttention.forward).bind(module, *args, **kwargs).arguments
    return [given.get(name) for name in names]


def _additive(padding: Tensor | None, mask: Tensor | None, samples: int, dtype: torch.dtype) -> Tensor | None:
    """Term added to the scores ``(N, heads, T, T)``: -inf where a boolean mask excludes a position.

    ``is_causal`` is only a hint that the mask is causal, so the mask suffices.
    """
    total = None
    if padding is not None:  # (N, T)
        total = _as_scores(padding, dtype)[:, None, None, :]
    if mask is not None:  # (T, T), or (N * heads, T, T)
        mask = _as_scores(mask if mask.ndim == 2 else mask.unflatten(0, (samples, -1)), dtype)
        total = mask if total is None else total + mask
    return total


def _as_scores(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype is torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf)
    return mask.to(dtype)
