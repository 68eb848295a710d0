"""Fifty tasks in one pass, without a word about where they begin: permuted MNIST, 784-50-10.

    python benchmarks/long_stream.py --data-dir DIR        # DIR/train.parquet, DIR/test.parquet
    python benchmarks/long_stream.py --data-dir DIR --seeds 0 --methods sgd mesu --json FILE

A reduced form of the stream of 200 tasks of Bonnet et al. 2025: each task shows 5,000 images once, in
batches of 10, under a permutation of the pixels of its own. Reported is the accuracy after the last task on
the last task, and its mean over the last 5, the last 20 and all tasks: what is learned and what is kept are
two things, and the last few tasks say little about memory. ``fresh`` is the mean accuracy on each task right
after it, the ability to learn. Means and standard deviations over seeds; the settings were chosen on other
seeds, by the sum of the columns ``last 5`` and ``last 20`` (docs/measurements.md).
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from cl_callbacks import BGD, MESU
from cl_callbacks.data.image_tasks import image_tensors

METHODS: dict[str, Callable[[], list[Callback]]] = {
    "sgd": lambda: [],
    "bgd": lambda: [BGD(0.05, draws=2)],
    "mesu": lambda: [MESU(3e4, 0.1, draws=2)],
    "no mean prior": lambda: [MESU(2e4, 0.1, draws=2, prior="chain", coupling=0.0)],
    "chain 2": lambda: [MESU(1e4, 0.1, draws=2, prior="chain", beakers=2, coupling=1e-2)],
    "chain 6": lambda: [MESU(2e4, 0.1, draws=2, prior="chain", beakers=6, coupling=3e-4)],
}
RATE = 0.005
"""Learning rate of SGD, whose update the other methods replace."""

COLUMNS = {"last": 1, "last 5": 5, "last 20": 20, "all": None}


class Stream(Dataset):
    """Batch ``i`` of the stream, under the permutation of its task."""

    def __init__(
        self, images: Tensor, labels: Tensor, permutations: Tensor, per_task: int, batch_size: int, seed: int
    ) -> None:
        self.images, self.labels, self.permutations = images, labels, permutations
        self.batches = per_task // batch_size
        generator = torch.Generator().manual_seed(seed)
        order = [torch.randperm(len(images), generator=generator)[:per_task] for _ in permutations]
        self.order = torch.stack(order).view(len(permutations), self.batches, batch_size)

    def __len__(self) -> int:
        return len(self.permutations) * self.batches

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        task, batch = divmod(index, self.batches)
        chosen = self.order[task, batch]
        return self.images[chosen][:, self.permutations[task]], self.labels[chosen]


class Network(LightningModule):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 10))
        self.rate = rate

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.rate)


class Accuracy(Callback):
    """On each task right after it, and on all tasks in the end."""

    def __init__(self, images: Tensor, labels: Tensor, permutations: Tensor, batches: int) -> None:
        self.images, self.labels, self.permutations = images, labels, permutations
        self.batches = batches  # per task
        self.fresh: list[float] = []

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % self.batches == 0:
            self.fresh.append(self.on(pl_module, batch_idx // self.batches))

    def on(self, pl_module: LightningModule, task: int) -> float:
        found = pl_module.net(self.images[:, self.permutations[task]]).argmax(1)
        return (found == self.labels).float().mean().item()

    @torch.no_grad()
    def on_all(self, pl_module: LightningModule) -> list[float]:
        return [self.on(pl_module, task) for task in range(len(self.permutations))]


def load(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    files = {split: str(folder / f"{split}.parquet") for split in ("train", "test")}
    found = {}
    for split, rows in load_dataset("parquet", data_files=files).items():
        images, labels = image_tensors(rows)
        found[str(split)] = (images.flatten(1) - 0.1307) / 0.3081, labels
    return found


def train(
    callbacks: list[Callback], args: argparse.Namespace, seed: int, rate: float = RATE
) -> dict[str, Any]:
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
    data = load(args.data_dir)
    generator = torch.Generator().manual_seed(1000 + seed)
    permutations = torch.stack([torch.randperm(784, generator=generator) for _ in range(args.tasks)])
    seed_everything(seed, verbose=False)
    stream = Stream(*data["train"], permutations, args.images, args.batch_size, seed)
    accuracy = Accuracy(*data["test"], permutations, stream.batches)
    trainer = Trainer(
        max_epochs=1,
        callbacks=[*callbacks, accuracy],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    start = time.perf_counter()
    network = Network(rate)
    trainer.fit(network, DataLoader(stream, batch_size=None))
    accuracies = accuracy.on_all(network)
    means = {name: statistics.mean(accuracies[-(n or 0) :]) for name, n in COLUMNS.items()}
    return means | {
        "fresh": statistics.mean(accuracy.fresh),
        "seconds": time.perf_counter() - start,
        "accuracies": accuracies,
        "fresh accuracies": accuracy.fresh,
    }


def job(args: argparse.Namespace, case: tuple[str, int]) -> dict[str, Any]:
    method, seed = case
    return train(METHODS[method](), args, seed)


def show(results: dict[str, list[dict[str, Any]]]) -> None:
    table = Table(title="accuracy in %: mean ± standard deviation over seeds")
    names = [*COLUMNS, "fresh"]
    for column in ("method", *names, "seconds"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for method, runs in results.items():
        row = []
        for name in names:
            values = [100 * run[name] for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            row.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
        table.add_row(method, *row, f"{statistics.mean(run['seconds'] for run in runs):.0f}")
    Console(width=110).print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-dir", type=Path, required=True, help="folder with train.parquet, test.parquet"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tasks", type=int, default=50)
    parser.add_argument("--images", type=int, default=5000, help="per task")
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    args = parse()
    cases = [(method, seed) for method in args.methods for seed in args.seeds]
    # Fork would inherit torch's threads.
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        runs = dict(zip(cases, pool.map(partial(job, args), cases), strict=True))
    results = {method: [runs[method, seed] for seed in args.seeds] for method in args.methods}
    show(results)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
