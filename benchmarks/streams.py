"""Two real streams, each sample predicted before it is learned: no task is declared by nature.

    python benchmarks/streams.py --data-dir DIR --json streams.json

DIR holds elec2.parquet, electricity prices that rise or fall (45,312 half-hours), and
insects_gradual.parquet, insects told by their wing beats while the temperature changes (24,150 flights). A
network of two hidden layers sees a stream once, in batches of ten: each is predicted and then learned.
Boundaries are not used, declared where hindsight would split the stream (into the two parts whose
standardised features vary least), or found. Prints accuracy over the whole stream, and after it on every
fifth sample, none of which was learned: what is remembered of the whole.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import load_dataset
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from cl_callbacks import EWC, MESU, BatchBoundaries, DriftBoundaries, FitBoundaries, SynapticIntelligence

LABELS = {"elec2": "class", "insects_gradual": "label"}
BATCH = 10
WARM_UP = 1000  # samples whose mean and spread are taken for those of the stream

RULES: dict[str, Callable[[], list[Callback]]] = {
    "none": list,
    # What remembers most (mean of both streams, boundaries found) at a loss of at most 3 points online, of a
    # small grid on seed 10: EWC 30 to 10,000, SI 1 to 30, MESU 1,000 to 100,000.
    "ewc": lambda: [OnTriples(100.0)],
    "si": lambda: [SynapticIntelligence(10.0, normalize=None)],
    "mesu": lambda: [MESU(memory_steps=100_000)],
}
BOUNDARIES: dict[str, Callable[[], Callback]] = {
    "none": FitBoundaries,
    "declared": lambda: BatchBoundaries(key=2),
    "found": DriftBoundaries,
}


class Case(NamedTuple):
    folder: Path
    stream: str
    rule: str
    boundaries: str
    seed: int


class OnTriples(EWC):
    """The third entry of a batch, the task, is nothing to the network."""

    def outputs(self, pl_module: LightningModule, batch: Any) -> Any:
        return pl_module(batch[0]), batch[1]


class Predictor(LightningModule):
    """Predicts each batch before it learns it."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, classes)
        )
        self.right = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        outputs = self(batch[0])
        self.right += int((outputs.argmax(1) == batch[1]).sum())
        return F.cross_entropy(outputs, batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def load(folder: Path, stream: str) -> tuple[Tensor, Tensor]:
    """Standardised features and labels, in the order of time."""
    rows = load_dataset("parquet", data_files=str(folder / f"{stream}.parquet"), split="train")
    rows = rows.with_format("torch")
    names = [name for name in rows.column_names if name != LABELS[stream]]
    x = torch.stack([rows[name][:].float() for name in names], dim=1)
    first = x[:WARM_UP]
    x = (x - first.mean(0)) / first.std(0).clamp_min(0.05 * x.std(0))
    return x, rows[LABELS[stream]][:].unique(return_inverse=True)[1]


def best_split(x: Tensor) -> int:
    """The row that splits a stream into the two parts whose features vary least."""
    x = (x - x.mean(0)) / x.std(0)
    n = torch.arange(1, len(x))[:, None]
    sums = x.double().cumsum(0)
    before, after = sums[:-1], sums[-1] - sums[:-1]
    # Variance within the parts is least where that between them is greatest.
    between = (before.square() / n + after.square() / (len(x) - n)).sum(1)
    return int(between.argmax()) + 1


def run(case: Case) -> dict[str, Any]:
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    seed_everything(case.seed, verbose=False)
    x, y = load(case.folder, case.stream)
    split = best_split(x)
    learned = torch.arange(len(x)) % 5 != 4
    task = (torch.arange(len(x)) >= split).long()[learned]
    change = int((task == 0).sum()) // BATCH * BATCH  # no batch is of two tasks
    task = (torch.arange(len(task)) >= change).long()
    boundaries = BOUNDARIES[case.boundaries]()
    model = Predictor(x.shape[1], int(y.max()) + 1)
    trainer = Trainer(
        max_epochs=1,
        callbacks=[*RULES[case.rule](), boundaries],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(model, DataLoader(TensorDataset(x[learned], y[learned], task), BATCH))
    with torch.no_grad():
        remembered = (model(x[~learned]).argmax(1) == y[~learned]).float().mean().item()
    found = boundaries.found if isinstance(boundaries, DriftBoundaries) else []
    return {
        "online": model.right / len(task),
        "remembered": remembered,
        "split": split,
        "found": [boundary.onset * BATCH * 5 // 4 for boundary in found],
    }


def show(cases: list[Case], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    table = Table(title="accuracy in %, mean ± standard deviation over seeds")
    for column in (
        "stream",
        "rule",
        "boundaries",
        "online",
        "remembered",
        "found at (rows, first seed)",
    ):
        table.add_column(column)
    rows = []
    for key in dict.fromkeys((c.stream, c.rule, c.boundaries) for c in cases):
        mine = [r for c, r in zip(cases, results, strict=True) if (c.stream, c.rule, c.boundaries) == key]
        cells = []
        for measure in ("online", "remembered"):
            values = [100 * r[measure] for r in mine]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
        table.add_row(*key, *cells, ", ".join(map(str, mine[0]["found"])) if key[2] == "found" else "")
        rows.append(dict(zip(("stream", "rule", "boundaries"), key, strict=True)) | {"runs": mine})
    Console(width=140).print(table)
    for stream in dict.fromkeys(c.stream for c in cases):
        split = next(r["split"] for c, r in zip(cases, results, strict=True) if c.stream == stream)
        print(f"{stream}: hindsight splits it at row {split:,}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with the parquet files")
    parser.add_argument("--streams", nargs="+", choices=LABELS, default=list(LABELS))
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, a core each")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cases = [
        Case(args.data_dir, stream, rule, boundaries, seed)
        for stream, rule, boundaries, seed in product(args.streams, args.rules, BOUNDARIES, args.seeds)
        if rule in ("ewc", "si") or boundaries == "none"  # the others use no boundaries
    ]
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as processes:
        rows = show(cases, list(processes.map(run, cases)))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
