"""Mixed precision on the pretend device: what ``torch.autocast`` runs in half precision, what in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

HALF = (
    "mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "conv1d", "conv2d", "conv3d",
    "scaled_dot_product_attention",
)  # fmt: skip
FULL = (
    "nll_loss", "nll_loss_nd", "cross_entropy_loss", "layer_norm", "log_softmax.int", "softmax.int",
    "mse_loss", "exp", "log", "pow.Tensor_Scalar", "sum", "norm.Scalar",
)  # fmt: skip
_KEY = torch._C.DispatchKey.AutocastPrivateUse1
_libraries: list[torch.library.Library] = []  # an implementation lasts as long as its library


def register() -> None:
    """Makes ``torch.autocast("pretend")`` convert what goes into these operations."""
    everything, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    _libraries.extend([everything, aten])
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for names, dtype in ((HALF, None), (FULL, torch.float32)):
        for name in names:
            packet, _, overload = name.partition(".")
            operation = getattr(getattr(torch.ops.aten, packet), overload or "default")
            aten.impl(name, _converting(operation, dtype), "AutocastPrivateUse1")


def _converting(operation: Callable[..., Any], dtype: torch.dtype | None) -> Callable[..., Any]:
    def convert(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == torch.float64:
            return value
        return value.to(dtype or torch.get_autocast_dtype("pretend"))

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(_KEY)):
            return operation(*pytree.tree_map(convert, args), **pytree.tree_map(convert, kwargs))

    return run
