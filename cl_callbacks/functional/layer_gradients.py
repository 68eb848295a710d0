r"""Per-sample weight gradients of single layers, in closed form.

A layer that saw inputs :math:`a_n` and whose outputs receive the cotangents :math:`\delta_n` knows the
gradient of every sample: for a linear map at :math:`T` positions,
:math:`g_n = \sum_t \delta_{nt} a_{nt}^\top`. :func:`layer_gradients` returns these gradients as
:class:`PerSample` objects, whose squares can be summed without ever holding all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Magnitude = Callable[[Tensor], Tensor]
"""What is summed over samples: ``Tensor.square_`` or ``Tensor.abs_``, in place.

Elementwise, and multiplicative: the magnitude of a product is the product of the magnitudes.
"""


class PerSample(ABC):
    """The gradients of one parameter, one for each of ``samples`` samples."""

    samples: int
    shape: torch.Size

    @property
    def row_bytes(self) -> int:
        """What the gradient of one sample takes, or what is copied to compute it, if that is more."""
        return self.shape.numel() * 4

    @abstractmethod
    def rows(self, start: int, stop: int) -> Tensor:
        """Gradients of samples ``start`` to ``stop``, of shape ``(stop - start, *shape)``."""

    def add_to(self, total: Tensor, magnitude: Magnitude, max_bytes: int) -> None:
        r"""Adds the sum over samples, such as :math:`\sum_n g_n^2`, to ``total``, in place."""
        add_in_chunks([self], total, magnitude, max_bytes)


def add_in_chunks(parts: list[PerSample], total: Tensor, magnitude: Magnitude, max_bytes: int) -> None:
    r"""Adds :math:`\sum_n (\sum_j g_n^{(j)})^2` of gradients that add up over uses of a parameter.

    Args:
        parts: the same samples' gradients from each use of one parameter.
        total: what they are added to, in place; of the parameter's shape.
        magnitude: the square, or the absolute value instead.
        max_bytes: bound on the per-sample gradients, or what they are computed from, that is held at a
            time; those of at least one sample are. Best where that fits into a processor's cache.
    """
    samples = parts[0].samples
    step = max(1, min(samples, max_bytes // max(part.row_bytes for part in parts)))
    for start in range(0, samples, step):
        stop = min(start + step, samples)
        rows = parts[0].rows(start, stop)
        for part in parts[1:]:
            rows = rows + part.rows(start, stop)
        add_magnitudes(rows, total, magnitude)


def add_magnitudes(rows: Tensor, total: Tensor, magnitude: Magnitude) -> None:
    """Adds the magnitudes of gradients ``(N, *shape)``, summed over ``N``, to ``total``; overwrites them."""
    if len(rows) == 1 and magnitude is Tensor.square_:
        total.addcmul_(rows[0], rows[0])  # a large parameter's, in one pass over the memory instead of two
    else:
        total.add_(magnitude(rows).sum(0))


@dataclass
class Dense(PerSample):
    """Gradients that are small enough to be held: biases and affine scales."""

    values: Tensor

    def __post_init__(self) -> None:
        self.samples, self.shape = self.values.shape[0], self.values.shape[1:]

    def rows(self, start: int, stop: int) -> Tensor:
        return self.values[start:stop].clone()

    def add_to(self, total: Tensor, magnitude: Magnitude, max_bytes: int) -> None:
        total.add_(magnitude(self.values.clone()).sum(0))


@dataclass
class Outer(PerSample):
    r"""Gradients :math:`\sum_t \delta_{nt} a_{nt}^\top` in ``G`` groups of channels.

    ``delta`` is ``(N, G, T, O)``, ``inputs`` is ``(N, G, I, T)``, the last two in whatever finer dimensions,
    and the parameter holds ``(G * O, I)`` values in whatever ``shape``.
    """

    delta: Tensor
    inputs: Tensor
    shape: torch.Size

    def __post_init__(self) -> None:
        self.samples = self.delta.shape[0]

    @property
    def row_bytes(self) -> int:
        """See :class:`PerSample`."""
        return max(self.shape.numel(), self.inputs[0].numel()) * 4

    def sides(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Cotangents ``(n, G, T, O)`` and inputs ``(n, G, T, I)`` of ``n`` samples."""
        delta = self.delta[start:stop]
        return delta, self.inputs[start:stop].reshape(*delta.shape[:2], -1, delta.shape[2]).mT

    def rows(self, start: int, stop: int) -> Tensor:
        delta, inputs = self.sides(start, stop)
        return (delta.mT @ inputs).reshape(stop - start, *self.shape)

    def add_to(self, total: Tensor, magnitude: Magnitude, max_bytes: int) -> None:
        if self.delta.shape[2] > 1:
            add_in_chunks([self], total, magnitude, max_bytes)
            return
        # One position: the square of a product is the product of the squares, one matmul for all n.
        delta, inputs = (magnitude(t.squeeze(2).clone()) for t in self.sides(0, self.samples))
        total.add_(torch.einsum("ngo,ngi->goi", delta, inputs).reshape(self.shape))


