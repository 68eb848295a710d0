"""Contexts for a network's training and evaluation modes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Sets evaluation mode; restores every submodule's own mode afterwards."""
    with modes_kept(module):
        module.eval()
        yield


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Restores every submodule's training or evaluation mode afterwards."""
    modes = {submodule: submodule.training for submodule in module.modules()}
    try:
        yield
    finally:
        for submodule, training in modes.items():
            submodule.training = training


@contextmanager
def differentiable_in_evaluation(module: nn.Module) -> Iterator[None]:
    """Runs recurrent layers without cuDNN, whose kernels have no backward in evaluation mode.

    Only while such a layer runs: cuDNN's convolutions are as before, and so are its other switches.

    Example:
        >>> with differentiable_in_evaluation(nn.LSTM(2, 3)):
        ...     torch.backends.cudnn.enabled
        True
    """
    before: list[bool] = []

    def switch_off(*_: Any) -> None:
        before.append(torch.backends.cudnn.enabled)
        torch.backends.cudnn.enabled = False

    def restore(*_: Any) -> None:
        if before:  # none if another hook failed before
            torch.backends.cudnn.enabled = before.pop()

    handles: list[Any] = []
    for layer in module.modules():
        if isinstance(layer, nn.RNNBase):
            # The last before the layer and the first after it, also after an exception in it.
            handles.append(layer.register_forward_pre_hook(switch_off))
            handles.append(layer.register_forward_hook(restore, prepend=True, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        if before:  # Ctrl-C within a layer
            torch.backends.cudnn.enabled = before[0]
