"""The end of a task as one change of all that remember: all of them have the task, or none has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from lightning.pytorch import Trainer

from cl_callbacks.guards.uninterrupted import uninterrupted

Revert = Callable[[], None]


@runtime_checkable
class Revertible(Protocol):
    """Protocol of a callback that can go back to how it was before the end of a task that has failed."""

    def reversal(self) -> Revert:
        """Keeps the present state, and returns a function that brings it back."""


@contextmanager
def all_or_none(trainer: Trainer) -> Iterator[None]:
    """Brings every :class:`Revertible` callback back to its state of now if an exception ends the context.

    If one of them moves weights when a task ends, weights and buffers go back, too. Within, there is a copy
    of these states, and of weights and buffers where they may be moved.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    reverts = [callback.reversal() for callback in callbacks if isinstance(callback, Revertible)]
    if any(getattr(c, "moves_weights", False) or getattr(c, "corrects_weights", False) for c in callbacks):
        reverts.append(_reversal_of_weights(trainer.lightning_module))
    try:
        yield
    except BaseException:
        with uninterrupted():
            for revert in reverts:
                revert()
        raise


def _reversal_of_weights(module: torch.nn.Module) -> Revert:
    tensors = [*module.parameters(), *module.buffers()]
    kept = [t.detach().clone() for t in tensors]

    def revert() -> None:
        with torch.no_grad():
            for tensor, value in zip(tensors, kept, strict=True):
                tensor.copy_(value)

    return revert
