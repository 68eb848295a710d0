"""What it costs not to be told where tasks end: detectors, kinds of change and rules.

    python benchmarks/boundaries.py --json boundaries.json             # about half an hour on two cores
    python benchmarks/boundaries.py --widths 0 --rules si --seeds 0    # a part of it
    python benchmarks/boundaries.py --boundaries declared cusum adwin

The ten permutations of examples/digits.py, each 450 batches, of which neighbouring ones are mixed for
``width`` batches. Boundaries are declared in the middle of a change, found, or neither. Prints, over all
seeds, how well changes were found (an alarm is true if it comes less than 100 batches after the change is
over, and is the first since it began) and the boundary regret: average accuracy over all tasks after the
last with declared boundaries, minus that with those that were found.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from digits import METHODS, SETTINGS, Classifier, average_accuracy, callbacks, task_sequence

from cl_callbacks import DriftBoundaries, EpochBoundaries, FitBoundaries, PlateauBoundaries
from cl_callbacks.drift import CUSUM, score_boundaries

SETTING = SETTINGS["digits"]
BATCHES = 450  # of a task


def river(name: str, **options: Any) -> DriftBoundaries:
    from river import drift

    return DriftBoundaries(getattr(drift, name)(**options))


class Late(DriftBoundaries):
    """Ends a task when the alarm comes, as the network is then: what looking back is worth."""

    @contextmanager
    def _as_of_onset(self, trainer: Trainer) -> Iterator[None]:
        self._onset = self._batches
        self._snapshots.take(trainer, trainer.lightning_module, self._batches)
        with super()._as_of_onset(trainer):
            yield


BOUNDARIES: dict[str, Callable[[], Callback]] = {
    "none": FitBoundaries,  # the whole stream is one task
    "declared": lambda: EpochBoundaries(SETTING.epochs),
    "cusum": lambda: DriftBoundaries(CUSUM()),
    "adwin": lambda: river("ADWIN"),
    "kswin": lambda: river("KSWIN", seed=0),
    "page-hinkley": lambda: river("PageHinkley", mode="up", delta=0.5, threshold=20.0),
    "cusum, late": Late,
    "features": lambda: DriftBoundaries(monitor="feature_shift"),
    "plateau": PlateauBoundaries,
}


class Case(NamedTuple):
    boundaries: str
    width: int
    rule: str
    seed: int
    tasks: int


class Ends(Callback):
    """With which batches tasks were said to have ended."""

    def __init__(self) -> None:
        self.batch, self.ends = -1, list[int]()

    def on_train_batch_start(self, *args: Any) -> None:
        self.batch += 1

    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        self.ends.append(self.batch)


def run(case: Case) -> dict[str, Any]:
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    seed_everything(case.seed, verbose=False)
    rules = callbacks(case.rule)
    ends = Ends()
    trainer = Trainer(
        max_epochs=SETTING.epochs * case.tasks,
        reload_dataloaders_every_n_epochs=1,
        check_val_every_n_epoch=SETTING.epochs,
        num_sanity_val_steps=0,
        callbacks=[*rules, BOUNDARIES[case.boundaries](), ends],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    data = task_sequence("digits", None, case.tasks, case.seed, case.width)
    model = Classifier(SETTING.pixels, SETTING.hidden)
    trainer.fit(model, data)
    trainer.validate(model, data, verbose=False)  # the end of the last task may have changed weights
    return {"accuracy": average_accuracy(trainer), "ends": ends.ends}


def summary(cases: list[Case], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each kind of boundary, width and rule."""
    found = dict(zip(cases, results, strict=True))
    rows = []
    for kind, width, rule in dict.fromkeys((c.boundaries, c.width, c.rule) for c in cases):
        mine = [c for c in cases if (c.boundaries, c.width, c.rule) == (kind, width, rule)]
        row: dict[str, Any] = {"boundaries": kind, "width": width, "rule": rule}
        row["accuracy"] = [found[c]["accuracy"] for c in mine]
        row["ends"] = [found[c]["ends"] for c in mine]
        declared = [found.get(c._replace(boundaries="declared")) for c in mine]
        if all(declared):
            pairs = zip(declared, row["accuracy"], strict=True)
            row["regret"] = statistics.mean(told["accuracy"] - accuracy for told, accuracy in pairs)
        if isinstance(BOUNDARIES[kind](), DriftBoundaries):
            row |= scores([found[c]["ends"] for c in mine], width, mine[0].tasks)
        rows.append(row)
    return rows


def scores(alarms: list[list[int]], width: int, tasks: int) -> dict[str, float]:
    changes = [BATCHES * task - width // 2 for task in range(1, tasks)]
    every = [score_boundaries(ends, changes, tolerance=100 + width) for ends in alarms]
    return {
        "precision": statistics.mean(s.precision for s in every),
        "recall": statistics.mean(s.recall for s in every),
        "delay": statistics.median(s.delay for s in every),
        "false alarms per 1000": 1000 * statistics.mean(s.false_alarms for s in every) / (BATCHES * tasks),
    }


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="means over seeds; delay in batches since the change began, median")
    measures = ("precision", "recall", "delay", "false alarms per 1000", "accuracy", "regret")
    for column in ("rule", "width", "boundaries", *measures):
        table.add_column(column, justify="right")
    for row in sorted(rows, key=lambda row: (row["rule"], row["width"])):
        values = {m: statistics.mean(row[m]) if m == "accuracy" else row.get(m) for m in measures}
        cells = ["–" if value is None else f"{value:.3f}" for value in values.values()]
        cells[2] = "–" if values["delay"] is None else f"{values['delay']:.0f}"
        table.add_row(row["rule"], str(row["width"]), row["boundaries"], *cells)
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--boundaries", nargs="+", choices=BOUNDARIES, default=list(BOUNDARIES))
    parser.add_argument(
        "--widths", nargs="+", type=int, default=[0, 100, 450], help="of a change, in batches"
    )
    parser.add_argument("--rules", nargs="+", choices=METHODS, default=["ewc", "si"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, a core each")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    grid = product(args.boundaries, args.widths, args.rules, args.seeds)
    cases = [Case(*case, tasks=args.tasks) for case in grid]
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as processes:
        rows = summary(cases, list(processes.map(run, cases)))
    show(rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
