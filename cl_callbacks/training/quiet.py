"""Contexts for an evaluation without side effects on training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.nn.parameter import is_lazy
from torchmetrics import Metric

from cl_callbacks.compiled.one_thread import eagerly
from cl_callbacks.gradients.modes import differentiable_in_evaluation, evaluation_mode
from cl_callbacks.gradients.precision import Precision
from cl_callbacks.guards.waiting_signals import Section
from cl_callbacks.training.generators import isolated_rng, seed_torch
from cl_callbacks.training.lightning_private import attached_trainer

_WITHOUT_TRACE: ContextVar[bool] = ContextVar("without_trace", default=False)


def leaves_no_trace() -> bool:
    """Whether this thread is in a pass that is none of the training's, such as :func:`quiet`."""
    return _WITHOUT_TRACE.get()


@contextmanager
def without_trace() -> Iterator[None]:
    """Within, hooks that observe the forwards of training let the network be run."""
    token = _WITHOUT_TRACE.set(True)
    try:
        yield
    finally:
        _WITHOUT_TRACE.reset(token)


@contextmanager
def unlogged(pl_module: LightningModule) -> Iterator[None]:
    """Within, makes the module's ``log`` and ``log_dict`` do nothing."""
    attributes = vars(pl_module)
    silent = {"log": _ignore, "log_dict": _ignore}
    own = {name: attributes[name] for name in silent if name in attributes}
    attributes.update(silent)
    try:
        yield
    finally:
        for name in silent:
            del attributes[name]
        attributes.update(own)


@contextmanager
def unremembered(pl_module: LightningModule) -> Iterator[None]:
    """Restores all buffers and metrics of a module afterwards, also after an exception."""
    # With module and name: a forward may change a buffer, or assign another one.
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in pl_module.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if not is_lazy(buffer)
    ]
    # With all attributes of a metric beside its state, such as the best value of a tracker.
    metrics = [
        (m, vars(m) | {"_modules": dict(m._modules)}, m._copy_state_dict())
        for m in pl_module.modules()
        if isinstance(m, Metric)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                if buffer.shape == value.shape:
                    buffer.copy_(value)
                else:  # it was resized in place, as the ranges that quantisation observes are
                    buffer.data = value
                module._buffers[name] = buffer
        for metric, attributes, state in metrics:
            vars(metric).update(attributes)
            for attribute, kept in state.items():
                setattr(metric, attribute, kept)


@contextmanager
def quiet(trainer: Trainer, pl_module: LightningModule, seed: int = 0) -> Iterator[None]:
    """Runs an evaluation without side effects on training.

    Restores bit for bit, also after an exception: every submodule's train/eval mode, all buffers, the
    random number generators of torch, NumPy, Python. Within, ``log`` and ``log_dict`` do nothing, gradients
    are enabled, what is compiled runs eagerly in this thread, random numbers depend only on ``seed`` and the
    rank, and handlers of signals wait: see :class:`~cl_callbacks.guards.waiting_signals.Section`.
    """
    with ExitStack() as stack:
        stack.enter_context(Section())
        stack.enter_context(without_trace())
        stack.enter_context(isolated_rng(trainer, pl_module))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        # Sums are of full precision wherever a task ends; `forward_precision` is for the network.
        stack.enter_context(Precision.now(trainer.strategy.root_device.type).full().again())
        stack.enter_context(eagerly())
        stack.enter_context(differentiable_in_evaluation(pl_module))
        stack.enter_context(unlogged(pl_module))
        stack.enter_context(unremembered(pl_module))
        stack.enter_context(evaluation_mode(pl_module))
        seed_torch(trainer, pl_module, seed + trainer.global_rank)
        yield


def forward_precision(pl_module: LightningModule) -> AbstractContextManager[None]:
    """Context in which a forward runs as in the module's Trainer: autocast, dtype of created tensors."""
    trainer = attached_trainer(pl_module)
    return nullcontext() if trainer is None else trainer.precision_plugin.forward_context()


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Does nothing, in place of ``log`` and ``log_dict``."""
