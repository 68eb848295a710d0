"""Finds numbers that make no sense in a state that was saved, in a checkpoint or in an importance file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from cl_callbacks.guards.bounds import Bounds
from cl_callbacks.guards.few import shown

_MOST = torch.finfo(torch.float32).max ** 0.5
OF_WEIGHTS = Bounds(least=-_MOST, most=_MOST)
"""Finite, and small enough to be squared in float32."""
OF_SQUARES = Bounds(least=0, most=_MOST)
"""Such as an importance, a variance, or a number of times."""
FINITE = Bounds()
COUNT = Bounds(least=0, most=2**63 - 1)


def unsound(state: Any, bounds: Mapping[str, Bounds], path: str = "") -> Iterator[str]:
    """A phrase on each number or tensor of a saved state that cannot be meant.

    Args:
        state: tensors and numbers in mappings and lists of any nesting.
        bounds: by path, such as ``"tasks"`` or ``"synapses/importance"``, for all that is below it, too. What
            is below none may have any values, but a tensor must not claim more memory than it has.
        path: of the state within a larger one.

    Example:
        >>> state = {"synapses": {"importance": {"weight": torch.tensor([1.0, float("nan")])}}, "tasks": -5}
        >>> for phrase in unsound(state, {"tasks": COUNT, "synapses/importance": OF_SQUARES}): print(phrase)
        importance/weight holds nan, and must be from 0 to 1.84467e+19
        tasks holds -5, and must be from 0 to 9.22337e+18
    """
    limit = _nearest(bounds, path)
    name = path.removeprefix("synapses/")
    if isinstance(state, Mapping | list | tuple):
        for key, value in state.items() if isinstance(state, Mapping) else enumerate(state):
            yield from unsound(value, bounds, f"{path}/{key}".lstrip("/"))
    elif isinstance(state, Tensor):
        yield from (f"{name} {fault}" for fault in _faults(state, limit))
    elif limit is not None and (isinstance(state, bool) or not isinstance(state, int | float)):
        yield f"{name} is {shown(state)}, and must be a number"
    elif limit is not None and not limit.allow(state):
        yield f"{name} holds {shown(state)}, and must be{limit}"


def _nearest(bounds: Mapping[str, Bounds], path: str) -> Bounds | None:
    parts = path.split("/")
    above = ("/".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((bounds[known] for known in above if known in bounds), None)


def _faults(tensor: Tensor, limit: Bounds | None) -> Iterator[str]:
    if tensor.layout is not torch.strided or tensor.is_meta:
        yield f"is stored as {'meta' if tensor.is_meta else tensor.layout}, without all of its values"
        return
    size, held = tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes()
    if size > max(held, 1):
        yield f"repeats {held} bytes, and would take {size:.3g} of them"
    elif limit is not None and not (tensor.is_floating_point() and tensor.itemsize > 1):
        yield f"is of {tensor.dtype}, and must be of floating point"
    elif limit is not None and tensor.numel():
        wrong = [end for end in torch.stack(tensor.detach().aminmax()).tolist() if not limit.allow(end)]
        if wrong:
            yield f"holds {wrong[0]:g}, and must be{limit}"


def unlike_shapes(fields: Mapping[str, Mapping[str, Tensor]]) -> Iterator[str]:
    """A phrase on each weight whose fields have several shapes; each should have that of the weight.

    Example:
        >>> list(unlike_shapes({"importance": {"w": torch.ones(2)}, "anchor": {"w": torch.ones(3)}}))
        ['importance/w has the shape (2,) and anchor/w (3,)']
    """
    first: dict[str, tuple[str, Tensor]] = {}
    for field, named in fields.items():
        for name, tensor in named.items():
            other, known = first.setdefault(name, (field, tensor))
            if known.shape != tensor.shape:
                shapes = tuple(known.shape), tuple(tensor.shape)
                yield f"{other}/{name} has the shape {shapes[0]} and {field}/{name} {shapes[1]}"


def memory_of_machine() -> float:
    """Bytes of this machine's memory; infinite where the system does not tell."""
    names = getattr(os, "sysconf_names", {})
    if not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= names.keys():
        return float("inf")
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
