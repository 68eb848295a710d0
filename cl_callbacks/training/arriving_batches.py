"""What training batches hold, read before they are moved to the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden

_HOOKS = ("transfer_batch_to_device", "on_after_batch_transfer")


class ArrivingBatches:
    """Reads something of each batch while it is on the CPU, where the host does not wait for the device.

    Where the module or the data module moves batches in a way of its own (``transfer_batch_to_device``,
    ``on_after_batch_transfer``), another batch may arrive on the device, and that is the one to be read.

    Args:
        trainer: that is fitting; its strategy's ``batch_to_device`` is extended until :meth:`detach`.
        read: what is read of a batch, of any type; it must not change the batch.
    """

    def __init__(self, trainer: Trainer, read: Callable[[Any], Any]) -> None:
        self._read, self._strategy = read, trainer.strategy
        self._latest: tuple[Any, Any] | None = None  # a batch on the device, and what was read of it before
        owners = (trainer.lightning_module, trainer.datamodule)  # type: ignore[attr-defined]
        own = any(is_overridden(hook, owner) for hook in _HOOKS for owner in owners)
        if trainer.strategy.root_device.type != "cpu" and not own:
            self._extend(self._strategy.batch_to_device)

    def _extend(self, move: Callable[..., Any]) -> None:
        def read_and_move(batch: Any, *args: Any, **kwargs: Any) -> Any:
            found = self._read(batch)
            moved = move(batch, *args, **kwargs)
            self._latest = moved, found
            return moved

        self._strategy.batch_to_device = read_and_move  # type: ignore[method-assign]

    def read(self, batch: Any) -> Any:
        """What was read of a batch before it was moved, if it is the latest that was; else reads it now."""
        latest, self._latest = self._latest, None  # which would keep the batch in memory
        return latest[1] if latest is not None and latest[0] is batch else self._read(batch)

    def detach(self) -> None:
        """Gives the strategy its own method back."""
        vars(self._strategy).pop("batch_to_device", None)
        self._latest = None
