"""Brings the state of this package's callbacks back from processes that a fit has started for itself.

Under ``ddp_spawn`` and ``ddp_notebook`` each ``fit`` trains copies of the user's objects, in processes of its
own. Lightning brings back the weights and what was logged, and the state of no callback: a rule would begin
the next task with an empty memory. It calls nothing of a callback outside of these processes, so its launcher
is extended when this package is imported; a fit without callbacks of this package is as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningDataModule, Trainer

from cl_callbacks.training.lightning_private import extend_fits_in_processes
from cl_callbacks.training.log import is_of_this_package

DATA = "datamodule"


@cache
def bring_state_back() -> None:
    """Extends Lightning's launcher, once."""
    extend_fits_in_processes(save_states, load_states)


def save_states(trainer: Trainer, path: Path) -> None:
    """Writes the states of this package's callbacks and data module; to be called by all processes."""
    keepers = _keepers(trainer, [trainer.datamodule])  # type: ignore[attr-defined]
    states = {key: keeper.state_dict() for key, keeper in keepers}
    if states and trainer.local_rank == 0:
        torch.save(move_data_to_device(states, "cpu"), path)


def load_states(trainer: Trainer, arguments: Sequence[Any], path: Path) -> None:
    """Restores the states that :func:`save_states` wrote, in the process that has called ``fit``.

    Then callbacks with a method ``on_state_returned(trainer)`` hear of it.
    """
    if not path.exists():
        return
    states = torch.load(path, weights_only=True)
    for key, keeper in _keepers(trainer, arguments):
        if key in states:
            keeper.load_state_dict(states[key])
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, "on_state_returned"):
            callback.on_state_returned(trainer)


def _keepers(trainer: Trainer, arguments: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if is_of_this_package(callback):
            yield callback.state_key, callback
    for data in arguments:
        if isinstance(data, LightningDataModule) and is_of_this_package(data):
            yield DATA, data
