"""An optimizer step as one change: what is saved is from before it or from after it."""

from __future__ import annotations

from lightning.pytorch import Trainer

from cl_callbacks.guards.waiting_signals import Section, guard_signals, release_signals
from cl_callbacks.training.lightning_private import call_after_batches


class WholeStep:
    """Lets handlers of signals wait from the moment at which a step begins to the end of its batch.

    Until the gradients are final nothing has changed that a checkpoint contains, and a handler may save at
    once; at the end of the batch all of weights, moments, state of the rules and progress are those after it.

    Args:
        trainer: that is fitting.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._section = Section()
        self._gated: list[int] | None = None  # before the first batch
        self._undo = call_after_batches(trainer, self._section.close)

    def start_batch(self, batch_idx: int) -> None:
        """Has the handlers wait that are installed by the first batch of the fit, or of an epoch."""
        if self._gated is None or batch_idx == 0:
            self._gated = [*(self._gated or ()), *guard_signals()]

    def begin(self) -> None:
        """Begins a step."""
        self._section.open()

    def detach(self) -> None:
        """Ends a step that was broken off, and gives all handlers back."""
        self._undo()
        try:
            self._section.close()
        finally:
            release_signals(self._gated or [])
            self._gated = None
