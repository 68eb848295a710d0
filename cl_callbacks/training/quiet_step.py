"""Another forward and backward of a module in the middle of its training, without a trace."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn

from cl_callbacks.guards.waiting_signals import Section
from cl_callbacks.training.generators import isolated_rng, seed_torch
from cl_callbacks.training.quiet import unlogged, unremembered, without_trace
from cl_callbacks.training.shadow_method import own_method
from cl_callbacks.training.silent_logger import SilentLogger

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
"""Attributes that hold parameters, buffers and hooks."""


@contextmanager
def quiet_step(trainer: Trainer, pl_module: LightningModule, seed: int) -> Iterator[None]:
    """Runs a forward and backward in training mode without side effects on training.

    Every submodule stays in its mode: dropout is active, and BatchNorm normalises by the statistics of the
    batch, but does not remember them. Restored are buffers, metrics, the random numbers of torch, NumPy and
    Python, and the module's attributes, lists and dicts among them; nothing reaches a logger. Gradients of
    training stay as they are if :func:`torch.autograd.grad` is used. Within, random numbers depend only on
    ``seed``, and handlers of signals wait.
    """
    with ExitStack() as stack:
        stack.enter_context(Section())
        stack.enter_context(without_trace())
        stack.enter_context(isolated_rng(trainer, pl_module))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(unlogged(pl_module))
        stack.enter_context(unremembered(pl_module))
        stack.enter_context(_attributes_kept(pl_module))
        stack.enter_context(_silent(trainer))
        seed_torch(trainer, pl_module, seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield


def training_loss(
    trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int = 0
) -> Tensor | None:
    """The loss that the module's ``training_step`` returns for a batch, in the Trainer's precision.

    Args:
        trainer: a trainer that is fitting.
        pl_module: its module, not wrapped.
        batch: on the device.
        batch_idx: handed to a ``training_step`` that takes it.

    Returns:
        The loss; ``None`` where there is none.
    """
    step = own_method(pl_module, "training_step")
    index = [batch_idx] if is_param_in_hook_signature(step, "batch_idx", min_args=2) else []
    with trainer.precision_plugin.train_step_context():
        output = step(batch, *index)
    return output["loss"] if isinstance(output, dict) else output


@contextmanager
def _attributes_kept(pl_module: LightningModule) -> Iterator[None]:
    """Restores the module's own attributes, such as a list to which its steps append."""
    before = dict(vars(pl_module))
    filled = {
        name: value.copy()
        for name, value in before.items()
        if type(value) in (list, dict, set) and name not in _OF_EVERY_MODULE
    }
    try:
        yield
    finally:
        attributes = vars(pl_module)
        for name in attributes.keys() - before.keys():
            del attributes[name]
        attributes.update(before)
        for name, value in filled.items():
            container = before[name]
            container.clear()
            container.extend(value) if isinstance(container, list) else container.update(value)


@contextmanager
def _silent(trainer: Trainer) -> Iterator[None]:
    loggers = trainer.loggers
    if not loggers:
        yield
        return
    trainer.loggers = [SilentLogger(logger) for logger in loggers]
    try:
        yield
    finally:
        trainer.loggers = loggers
