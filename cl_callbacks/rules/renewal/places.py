"""Where a tensor has the units of a layer, and where the result of a function has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

ATTENTION = {"scaled_dot_product_attention": 2, "matmul": 1, "__matmul__": 1, "bmm": 1}
"""Where these functions take the values."""
ADDING = {"add", "sub", "subtract", "rsub", "__iadd__", "__isub__", "__radd__", "__rsub__"}
_DIVIDING = {"div", "true_divide", "__truediv__", "__itruediv__"}
COMBINING = ADDING | _DIVIDING | {"mul", "multiply", "__imul__", "__rmul__"}
NORMALISING = {"batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"}
RESHAPING = {"flatten", "reshape", "unflatten", "view"}
_ELEMENTWISE = {
    "abs", "alpha_dropout", "celu", "clamp", "clip", "clone", "contiguous", "cos", "data", "detach", "double",
    "dropout", "elu", "eq", "feature_alpha_dropout", "dropout1d", "dropout2d", "dropout3d", "float",
    "bfloat16", "half", "ge", "gelu", "gt", "hardsigmoid", "hardswish", "hardtanh", "le", "leaky_relu",
    "logsigmoid", "lt", "masked_fill", "mish", "ne", "neg", "relu", "relu6", "selu", "sigmoid", "silu", "sin",
    "softplus", "softsign", "square", "tanh", "tanhshrink", "threshold", "to", "type_as",
}  # fmt: skip
_POWERS = {"pow", "__pow__"}
_LIKE_ANOTHER = {"expand_as", "reshape_as", "to", "type_as", "view_as"}
_RESIZING = {
    f"{kind}{d}d": d
    for d in (1, 2, 3)
    for kind in ("avg_pool", "max_pool", "adaptive_avg_pool", "adaptive_max_pool")
}
_EXPANDING = {"expand", "expand_as"}
_REDUCING = {"mean", "sum", "amax", "amin"}
_MOVING = {"transpose", "permute", "movedim", "swapaxes", "squeeze", "unsqueeze", "mT", "T"}
_PICKING = {"__getitem__", "narrow", "select"}


@dataclass(frozen=True)
class Place:
    """The dimension of a tensor along which units lie, and how many entries each of them has there."""

    dim: int
    columns: int = 1


@dataclass(frozen=True)
class Call:
    """A call of a function of torch on a tensor that has units, and its first result."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    x: Tensor
    out: Tensor


def depends_on_no_values(name: str) -> bool:
    """Whether the result of a function has only the shape or type of its inputs, or is a gradient."""
    return name.startswith("new_") or name.endswith("_like") or name == "grad"


