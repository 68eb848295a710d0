"""Contexts for a network's training and evaluation modes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from cl_callbacks.guards.process_wide import ProcessWide


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
    running: list[ExitStack] = []

    def switch_off(*_: Any) -> None:
        running.append(ExitStack())
        running[-1].enter_context(_WITHOUT_CUDNN)

    def restore(*_: Any) -> None:
        if running:  # none if another hook failed before
            running.pop().close()

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
        while running:  # Ctrl-C within a layer
            restore()


@contextmanager
def _no_cudnn() -> Iterator[None]:
    before, torch.backends.cudnn.enabled = torch.backends.cudnn.enabled, False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


_WITHOUT_CUDNN = ProcessWide(_no_cudnn)
