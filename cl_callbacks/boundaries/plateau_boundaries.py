"""Tasks that end when the loss has come to rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from cl_callbacks.boundaries.monitored_boundaries import MonitoredBoundaries
from cl_callbacks.boundaries.recent_batches import RecentBatches
from cl_callbacks.boundaries.signals import LossSignal
from cl_callbacks.drift.plateau import Plateau
from cl_callbacks.functional.fisher import sample_losses
from cl_callbacks.guards.arguments import integer
from cl_callbacks.tensors.batches import cat_samples, plain_containers, take_samples
from cl_callbacks.training.model_outputs import ReadsOutputs
from cl_callbacks.training.quiet import quiet


class PlateauBoundaries(ReadsOutputs, MonitoredBoundaries):
    """A task ends when the training loss has come to rest; nobody needs to declare it.

    At a plateau the network has learned what it is shown, which is the moment to consolidate, whatever
    comes next. A new plateau counts only after the loss has risen. What is learned after the last plateau
    stays an open task, with which the next fit goes on.

    The rules that read data at the end of a task read the most recent samples; or, with
    ``hard_samples``, the few samples with the highest loss since the training began. With
    ``MAS(strength, norm="l2", decay="mean")`` that is task-free MAS, but for one thing: there the network
    is also *trained* on the hard samples, several steps on each batch, which is the business of your
    training loop.

    Source: Aljundi et al. 2019 (arXiv 1812.03596).

    Args:
        detector: what finds the plateaus in the loss that ``training_step`` returns.
        check_every_n_batches: the detector reads so many losses at a time, so that the device is waited for
            only then; a task ends up to so many batches late.
        recent_samples: how many recent samples to keep, on the device they arrive on.
        hard_samples: how many of the hardest samples to keep and to use instead; 0 for none. Costs a
            forward pass of every batch. Batches are read as the rules read them, see :meth:`outputs`,
            and must be of one shape, apart from how many samples they hold.

    Raises:
        ValueError: numbers that cannot work; in training, a ``training_step`` that returns no loss.

    Example:
        >>> PlateauBoundaries(Plateau(window=20), hard_samples=30).hard_samples
        30
    """

    def __init__(
        self,
        detector: Plateau | None = None,
        *,
        check_every_n_batches: int = 5,
        recent_samples: int = 500,
        hard_samples: int = 0,
    ) -> None:
        super().__init__(LossSignal(), check_every_n_batches)
        self.detector = Plateau() if detector is None else detector
        self.hard_samples = integer("hard_samples", hard_samples, least=0)
        self.recent_samples = integer("recent_samples", recent_samples, least=1)
        self._recent = RecentBatches(recent_samples)
        self._hard: Any = None

    @property
    def recent_batches(self) -> Iterable[Any]:
        """What rules measure on at the end of a task."""
        return self._recent if self._hard is None else [self._hard]

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the batch."""
        if self.hard_samples:
            ReadsOutputs.on_train_batch_start(self, trainer, pl_module, batch, batch_idx)
        MonitoredBoundaries.on_train_batch_start(self, trainer, pl_module, batch, batch_idx)
        if not self.hard_samples:
            self._recent.append(batch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the hardest samples."""
        if self.hard_samples:
            self._keep_hardest(trainer, pl_module, batch)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def see(self, trainer: Trainer, batch: int, value: float) -> None:
        """Looks for a plateau."""
        self.detector.update(value)
        if self.detector.drift_detected:
            self.end(trainer)

    def progress_bar_items(self) -> dict[str, str]:
        """With how near the loss is to a plateau; none is looked for before the loss has risen again."""
        nearness = f"{self.detector.nearness:.0%}" if self.detector.peak else "reached"
        return super().progress_bar_items() | {"plateau": nearness}

    def _keep_hardest(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        candidates = batch
        if self._hard is not None:
            held = move_data_to_device(self._hard, trainer.strategy.root_device)
            candidates = cat_samples(held, batch)
        with quiet(trainer, pl_module), torch.no_grad():
            losses = sample_losses(*self.outputs_and_labels(pl_module, candidates)).nan_to_num(nan=-1.0)
        losses, order = losses.sort(descending=True)
        # A sample that comes again has the loss of the one that is held, and counts once.
        new = torch.ones_like(order, dtype=torch.bool)
        new[1:] = losses[1:] < losses[:-1] * (1.0 - 1e-5)
        self._hard = take_samples(candidates, order[new][: self.hard_samples])

    def check_outputs(self, outputs: Tensor, labels: Tensor | None) -> None:
        """Raises what :func:`~cl_callbacks.functional.fisher.sample_losses` raises."""
        sample_losses(outputs, labels)

    def state_dict(self) -> dict[str, Any]:
        """With the detector."""
        return super().state_dict() | {"detector": self.detector.state_dict()}

    def process_state(self) -> dict[str, Any]:
        """With the samples, of which each process has its own."""
        return super().process_state() | {
            "recent": self._recent.state_dict(),
            "hard": plain_containers(self._hard),
        }

    def restore_process(self, state_dict: dict[str, Any]) -> None:
        """Goes on with this process's samples."""
        super().restore_process(state_dict)
        self._recent.load_state_dict(state_dict["recent"])
        self._hard = state_dict["hard"]

    def restore(self, state_dict: dict[str, Any]) -> None:
        """Goes on in the task in which the checkpoint was written."""
        super().restore(state_dict)
        self.detector.load_state_dict(state_dict["detector"])
