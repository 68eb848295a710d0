"""Turns batches of the present task into those of one that nobody has seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from cl_callbacks.tensors.containers import flat_tensors, map_tensors

Fresh = Literal["inputs", "labels"] | Callable[[Any, torch.Generator], Any]


def fresh_batches(batches: Sequence[Any], fresh: Fresh, seed: int) -> list[Any]:
    """Batches of a new task, which are made from those of another one.

    Args:
        batches: of the present task.
        fresh: ``"inputs"`` permutes the features of the first tensor of floating point, all samples alike;
            ``"labels"`` the classes of the last tensor of whole numbers with one dimension; or a function of
            a batch and a generator, which is in the same state for each batch.
        seed: of the permutation.

    Raises:
        ValueError: batches without such a tensor.

    Example:
        >>> (x, y), = fresh_batches([(torch.tensor([[1.0, 2.0]]), torch.tensor([0]))], "inputs", seed=0)
        >>> sorted(x[0].tolist()), y
        ([1.0, 2.0], tensor([0]))
    """
    if callable(fresh):
        return [fresh(batch, torch.Generator().manual_seed(seed)) for batch in batches]
    change = _permuted_features if fresh == "inputs" else _permuted_classes
    classes = max((int(t.max()) + 1 for b in batches for t in _labels(b)), default=0)
    return [change(batch, torch.Generator().manual_seed(seed), classes) for batch in batches]


def _permuted_features(batch: Any, generator: torch.Generator, classes: int) -> Any:
    inputs = next((t for t in flat_tensors(batch) if t.is_floating_point() and t.ndim > 1), None)
    if inputs is None:
        raise ValueError(
            "fresh='inputs' permutes the features of a tensor of floating point, and the batches have none: "
            "use fresh='labels', or a function fresh(batch, generator) that returns a batch of a new task"
        )
    order = torch.randperm(inputs[0].numel(), generator=generator).to(inputs.device)
    permuted = inputs.flatten(1)[:, order].view_as(inputs)
    return map_tensors(lambda t: permuted if t is inputs else t, batch)


def _permuted_classes(batch: Any, generator: torch.Generator, classes: int) -> Any:
    if not _labels(batch):
        raise ValueError(
            "fresh='labels' permutes the classes of a tensor of whole numbers with one dimension, and the "
            "batches have none: use fresh='inputs', or a function fresh(batch, generator)"
        )
    labels = _labels(batch)[-1]
    order = torch.randperm(classes, generator=generator).to(labels.device)
    known = labels >= 0  # -100 stays
    permuted = torch.where(known, order[labels.clamp(min=0)].to(labels.dtype), labels)
    return map_tensors(lambda t: permuted if t is labels else t, batch)


def _labels(batch: Any) -> list[Tensor]:
    whole = (torch.int16, torch.int32, torch.int64)
    return [t for t in flat_tensors(batch) if t.dtype in whole and t.ndim == 1]
