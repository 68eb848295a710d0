"""Whether a training that is resumed goes on as if nothing had happened."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from cl_callbacks import EpochBoundaries
from gpu_checks.check import each
from gpu_checks.correctness import tolerance
from gpu_checks.place import Place
from gpu_checks.rules import DRAWN, RULES
from gpu_checks.training import assert_equal, distance, fit, model, outcome

EPOCHS = 4  # two tasks
MIDDLE = "epoch=2.ckpt"  # of the second


def train(
    place: Place, make: Any, folder: Path | None = None, resumed: Path | None = None
) -> dict[str, Tensor]:
    """Two tasks of two epochs; a checkpoint of each epoch goes to ``folder``."""
    rule, module = make(), model().double()
    keep = [] if folder is None else [ModelCheckpoint(folder, "{epoch}", every_n_epochs=1, save_top_k=-1)]
    fit(
        place,
        rule,
        *keep,
        module=module,
        epochs=EPOCHS,
        boundaries=EpochBoundaries(2),
        ckpt_path=resumed,
        enable_checkpointing=folder is not None,
    )
    return outcome(module, rule)


def resumed_exactly(place: Place) -> str:
    """All rules: resumed from a checkpoint in mid-task, a training ends as if uninterrupted, bit for bit."""

    def compare(name: str, make: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            whole = train(place, make, Path(folder))
            assert_equal(train(place, make, resumed=Path(folder) / MIDDLE), whole)

    return each(place.of(RULES), compare)


def checkpoints_both_ways(place: Place) -> str:
    """A checkpoint in mid-task goes on from the device on the CPU and back as if it had stayed, to 1e-8.

    Rules that draw random numbers, which depend on the device, go on and stay finite.
    """

    def compare(name: str, make: Any) -> float | None:
        apart = 0.0
        for first, then in ((place, place.on_cpu), (place.on_cpu, place)):
            with tempfile.TemporaryDirectory() as folder:
                whole = train(first, make, Path(folder))
                resumed = train(then, make, resumed=Path(folder) / MIDDLE)
            assert all(t.isfinite().all() for t in resumed.values()), "not finite"
            apart = max(apart, 0.0 if name in DRAWN else distance(resumed, whole))
        assert apart < tolerance(name), f"differs by {apart:.1e}"
        return apart

    return each(place.of(RULES), compare)
