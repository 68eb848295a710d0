"""The last task of a fit: at which weights it has ended, and whether any has."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from cl_callbacks.training.fit_end import same_weights, weight_norms


class LastTask:
    """The latest task that has ended in a fit.

    Args:
        continues: whether a task was open when the fit started.

    Attributes:
        task: its number; -1 if none has ended.
    """

    def __init__(self, continues: bool = False) -> None:
        self.task = -1
        self._continues = continues
        self._norms: dict[str, Tensor] = {}

    def begin(self) -> None:
        """Notes that another task begins, so that weights will change by training."""
        self._norms = {}

    def end(self, trainer: Trainer, task: int, looking_back: bool = False) -> None:
        """Notes the end of a task at the present weights, or at earlier ones if ``looking_back``."""
        self.task = task
        self._norms = {} if looking_back else weight_norms(trainer.lightning_module)

    def is_of_other_weights(self, trainer: Trainer) -> bool:
        """Whether this process's weights have changed since its end, although no other has begun."""
        if not self._norms:
            return False
        return same_weights(self._norms, weight_norms(trainer.lightning_module)) < 1.0

    def warn_who_waits(self, trainer: Trainer, reason: str) -> None:
        """Warns of rules that wait for their first task, when a whole fit has ended none."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        waiting = [type(c).__name__ for c in callbacks if getattr(c, "waits_for_a_task", False)]
        if waiting and self.task < 0 and not (self._continues or _was_cut_short(trainer)):
            rank_zero_warn(
                f"No task has ended in this fit, so {' and '.join(waiting)} can remember nothing: {reason}. "
                f"A further fit of this Trainer goes on with the open task; if there is none, let boundaries "
                f"come earlier, or leave them out, and each fit is a task."
            )


def _was_cut_short(trainer: Trainer) -> bool:
    """Whether a fit was only a trial, or has run out of time and will be resumed."""
    timers = (c for c in trainer.callbacks if isinstance(c, Timer))  # type: ignore[attr-defined]
    times = (timer.time_remaining() for timer in timers)
    return bool(trainer.fast_dev_run) or any(time is not None and time <= 0 for time in times)  # type: ignore[attr-defined]
