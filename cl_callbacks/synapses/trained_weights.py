"""Which weights a task has trained: those that moved, and not by weight decay alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from cl_callbacks.synapses.optimizers import with_inner
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.tensors.shards import held


def trained(synapses: SynapseView, before: Sequence[Tensor], optimizers: Iterable[Any]) -> list[Tensor]:
    """Tensors with 1 for each weight that was trained since it had the value ``before``, and 0 for others.

    Not trained are weights that are what they were, such as those of a head that no task has used yet, and
    weights for which the optimizer has averages (Adam, AdamW and others) that are all exactly 0: they never
    had a gradient, and only decoupled weight decay moves them.

    Args:
        synapses: all synapses of a rule.
        before: their earlier values, aligned.
        optimizers: those of the Trainer.

    Returns:
        Tensors aligned with the synapses, of the dtype of ``before``.
    """
    everything = with_inner(optimizers)
    found = []
    for source, weight, old in zip(synapses.sources, synapses.parameters, before, strict=True):
        moved = weight.to(old.dtype) != old
        for optimizer in everything:
            averages = [held(t) for t in _state(optimizer, source) if t.shape == source.shape]
            if averages:
                moved &= torch.stack([average.to(moved.device) != 0 for average in averages]).any(0)
        found.append(moved.to(old.dtype))
    return found


def _state(optimizer: Any, parameter: Tensor) -> list[Tensor]:
    # Not by `[...]`: the state of an optimizer is a defaultdict.
    found = getattr(optimizer, "state", {}).get(parameter, {})
    return [value for value in found.values() if isinstance(value, Tensor)]
