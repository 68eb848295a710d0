"""Task boundaries where the loss has reached a plateau."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from cl_callbacks.boundaries.monitored_boundaries import MonitoredBoundaries
from cl_callbacks.boundaries.recent_batches import RecentBatches
from cl_callbacks.boundaries.signals import LossSignal
from cl_callbacks.drift.plateau import Plateau
from cl_callbacks.functional.fisher import reading_of_losses, sample_losses
from cl_callbacks.functional.likelihood import Reading
from cl_callbacks.gradients.sample_slices import SampleSlices
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import AT_LEAST_ONE, NON_NEGATIVE
from cl_callbacks.tensors.batches import cat_samples, count_samples, take_samples, unlike_previous
from cl_callbacks.tensors.containers import moved, plain_containers
from cl_callbacks.training.model_outputs import ReadsOutputs
from cl_callbacks.training.quiet import quiet


class PlateauBoundaries(ReadsOutputs, MonitoredBoundaries):
    """A task ends when the training loss has reached a plateau; the data need no task labels.

    At a plateau the network has learned the current data, which is the moment to consolidate, whatever
    comes next. A new plateau counts only after the loss has risen. The task that is open at the end of the
    fit continues in the next fit.

    The rules that read data at the end of a task read the most recent samples; or, with
    ``hard_samples``, the few samples with the highest loss since the training began. With
    ``MAS(strength, norm="l2", decay="mean")`` that is task-free MAS, but for one thing: there the network
    is also *trained* on the hard samples, several steps on each batch, which is left to your training
    loop.

    Source: Aljundi et al. 2019 (arXiv 1812.03596).

    Args:
        detector: finds the plateaus in the loss that ``training_step`` returns; default: ``Plateau()``.
        check_every_n_batches: number of losses that are read from the device at a time, each of which reads
            waits for it; a task ends up to this many batches late.
        recent_samples: number of recent samples to keep, on the device they arrive on.
        hard_samples: number of samples with the highest loss to keep and use instead; 0 for none. Costs one
            extra forward pass of every batch, and waits for the device only when losses are read. Batches
            are read as the rules read them, see ``outputs``, and must have one shape, apart from the
            number of samples.

    Raises:
        ValueError: invalid numbers; in training, a ``training_step`` that returns no loss.

    Example:
        >>> PlateauBoundaries(Plateau(window=20), hard_samples=30).hard_samples
        30
    """

    reads_task_data: ClassVar[bool] = False

    @checked(recent_samples=AT_LEAST_ONE, hard_samples=NON_NEGATIVE)
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
        self.hard_samples, self.recent_samples = hard_samples, recent_samples
        self._recent = RecentBatches(recent_samples)
        self._hard: Any = None  # samples by falling loss, and at the end copies of some of them
        self._is_new: Tensor | None = None  # which of them are no copies
        self._reading: Reading | None = None

    @property
    def recent_batches(self) -> Iterable[Any]:
        """Samples on which rules measure at the end of a task; of hard ones the number is read now."""
        if self._hard is None:
            return self._recent
        return [
            self._hard if self._is_new is None else take_samples(self._hard, self._is_new.nonzero()[:, 0])
        ]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds out who reads the recent batches."""
        super().on_train_start(trainer, pl_module)
        self._recent.keep_for(trainer, pl_module, self)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keeps a copy of the batch, unless the hardest samples are kept instead."""
        if self.hard_samples:
            ReadsOutputs.on_train_batch_start(self, trainer, pl_module, batch, batch_idx)
        MonitoredBoundaries.on_train_batch_start(self, trainer, pl_module, batch, batch_idx)
        if not self.hard_samples:
            self._recent.append(batch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Updates the hardest samples, if they are kept, and reads the losses when due."""
        if self.hard_samples:
            self._keep_hardest(trainer, pl_module, batch)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def see(self, trainer: Trainer, batch: int, value: float) -> None:
        """Ends the task if the loss has reached a plateau."""
        self.detector.update(value)
        if self.detector.drift_detected:
            self.end(trainer)

    def progress_bar_items(self) -> dict[str, str]:
        """Adds how near the loss is to a plateau, or ``"reached"`` until the loss has risen again."""
        nearness = f"{self.detector.nearness:.0%}" if self.detector.peak else "reached"
        return super().progress_bar_items() | {"plateau": nearness}

    def _keep_hardest(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        candidates = batch
        if self._hard is not None:
            held = moved(self._hard, trainer.strategy.root_device)
            candidates = cat_samples(held, batch)
        # Labels are looked at only when the host waits for the device anyway.
        reading = None if self.reads_now else self._reading
        with quiet(trainer, pl_module), torch.no_grad():
            losses = sample_losses(*self.outputs_and_labels(pl_module, candidates), reading)
        losses, order = losses.nan_to_num(nan=-1.0).sort(descending=True)
        # A sample that is seen again has the same loss as its stored copy, and is counted once.
        new = torch.ones_like(order, dtype=torch.bool)
        new[1:] = losses[1:] < losses[:-1] * (1.0 - 1e-5)
        new[1:] |= unlike_previous(candidates, order)  # others have that, too, where logits are rounded
        # Copies go to the end and not away: how many are left, the host would have to wait for.
        new, first = new.sort(descending=True, stable=True)
        self._hard = take_samples(candidates, order[first[: self.hard_samples]])
        self._is_new = new[: self.hard_samples]

    def try_batch(self, pl_module: LightningModule, batch: Any) -> None:
        """Also refuses batches from which single samples cannot be taken."""
        super().try_batch(pl_module, batch)
        outputs = self.read_batch(pl_module, batch)[0]
        slices = SampleSlices(lambda batch: self.outputs_and_labels(pl_module, batch)[0])
        if count_samples(batch) != len(outputs) or slices.alone(batch, [0], outputs) is None:
            raise ValueError(
                f"hard_samples={self.hard_samples} keeps single samples of batches, and they cannot be cut "
                f"out of a {type(batch).__name__} of {type(pl_module).__name__}: alone they have other "
                f"outputs, or none. Leave hard_samples out, to keep recent batches as they are."
            )

    def check_outputs(self, outputs: Tensor, labels: Tensor | None) -> None:
        """Finds out how the loss of a sample is computed, or raises what is wrong with outputs and labels."""
        self._reading = reading_of_losses(outputs, labels)
        sample_losses(outputs, labels, self._reading)

    def state_dict(self) -> dict[str, Any]:
        """Adds the state of the detector."""
        return super().state_dict() | {"detector": self.detector.state_dict()}

    def process_state(self) -> dict[str, Any]:
        """Adds this process's samples."""
        return super().process_state() | {
            "recent": self._recent.state_dict(),
            "hard": plain_containers(self._hard),
            "is_new": self._is_new,
        }

    def restore_process(self, state_dict: dict[str, Any]) -> None:
        """Restores this process's samples."""
        super().restore_process(state_dict)
        self._recent.load_state_dict(state_dict["recent"])
        self._hard, self._is_new = state_dict["hard"], state_dict.get("is_new")

    def restore(self, state_dict: dict[str, Any]) -> None:
        """Restores the detector too."""
        super().restore(state_dict)
        self.detector.load_state_dict(state_dict["detector"])
