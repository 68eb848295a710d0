"""Checkpoints that are asked for in the middle of a change, such as a task's end, and written after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from lightning.pytorch import Trainer


@contextmanager
def saves_wait(trainer: Trainer) -> Iterator[None]:
    """Within, ``trainer.save_checkpoint`` notes what to write; that is written at the end of the context.

    After an exception nothing is written: that ends the fit, and it may have come in one process alone, in
    which the others would be waited for in vain.
    """
    save, attributes = trainer.save_checkpoint, vars(trainer)
    own = {name: attributes[name] for name in ("save_checkpoint",) if name in attributes}
    asked: list[partial[None]] = []

    def note(*args: Any, **options: Any) -> None:
        asked.append(partial(save, *args, **options))

    trainer.save_checkpoint = note  # type: ignore[method-assign]
    try:
        yield
    finally:
        attributes.pop("save_checkpoint", None)
        attributes.update(own)
    for each in asked:
        each()
