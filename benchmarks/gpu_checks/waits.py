"""How often the host waits for the device."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from cl_callbacks import BatchBoundaries, DriftBoundaries, EpochBoundaries, PlateauBoundaries
from gpu_checks.check import Skip
from gpu_checks.place import Place
from gpu_checks.rules import PLAIN, RULES
from gpu_checks.training import data_for, model, task

# Losses are read together, by default five at a time, and each reading waits once.
EVERY_FIFTH = 0.25


class Waits:
    """Within, counts the waits of this process for its device.

    On CUDA torch warns of operations that wait; of waits by an event or a whole ``synchronize`` it does not.
    The pretend device counts its own.
    """

    def __init__(self, place: Place) -> None:
        if place.device == "cpu":
            raise Skip("the host is the device")
        self.place = place

    def __enter__(self) -> Waits:
        if self.place.device == "cuda":
            self._catch = warnings.catch_warnings(record=True)
            self._said = self._catch.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.place.device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
            self._catch.__exit__(*exception)

    def so_far(self) -> list[str]:
        """Where the host has waited, as far as that is known: an entry for each wait."""
        if self.place.device == "cuda":
            found = [w for w in self._said or () if "synchronizing CUDA" in str(w.message)]
            return [f"{Path(w.filename).name}:{w.lineno}" for w in found]
        from tests.pretend_device.device import waits

        return ["somewhere"] * waits()


class FromStart(Callback):
    """The first callback of a Trainer: notes the waits before each batch."""

    def __init__(self, waits: Waits) -> None:
        self.waits = waits
        self.before = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.before = len(self.waits.so_far())


class ToEnd(Callback):
    """The last callback: the waits since, in steps after the first epoch, but for those around a new task."""

    def __init__(self, start: FromStart) -> None:
        self.start = start
        self.steps, self.found = 0, Counter[str]()
        self._around = 0  # how many steps more are around a new task

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        self._around = 2

    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        self._around = 2

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        counts = trainer.current_epoch > 0 and batch_idx >= 2 and not self._around
        self._around = max(0, self._around - 1)
        if counts:
            self.steps += 1
            self.found.update(self.start.waits.so_far()[self.start.before :])

    @property
    def per_step(self) -> float:
        return self.found.total() / self.steps

    def __str__(self) -> str:
        where = ", ".join(place for place, _ in self.found.most_common(2))
        return f"{self.per_step:.2f}" + (f" ({where})" if where else "")


def waits_per_step(
    place: Place, *callbacks: Callback, data: DataLoader | None = None, **options: Any
) -> ToEnd:
    """Of a fit of three epochs of ten steps, none of which logs."""
    with Waits(place) as waits:
        start = FromStart(waits)
        end = ToEnd(start)
        module = model()
        with warnings.catch_warnings():  # it silences warnings, which the waits are
            trainer = place.trainer(start, *callbacks, end, max_epochs=3, **options)
        trainer.fit(module, data or data_for(module, *task(samples=160)))
    return end


def waits_of_rules(place: Place) -> str:
    """No rule makes the host wait in a step that does not log, with its state on the device or on the CPU.

    But for StreamingConsolidation, which reads the mean of its importance, ever more rarely.
    """
    with Waits(place) as counted:
        before = len(counted.so_far())
        torch.ones(1, device=place.device).item()
        assert len(counted.so_far()) == before + 1, "a wait is not counted here"
    without = waits_per_step(place).per_step
    found: dict[str, ToEnd] = {}
    for name, make in place.of(RULES).items():
        found[name] = waits_per_step(place, make(), EpochBoundaries(1))
        if name in PLAIN and name != "MetaplasticGate":
            found[f"{name}, offloaded"] = waits_per_step(place, make(state_device="cpu"), EpochBoundaries(1))
    waiting = [f"{name} {steps}" for name, steps in found.items() if steps.per_step > without + allowed(name)]
    assert not waiting, f"without a rule {without:.2f}; {'; '.join(waiting)}"
    some = "".join(f"; {name} {steps}" for name, steps in found.items() if steps.per_step > without)
    return f"{len(found)} trainings, {without:.2f} waits a step, as without a rule{some}"


def allowed(name: str) -> float:
    """Waits in a step in this short training: reads after every second or third step, and its reduction."""
    return 1.5 if name.startswith("Streaming") else 0.0


BOUNDARIES: dict[str, tuple[Callable[[], Callback], float]] = {
    "BatchBoundaries": (lambda: BatchBoundaries(2), 0.0),
    "DriftBoundaries": (DriftBoundaries, EVERY_FIFTH),
    "DriftBoundaries, feature_shift": (lambda: DriftBoundaries(monitor="feature_shift"), EVERY_FIFTH),
    "PlateauBoundaries": (PlateauBoundaries, EVERY_FIFTH),
    # In every fifth step it also looks at labels, and whether single samples can be taken.
    "PlateauBoundaries, hard_samples": (lambda: PlateauBoundaries(hard_samples=10), 7 * EVERY_FIFTH),
}


def waits_of_boundaries(place: Place) -> str:
    """Boundaries that watch the loss make the host wait in every fifth step, and others in none."""
    without = waits_per_step(place).per_step
    x, y = task(samples=160)
    numbered = data_for(model(), x, y, torch.zeros(len(y), dtype=torch.long))
    said, wrong = [], []
    for name, (make, at_most) in BOUNDARIES.items():
        data = numbered if name == "BatchBoundaries" else None
        steps = waits_per_step(place, PLAIN["SI"](), make(), data=data)
        said.append(f"{name} {steps}")
        if steps.per_step > without + at_most:
            wrong.append(f"{name} {steps}, allowed {without + at_most:.2f}")
    assert not wrong, "; ".join(wrong)
    return "; ".join(said)
