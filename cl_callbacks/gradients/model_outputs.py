"""Finds the outputs and labels of a batch, for networks of the usual signatures."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

Found = Tensor | tuple[Tensor, Tensor | None]
"""Outputs of a network for a batch, alone or with labels."""
_LABEL_KEYS = ("labels", "label")


def as_pair(found: Found) -> tuple[Tensor, Tensor | None]:
    """Outputs and labels, with ``None`` for labels where there are outputs alone.

    Labels are moved to the outputs' device, which is not the batch's if layers are on several devices.
    """
    outputs, labels = (found, None) if isinstance(found, Tensor) else found
    if isinstance(outputs, Tensor) and isinstance(labels, Tensor):
        labels = labels.to(outputs.device)
    return outputs, labels


def model_outputs(module: nn.Module, batch: Any, remedy: str) -> tuple[Tensor, Tensor | None]:
    """Runs a network on a batch, and returns its outputs and the labels of the batch, if any.

    ``module(x)`` is called for an ``(x, y)`` pair or a single tensor; ``module(x, task)`` for
    ``(x, y, task)`` if the second argument of its ``forward`` has a name that begins with ``task``, as where
    each task has a head of its own; and ``module(**inputs)`` for a mapping, without the entries ``labels``
    and ``label`` and those that its ``forward`` does not accept. The outputs are the result's ``.logits``
    where it has them. Those of a causal language model of ``transformers`` (whose position ``t`` predicts
    token ``t + 1``) are aligned with its labels.

    Args:
        module: the network.
        batch: on the network's device.
        remedy: advice for other types of batches, to end the error messages.

    Returns:
        Outputs ``(N, ...)``, one row per sample; labels, or ``None``.

    Raises:
        TypeError: a batch or outputs of another type.

    Example:
        >>> import torch
        >>> model_outputs(nn.Identity(), (torch.zeros(2), torch.ones(2)), "")
        (tensor([0., 0.]), tensor([1., 1.]))
    """
    if isinstance(batch, Mapping):
        labels = next((batch[key] for key in _LABEL_KEYS if key in batch), None)
        found = module(**_accepted(module, batch))
    elif isinstance(batch, Tensor):
        labels, found = None, module(batch)
    elif isinstance(batch, list | tuple) and len(batch) == 2:
        labels, found = batch[1], module(batch[0])
    elif names_task(module, batch):
        labels, found = batch[1], module(batch[0], batch[2])
    else:
        size = f" of {len(batch)} items" if isinstance(batch, list | tuple) else ""
        raise TypeError(
            f"expected a batch (x, y), (x, y, task) for a `forward(x, task)`, x, or a mapping of forward's "
            f"arguments, and got a {type(batch).__name__}{size}: {remedy}"
        )
    logits = found.get("logits") if isinstance(found, Mapping) else getattr(found, "logits", found)
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"{type(module).__name__}.forward returned a {type(found).__name__}, and neither it nor its "
            f"`.logits` is a tensor: {remedy}"
        )
    if "CausalLM" in type(found).__name__ and labels is not None:
        return logits[:, :-1], labels[:, 1:]
    return logits, labels


def names_task(module: nn.Module, batch: Any) -> bool:
    """Whether a batch is ``(x, y, task)`` and the network's ``forward`` takes ``(x, task)``.

    Its second argument says so by a name that begins with ``task``: a batch of three could be something else.
    """
    if not isinstance(batch, list | tuple) or len(batch) != 3:
        return False
    return [*inspect.signature(module.forward).parameters, "", ""][1].startswith("task")


def classes_of(batch: Any, rows: int) -> Tensor | None:
    """The classes of a batch's samples, ``(N,)``: whole numbers, where :func:`model_outputs` has its labels.

    ``None`` where there is not one for each of so many rows.

    Example:
        >>> import torch
        >>> classes_of((torch.zeros(2, 3), torch.tensor([1, 0])), rows=2)
        tensor([1, 0])
    """
    labels = None
    if isinstance(batch, Mapping):
        labels = next((batch[key] for key in _LABEL_KEYS if key in batch), None)
    elif isinstance(batch, list | tuple) and len(batch) == 2:
        labels = batch[1]
    if not isinstance(labels, Tensor) or labels.shape != (rows,):
        return None
    return None if labels.is_floating_point() or labels.is_complex() else labels


def _accepted(module: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    takes = inspect.signature(module.forward).parameters.values()
    inputs = {key: value for key, value in batch.items() if key not in _LABEL_KEYS}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes):
        return inputs
    names = {parameter.name for parameter in takes}
    return {key: value for key, value in inputs.items() if key in names}
