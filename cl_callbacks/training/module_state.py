"""A copy of everything in a module that training changes, to which it can be restored."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cl_callbacks.tensors.shards import reshard

Restore = Callable[[], Any]


class ModuleState:
    """Copies a module's weights, gradients, buffers, metrics, modes and attributes.

    Attributes are copied where they are numbers, tensors, or lists, dicts, sets and deques of them. Other
    objects stay the same ones, and so does what is in them. Layers that were added since are removed, and
    parameters require a gradient or not as before. The copies are on the devices of what they are copies of.

    Args:
        module: that is copied, and can be restored as often as wanted.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> before, state = layer.weight.item(), ModuleState(layer)
        >>> _ = nn.init.zeros_(layer.weight); layer.seen = 3
        >>> state.restore()
        >>> layer.weight.item() == before, hasattr(layer, "seen")
        (True, False)
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        reshard(module)
        known: set[int] = set()
        self._attributes = [_kept(vars(each), known) for each in module.modules()]
        self._parameters = [
            (p, p.detach().clone(), None if p.grad is None else p.grad.clone(), p.requires_grad)
            for p in module.parameters()
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Restores all of it, in place."""
        reshard(self._module)
        for restore in self._attributes:
            restore()
        for parameter, value, gradient, required in self._parameters:
            parameter.grad = None
            _set(parameter, value)
            parameter.requires_grad_(required)
            parameter.grad = None if gradient is None else gradient.clone()


def _kept(value: Any, known: set[int]) -> Restore:
    """A function that restores a value and returns it: the same object, with the content that it has now."""
    plain = isinstance(value, dict | list | deque | set)
    tensor = isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
    if not (plain or tensor) or id(value) in known:  # known: in two places, or within itself
        return lambda: value
    known.add(id(value))
    return _kept_tensor(value) if tensor else _kept_container(value, known)


def _kept_tensor(tensor: Tensor) -> Restore:
    copy = tensor.detach().clone()

    def restore() -> Tensor:
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            _set(tensor, copy)
        return tensor

    return restore


def _kept_container(container: Any, known: set[int]) -> Restore:
    if isinstance(container, dict | set):
        items = {
            key: _kept(container[key] if isinstance(container, dict) else None, known) for key in container
        }
    else:
        items = {index: _kept(value, known) for index, value in enumerate(container)}

    def restore() -> Any:
        values = {key: item() for key, item in items.items()}
        # In place: handles of hooks refer to the dict that they are in.
        container.clear()
        if isinstance(container, dict | set):
            container.update(values)
        else:
            container.extend(values.values())
        return container

    return restore


def _set(tensor: Tensor, value: Tensor) -> None:
    if tensor.shape == value.shape:
        tensor.copy_(value)
    else:  # it was resized in place, as heads that grow are
        tensor.data = value.clone()
