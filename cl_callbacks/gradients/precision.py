"""The precision in which a part of a forward ran, and what it leaves of the cotangents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from cl_callbacks.gradients.graph import graph_nodes


class Precision(NamedTuple):
    """What decides about dtypes at one point of a forward.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     inside = Precision.now("cpu")
        >>> with inside.again():
        ...     torch.nn.functional.linear(torch.ones(1, 1), torch.ones(1, 1)).dtype
        torch.bfloat16
        >>> with torch.autocast("cpu", torch.bfloat16), inside.full().again():
        ...     torch.nn.functional.linear(torch.ones(1, 1), torch.ones(1, 1)).dtype
        torch.float32
    """

    device: str
    """Type of the device that the autocast is for."""
    autocast: torch.dtype | None
    """The dtype that ``torch.autocast`` rounds to; ``None`` without it."""
    default: torch.dtype
    """The dtype of tensors that the forward creates."""

    @classmethod
    def now(cls, device: str) -> Precision:
        """The precision at this point of the program, on a type of device."""
        on = torch.is_autocast_enabled(device)
        return cls(device, torch.get_autocast_dtype(device) if on else None, torch.get_default_dtype())

    def full(self) -> Precision:
        """The same one without autocast."""
        return self._replace(autocast=None)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Context with this precision."""
        now = Precision.now(self.device)
        with ExitStack() as stack:
            if self.autocast is not now.autocast:
                # A cached cast of a weight would be without gradient if it was made without.
                on = self.autocast is not None
                stack.enter_context(torch.autocast(self.device, self.autocast, on, cache_enabled=False))
            if self.default is not now.default:
                stack.callback(torch.set_default_dtype, now.default)
                torch.set_default_dtype(self.default)
            yield


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """Dtype in which squares are summed: float32, or the tensor's own where that is wider."""
    return torch.promote_types(tensor.dtype, torch.float32)


def widened(outputs: Tensor) -> Tensor:
    """Outputs without their graph, in at least float32, to compute cotangents from."""
    return outputs.detach().to(wide_dtype(outputs))


def cotangent_dtypes(outputs: Tensor) -> set[torch.dtype]:
    """Floating-point dtypes that cotangents have on their way back from the outputs, whatever these have.

    Example:
        >>> weight = torch.ones(1, requires_grad=True)
        >>> sorted(map(str, cotangent_dtypes(weight.half().float())))
        ['torch.float16', 'torch.float32']
    """
    met = {meta.dtype for node in graph_nodes(outputs) for meta in node._input_metadata}
    return {dtype for dtype in met | {outputs.dtype} if dtype.is_floating_point}


def rounding(outputs: Tensor) -> float:
    """Relative size of the coarsest rounding of the outputs and of what is pulled back from them."""
    return max(torch.finfo(dtype).eps for dtype in cotangent_dtypes(outputs))
