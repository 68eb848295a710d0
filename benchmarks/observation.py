"""What it costs to look: TaskEvaluation and SynapseStatistics as shares of a training's time.

    python benchmarks/observation.py                      # the demo: ten tasks, without a rule and with EWC
    python benchmarks/observation.py --methods ewc mesu --tasks 5 --json FILE

Trains as examples/digits.py does, with an offline W&B run, and adds up the time within every hook of the two
callbacks, that while training and that of the pictures after it. It is their cost up to what they make others
do: a logger's thread that has more to write, caches that are cold.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import wandb
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import WandbLogger
from rich.console import Console
from rich.table import Table

from cl_callbacks import EpochBoundaries, SynapseStatistics, TaskEvaluation

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from digits import METHODS, SETTINGS, Classifier, callbacks, task_sequence

SETTING = SETTINGS["digits"]
WATCHING = ("TaskEvaluation", "SynapseStatistics")


class Clock:
    """Adds up the time within the hooks of a callback."""

    def __init__(self, callback: Callback) -> None:
        self.seconds: dict[str, float] = {}
        for name in dir(callback):
            hook = getattr(callback, name)
            if callable(hook) and (name.startswith("on_") or name in ("setup", "teardown")):
                setattr(callback, name, self._timed(name, hook))

    def _timed(self, name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return hook(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

        return timed


def run(method: str, tasks: int, seed: int, folder: str) -> dict[str, Any]:
    seed_everything(seed, verbose=False)
    watching = dict(zip(WATCHING, (TaskEvaluation(table=False), SynapseStatistics()), strict=True))
    clocks = {name: Clock(callback) for name, callback in watching.items()}
    trainer = Trainer(
        max_epochs=SETTING.epochs * tasks,
        reload_dataloaders_every_n_epochs=1,
        check_val_every_n_epoch=SETTING.epochs,
        num_sanity_val_steps=0,
        callbacks=[
            *callbacks(method),
            EpochBoundaries(SETTING.epochs),
            *watching.values(),
        ],
        logger=WandbLogger(save_dir=folder, offline=True, project="observation"),
        accelerator="cpu",
        log_every_n_steps=15,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    data = task_sequence("digits", None, tasks, seed)
    start = time.perf_counter()
    trainer.fit(Classifier(SETTING.pixels, SETTING.hidden), data)
    seconds = time.perf_counter() - start
    wandb.finish()
    return {"seconds": seconds} | {name: clock.seconds for name, clock in clocks.items()}


def show(results: dict[str, list[dict[str, Any]]]) -> None:
    table = Table(title="seconds of a training without the two, and within their hooks")
    for column in ("method", "training", *WATCHING, "share", "pictures at the end"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for method, runs in results.items():
        for found in runs:
            pictures = sum(found[name]["on_fit_end"] for name in WATCHING)
            parts = [sum(found[name].values()) - found[name]["on_fit_end"] for name in WATCHING]
            training = found["seconds"] - sum(parts) - pictures
            share = f"{sum(parts) / training:.1%}"
            table.add_row(
                method, f"{training:.1f}", *(f"{part:.2f}" for part in parts), share, f"{pictures:.2f}"
            )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["none", "ewc"])
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, help="write the seconds of each hook to this file")
    args = parser.parse_args()
    os.environ.setdefault("WANDB_SILENT", "true")
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        results = {
            method: [run(method, args.tasks, seed, folder) for seed in args.seeds] for method in args.methods
        }
    show(results)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