@dataclass
class Lookup(PerSample):
    r"""Gradients of an embedding table: :math:`\delta_{nt}` added to row ``index[n, t]``.

    ``delta`` is ``(N, T, D)``; positions that hold the padding index carry a zero.
    """

    delta: Tensor
    index: Tensor
    shape: torch.Size

    def __post_init__(self) -> None:
        self.samples = self.delta.shape[0]

    def rows(self, start: int, stop: int) -> Tensor:
        n = stop - start
        flat = self.delta.new_zeros(n * self.shape[0], self.shape[1])
        offset = torch.arange(n, device=self.index.device).unsqueeze(1) * self.shape[0]
        where = (self.index[start:stop] + offset).flatten()
        return flat.index_add_(0, where, self.delta[start:stop].flatten(0, 1)).view(n, *self.shape)

    def add_to(self, total: Tensor, magnitude: Magnitude, max_bytes: int) -> None:
        # Only rows that a sample looked up are non-zero: sum within each (sample, row), then square.
        offset = torch.arange(self.samples, device=self.index.device).unsqueeze(1) * self.shape[0]
        key, slot = torch.unique((self.index + offset).flatten(), return_inverse=True)
        rows = self.delta.new_zeros(len(key), self.shape[1])
        rows.index_add_(0, slot, self.delta.flatten(0, 1))
        total.index_add_(0, key % self.shape[0], magnitude(rows).to(total.dtype))


Gradients = dict[str, PerSample]


def linear_gradients(x: Tensor, delta: Tensor) -> Gradients:
    """Of a linear map with inputs ``(N, ..., I)``, whose outputs ``(N, ..., O)`` receive ``delta``."""
    n, inputs, outputs = x.shape[0], x.shape[-1], delta.shape[-1]
    x, delta = x.reshape(n, 1, -1, inputs), delta.reshape(n, 1, -1, outputs)
    return {"weight": Outer(delta, x.mT, torch.Size((outputs, inputs))), "bias": Dense(delta.sum((1, 2)))}


def _linear(layer: nn.Linear, x: Tensor, delta: Tensor) -> Gradients:
    return linear_gradients(x, delta)


def _conv(layer: nn.Conv1d | nn.Conv2d, x: Tensor, delta: Tensor) -> Gradients:
    """A convolution is a linear map of its unfolded patches, one position for each output pixel."""
    n, groups = x.shape[0], layer.groups
    kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    # (last dimension first) what the layer pads, whether given as numbers, "same" or another mode.
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
    return {
        "weight": Outer(by_group, patches, layer.weight.shape),
        "bias": Dense(delta.flatten(2).sum(2)),
    }


def _embedding(layer: nn.Embedding, index: Tensor, delta: Tensor) -> Gradients:
    index = index.reshape(len(index), -1)
    delta = delta.reshape(len(index), -1, delta.shape[-1])
    if layer.padding_idx is not None:
        delta = delta.masked_fill((index == layer.padding_idx).unsqueeze(-1), 0.0)
    return {"weight": Lookup(delta, index, layer.weight.shape)}


def _layer_norm(layer: nn.LayerNorm, x: Tensor, delta: Tensor) -> Gradients:
    unit = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    shape = (x.shape[0], -1, *layer.normalized_shape)
    return {
        "weight": Dense((delta * unit).reshape(shape).sum(1)),
        "bias": Dense(delta.reshape(shape).sum(1)),
    }


def _channel_affine(delta: Tensor, unit: Tensor) -> Gradients:
    shape = (delta.shape[0], delta.shape[1], -1)
    return {
        "weight": Dense((delta * unit).reshape(shape).sum(2)),
        "bias": Dense(delta.reshape(shape).sum(2)),
    }


def _group_norm(layer: nn.GroupNorm, x: Tensor, delta: Tensor) -> Gradients:
    return _channel_affine(delta, F.group_norm(x, layer.num_groups, eps=layer.eps))


def _batch_norm(layer: nn.BatchNorm1d, x: Tensor, delta: Tensor) -> Gradients:
    assert layer.running_mean is not None and layer.running_var is not None  # see has_rule
    unit = F.batch_norm(x, layer.running_mean.to(x), layer.running_var.to(x), eps=layer.eps)
    return _channel_affine(delta, unit)


class Itself(nn.Module):
    """The layer that a parameter is which is used as it is: whatever its input, it returns its weight."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
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


def layer_gradients(layer: nn.Module, inputs: Tensor, delta: Tensor) -> Gradients:
    """Per-sample gradients of a layer's own parameters, by their name within the layer.

    Args:
        layer: a layer for which :func:`has_rule` holds.
        inputs: what it was called with; the first dimension counts the samples, ``N``.
        delta: the cotangents of its outputs, first dimension ``N`` too.

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
