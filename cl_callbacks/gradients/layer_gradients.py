r"""Per-sample weight gradients of single layers, in closed form.

The inputs :math:`a_n` of a layer and the cotangents :math:`\delta_n` of its outputs determine the
gradient of every sample: for a linear map at :math:`T` positions,
:math:`g_n = \sum_t \delta_{nt} a_{nt}^\top`. :func:`layer_gradients` returns these gradients as
:class:`~cl_callbacks.gradients.sample_gradients.PerSample` objects.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_callbacks.gradients.sample_gradients import Dense, Lookup, Outer, PerSample

Gradients = dict[str, PerSample]


def linear_gradients(x: Tensor, delta: Tensor) -> Gradients:
    """Per-sample gradients of a linear map from its inputs ``(N, ..., I)`` and cotangents ``(N, ..., O)``."""
    n, inputs, outputs = x.shape[0], x.shape[-1], delta.shape[-1]
    x, delta = x.reshape(n, 1, -1, inputs), delta.reshape(n, 1, -1, outputs)
    return {"weight": Outer(delta, x.mT, torch.Size((outputs, inputs))), "bias": Dense(delta.sum((1, 2)))}


def _linear(layer: nn.Linear, x: Tensor, delta: Tensor) -> Gradients:
    return linear_gradients(x, delta)


def _conv(layer: nn.Conv1d | nn.Conv2d, x: Tensor, delta: Tensor) -> Gradients:
    """Treats a convolution as a linear map of its unfolded patches, one position for each output pixel."""
    n, groups = x.shape[0], layer.groups
    kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    # (last dimension first) the amounts of padding, whether given as numbers, "same" or another mode.
    padding = layer._reversed_padding_repeated_twice
    x = F.pad(x, padding, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    if isinstance(layer, nn.Conv1d):
        x, delta = x.unsqueeze(2), delta.unsqueeze(2)
        kernel, stride, dilation = (1, *kernel), (1, *stride), (1, *dilation)
    # A view, copied for a few samples at a time: patches take several times what the inputs do.
    patches = x.unflatten(1, (groups, -1))  # (N, G, C, H, W)
    for along in (0, 1):
        reach = dilation[along] * (kernel[along] - 1) + 1
        patches = patches.unfold(3 + along, reach, stride[along])[..., :: dilation[along]]
    patches = patches.permute(0, 1, 2, 5, 6, 3, 4)  # (N, G, C, kernel, positions)
    by_group = delta.reshape(n, groups, -1, patches.shape[-2] * patches.shape[-1]).mT
    return {"weight": Outer(by_group, patches, layer.weight.shape), "bias": Dense(delta.flatten(2).sum(2))}


def _embedding(layer: nn.Embedding, index: Tensor, delta: Tensor) -> Gradients:
    index = index.reshape(len(index), -1)
    delta = delta.reshape(len(index), -1, delta.shape[-1])
    if layer.padding_idx is not None:
        delta = delta.masked_fill((index == layer.padding_idx).unsqueeze(-1), 0.0)
    return {"weight": Lookup(delta, index, layer.weight.shape)}


def _layer_norm(layer: nn.LayerNorm, x: Tensor, delta: Tensor) -> Gradients:
    unit = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    shape = (x.shape[0], -1, *layer.normalized_shape)
    return {"weight": Dense((delta * unit).reshape(shape).sum(1)), "bias": Dense(delta.reshape(shape).sum(1))}


def _channel_affine(delta: Tensor, unit: Tensor) -> Gradients:
    shape = (delta.shape[0], delta.shape[1], -1)
    return {"weight": Dense((delta * unit).reshape(shape).sum(2)), "bias": Dense(delta.reshape(shape).sum(2))}


def _group_norm(layer: nn.GroupNorm, x: Tensor, delta: Tensor) -> Gradients:
    return _channel_affine(delta, F.group_norm(x, layer.num_groups, eps=layer.eps))


def _batch_norm(layer: nn.BatchNorm1d | nn.SyncBatchNorm, x: Tensor, delta: Tensor) -> Gradients:
    assert layer.running_mean is not None and layer.running_var is not None  # see has_rule
    unit = F.batch_norm(x, layer.running_mean.to(x), layer.running_var.to(x), eps=layer.eps)
    return _channel_affine(delta, unit)


class Itself(nn.Module):
    """A layer for a parameter that no module owns in a call: it ignores its input and returns its weight."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """Returns the weight."""
        return self.weight


def _itself(layer: Itself, x: Tensor, delta: Tensor) -> Gradients:
    return {"weight": Dense(delta.reshape(len(delta), *layer.weight.shape))}


_RULES: dict[type[nn.Module], Callable[..., Gradients]] = {
    Itself: _itself,
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.SyncBatchNorm: _batch_norm,  # in evaluation mode nothing is synchronised
}


def has_rule(layer: nn.Module) -> bool:
    """Whether the layer's per-sample gradients are known in closed form.

    A subclass counts only while it keeps the forward of the layer it derives from.
    """
    if isinstance(layer, nn.Embedding):
        return layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse
    if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is None:
        return False
    return any(type(layer).forward is kind.forward for kind in _RULES)


def known_weights(layer: nn.Module) -> tuple[str, ...]:
    """Names of the parameters whose gradients :func:`layer_gradients` returns."""
    known = ("weight",) if isinstance(layer, nn.Embedding | Itself) else ("weight", "bias")
    return tuple(name for name in known if getattr(layer, name) is not None)


def layer_gradients(layer: nn.Module, inputs: Tensor, delta: Tensor) -> Gradients:
    """Per-sample gradients of a layer's own parameters, by their name within the layer.

    Args:
        layer: a layer for which :func:`has_rule` holds.
        inputs: its input tensor, whose first dimension counts the samples, ``N``.
        delta: the cotangents of its outputs, also with first dimension ``N``.

    Returns:
        :class:`PerSample` gradients; computed in at least float32.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> g = layer_gradients(layer, torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [3.0]]))
        >>> total = torch.zeros(1, 1)
        >>> g["weight"].add_to(total, Tensor.square_, max_bytes=1024)
        >>> total
        tensor([[37.]])
    """
    dtype = torch.promote_types(delta.dtype, torch.float32)
    rule = next(rule for kind, rule in _RULES.items() if type(layer).forward is kind.forward)
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    return {n: g for n, g in rule(layer, inputs, delta.to(dtype)).items() if getattr(layer, n) is not None}