def handled(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The arguments of which a function takes values, and not only shape, type or device."""
    return args[:1] if name in _LIKE_ANOTHER else (args, kwargs)


def after(call: Call, place: Place) -> Place | None:
    """Where the result of a function of one tensor has the units; ``None`` if it mixes or picks units."""
    x, out = call.x, call.out
    if call.name in _ELEMENTWISE:
        return place if out.shape == x.shape else None
    if call.name in _POWERS:
        exponent = call.args[1] if len(call.args) > 1 else None
        return place if isinstance(exponent, int | float) and exponent > 0 else None
    if call.name in _RESIZING:
        return place if place.dim == 1 and x.ndim == _RESIZING[call.name] + 2 else None
    if call.name in ("interpolate", "pad"):
        return place if place.dim == 1 and _resized(call) else None
    if call.name in _EXPANDING:
        return combined(call, place, [])
    if call.name in NORMALISING:
        return place if place.columns == 1 and _fits_norm(call, place.dim) else None
    if call.name in RESHAPING:
        return _reshaped(x, out, place)
    if call.name in _REDUCING:
        return _reduced(call, place)
    if call.name in _MOVING or (call.name in _PICKING and _picks_positions(call.args)):
        return _moved(call, place)
    return None


def combined(call: Call, place: Place, others: Sequence[tuple[Tensor, Place | None]]) -> Place | None:
    """Where the sum or product of tensors has units: those at one place in ``x`` and in all that have units.

    Others of one entry along that dimension, such as a mask or a number, do the same to each unit. Something
    may be divided by these alone: a unit that is 0 would give infinity.
    """
    x, out, behind = call.x, call.out, call.x.ndim - place.dim
    for tensor, other in others:
        size = tensor.shape[-behind] if tensor.ndim >= behind else 1
        if other is None and (size != 1 or (x.shape[place.dim] == 1 and tensor.numel() > 1)):
            return None
        if other is not None and (tensor.ndim - other.dim, other.columns) != (behind, place.columns):
            return None
    divided = call.args[0] if call.args else call.kwargs.get("input")
    if call.name in _DIVIDING and (divided is not x or any(other for _, other in others)):
        return None
    return replace(place, dim=out.ndim - behind) if out.shape[-behind] == x.shape[place.dim] else None


def divided_into_heads(x: Tensor, out: Tensor, place: Place) -> bool:
    """Whether each row of units was divided into heads, each a row of its own."""
    return place == Place(x.ndim - 1) and out.ndim == x.ndim + 1 and out.shape[:-2] == x.shape[:-1]


def _fits_norm(call: Call, dim: int) -> bool:
    """Whether the parameters of the norm have an entry for each unit, and for nothing else."""
    if call.name in ("layer_norm", "rms_norm"):
        shape = call.kwargs.get("normalized_shape", call.args[1] if len(call.args) > 1 else ())
        return dim == call.x.ndim - 1 and tuple(shape) == call.x.shape[-1:]
    return dim == 1


def _reshaped(x: Tensor, out: Tensor, place: Place) -> Place | None:
    """The units after dimensions behind them were merged with theirs, or only others have changed."""
    behind = x.ndim - place.dim
    if out.shape[-behind:] == x.shape[place.dim :]:
        return Place(out.ndim - behind, place.columns)
    if out.shape[: place.dim + 1] == x.shape[: place.dim + 1]:
        return place
    if out.shape[:-1] == x.shape[: place.dim]:
        return Place(place.dim, place.columns * x.shape[place.dim + 1 :].numel())
    return None


def _reduced(call: Call, place: Place) -> Place | None:
    """The units after a mean or sum over other dimensions, such as all positions of a channel."""
    found = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else None)
    dims = {d % call.x.ndim for d in ([found] if isinstance(found, int) else found or range(call.x.ndim))}
    if place.dim in dims:
        return None
    removed = 0 if call.out.ndim == call.x.ndim else sum(d < place.dim for d in dims)
    return Place(place.dim - removed, place.columns)


def _resized(call: Call) -> bool:
    """Whether only positions were padded or interpolated, and channels are as they were."""
    x, out = call.x, call.out
    padding = call.args[1] if len(call.args) > 1 else call.kwargs.get("pad", ())
    positions = 2 * (x.ndim - 2)
    channels = list(padding)[positions:] if call.name == "pad" else []
    return out.ndim == x.ndim > 2 and out.shape[:2] == x.shape[:2] and not any(channels)


def _picks_positions(args: tuple[Any, ...]) -> bool:
    """Whether an index has nothing but numbers and slices."""
    index = args[1] if len(args) > 1 and isinstance(args[1], tuple) else args[1:]
    return all(isinstance(i, int | slice | type(None) | type(...)) for i in index)


def _moved(call: Call, place: Place) -> Place | None:
    """The units after their dimension has become another one, which its stride tells."""
    x = call.x
    if x.shape[place.dim] == 1:
        return None
    meta = torch.empty(x.shape, device="meta")  # of those longer than 1 no two strides are alike
    args = [meta if a is x else a for a in call.args]
    moved = call.function(*args, **{k: meta if a is x else a for k, a in call.kwargs.items()})
    kept = x.shape[place.dim], meta.stride(place.dim)
    dims = [d for d in range(moved.ndim) if (moved.shape[d], moved.stride(d)) == kept]
    return Place(dims[0], place.columns) if len(dims) == 1 else None
