"""Ten tasks in sequence, with and without a memory: permuted handwritten digits.

    python examples/digits.py                              # without a callback, then with EWC
    python examples/digits.py --methods none ewc si mas rwalk kfac streaming --json results.json
    python examples/digits.py --methods none l2sp sfa wise running  # without importance
    python examples/digits.py --methods ewc sfa+ewc merged+ewc  # several at once
    python examples/digits.py --methods guard ewc guard+ewc  # old tasks lose at most 0.02
    python examples/digits.py --methods none mesu bgd metaplastic benna_fusi  # no boundary is used
    python examples/digits.py --methods none er der er+ewc  # remembered samples, alone and beside a rule
    python examples/digits.py --methods none metaplastic cascade --network binary
    python examples/digits.py --methods ewc si --boundaries drift  # found in the loss
    python examples/digits.py --methods ewc si --boundaries drift --transition 200  # gradual changes
    python examples/digits.py --methods ewc --strength 0.1 --tasks 5 --seed 1
    python examples/digits.py --data mnist --data-dir DIR  # DIR/train.parquet, DIR/test.parquet

The data are scikit-learn's digits, padded to 16 by 16 pixels, or MNIST, from a folder or from the hub
(ylecun/mnist); each task shows them under another fixed permutation of the pixels. An ordinary
LightningModule is trained by one Trainer in one ``fit`` on data that change by themselves; all that differs
between the methods is the list of callbacks, and who says when a task ends: the data, which know it, or
``DriftBoundaries``, which find it. Writes the accuracy matrices as a picture and a W&B run for each
method, offline unless you are logged in.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
import warnings
from functools import partial
from itertools import pairwise
from netrc import netrc
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import torch
import wandb
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import WandbLogger
from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from cl_callbacks import (
    BGD,
    EWC,
    L2SP,
    MAS,
    MESU,
    BennaFusi,
    Cascade,
    DarkExperienceReplay,
    Distillation,
    DriftBoundaries,
    ExperienceReplay,
    KFACLaplace,
    MetaplasticGate,
    RetentionGuard,
    RWalk,
    StreamingConsolidation,
    SynapseStatistics,
    SynapticIntelligence,
    TaskEvaluation,
    TaskSequence,
    WeightMerging,
)
from cl_callbacks.data import digits
from cl_callbacks.drift import score_boundaries
from cl_callbacks.functional import forgetting

if __package__:  # named in a configuration, as `examples.digits.Classifier`
    from examples.methods import Methods, callbacks_of, chosen_from, strength_of
else:
    from methods import Methods, callbacks_of, chosen_from, strength_of


class Setting(NamedTuple):
    epochs: int  # per task
    batch_size: int
    pad: int
    pixels: int
    hidden: int


SETTINGS = {
    "digits": Setting(epochs=10, batch_size=32, pad=4, pixels=16 * 16, hidden=256),
    "mnist": Setting(epochs=1, batch_size=256, pad=0, pixels=28 * 28, hidden=400),
}

METHODS: Methods = {
    "none": None,
    "ewc": (EWC, "strength"),
    "si": (SynapticIntelligence, "strength"),
    "l2sp": (L2SP, "strength"),
    "mas": (MAS, "strength"),
    "rwalk": (RWalk, "strength"),
    "kfac": (KFACLaplace, "strength"),
    "streaming": (StreamingConsolidation, "strength"),
    "mesu": (MESU, "memory_steps"),
    "bgd": (BGD, "initial_std"),
    "metaplastic": (MetaplasticGate, "steepness"),
    "benna_fusi": (BennaFusi, "coupling"),
    "cascade": (Cascade, "levels"),
    "sfa": (partial(WeightMerging, share=0.25, every_n_steps=20), "share"),
    "wise": (partial(WeightMerging, share=0.5), "share"),
    "running": (partial(WeightMerging, share="running"), "share"),
    "merged": (partial(WeightMerging, weighted_by="ewc"), "share"),  # beside ewc: merged+ewc
    "er": (ExperienceReplay, "weight"),
    "der": (DarkExperienceReplay, "alpha"),
    "lwf": (Distillation, "strength"),
    "guard": (partial(RetentionGuard, "val_acc", "max", tolerance=0.02), "tolerance"),
}
callbacks = partial(callbacks_of, METHODS)


class BinaryLinear(nn.Linear):
    """Computes with the signs of its weights; the gradient goes through to the weights as if they were."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        signs = torch.where(self.weight >= 0, 1.0, -1.0).to(self.weight)
        return F.linear(x, self.weight + (signs - self.weight).detach())


def network(inputs: int, hidden: int, classes: int = 10, binary: bool = False) -> nn.Module:
    widths = [inputs, hidden, hidden, classes]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        if binary:  # normalised by the batch alone: statistics of one task would not serve another
            layers += [BinaryLinear(before, after), nn.BatchNorm1d(after, track_running_stats=False)]
        else:
            layers += [nn.Linear(before, after)]
        layers += [nn.Hardtanh() if binary else nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Classifier(LightningModule):
    """What you already have: nothing in it knows of tasks or callbacks."""

    def __init__(self, inputs: int, hidden: int = 256, binary: bool = False) -> None:
        super().__init__()
        self.net = network(inputs, hidden, binary=binary)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean(), batch_size=len(y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def load(data: str, folder: Path | None) -> Any:
    if data == "digits":
        return digits()
    from datasets import load_dataset

    if folder is None:
        return load_dataset("ylecun/mnist")
    return load_dataset("parquet", data_files={s: str(folder / f"{s}.parquet") for s in ("train", "test")})


def task_sequence(data: str, folder: Path | None, tasks: int, seed: int, transition: int = 0) -> TaskSequence:
    setting = SETTINGS[data]
    return TaskSequence.permuted(
        load(data, folder),
        tasks=tasks,
        seed=seed,
        pad=setting.pad,
        batch_size=setting.batch_size,
        epochs_per_task=setting.epochs,
        transition_batches=transition,
    )


def average_accuracy(trainer: Trainer) -> float:
    """Over all tasks, in the latest validation."""
    found = [value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val_acc")]
    return sum(found) / len(found)


def run(method: str, args: argparse.Namespace) -> dict[str, Any]:
    seed_everything(args.seed, verbose=False)
    setting = SETTINGS[args.data]
    data = task_sequence(args.data, args.data_dir, args.tasks, args.seed, args.transition)
    model = Classifier(setting.pixels, setting.hidden, binary=args.network == "binary")
    rules = callbacks(method, args.strength)
    strength = strength_of(METHODS, method, rules)
    evaluation = TaskEvaluation("val_acc")
    # Without a boundary callback the data say when a task ends, as they say how long to train.
    boundaries = [DriftBoundaries()] if args.boundaries == "drift" else []
    logger = WandbLogger(
        name=f"{method}-seed{args.seed}",
        project=f"cl_callbacks-{args.data}",
        save_dir=args.out,
        offline=not logged_in_to_wandb(),
        config=vars(args) | {"method": method, "strength": strength},
    )
    trainer = Trainer(
        check_val_every_n_epoch=setting.epochs,
        num_sanity_val_steps=0,
        callbacks=[*rules, *boundaries, evaluation, SynapseStatistics()],
        logger=logger,
        accelerator=args.accelerator,
        devices=1,
        log_every_n_steps=15,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=not args.quiet,
    )
    start = time.perf_counter()
    trainer.fit(model, data)
    seconds = time.perf_counter() - start
    wandb.finish()
    # Validation comes when a task ends, whenever that is noticed; the first row is of the untrained network.
    # Where weights are merged then, they are scored again at the same step, and these scores count.
    curve = list(dict(evaluation.record.curve).values())
    matrix = curve[1:]
    found = {}
    for detected in boundaries:
        batches = int(trainer.num_training_batches) * setting.epochs
        changes = [batches * task for task in range(1, args.tasks)]
        # A change that is gradual begins earlier, and is over later.
        begins = [change - args.transition // 2 for change in changes]
        alarms = [boundary.batch for boundary in detected.found]
        score = score_boundaries(alarms, begins, tolerance=100 + args.transition)
        found = {"found": score._asdict(), "boundaries": detected.found, "changes": changes}
    return found | {
        "average_accuracy": sum(matrix[-1]) / len(matrix[-1]),
        "last_accuracy": matrix[-1][-1],
        "forgetting": forgetting(torch.tensor(curve)).item(),
        "strength": strength,
        "matrix": matrix,
        "seconds": seconds,
    }


def logged_in_to_wandb() -> bool:
    file = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    known = file.is_file() and any("wandb" in host for host in netrc(str(file)).hosts)
    return known or bool(os.environ.get("WANDB_API_KEY"))


def show_found(console: Console, method: str, result: dict[str, Any]) -> None:
    score, changes = result["found"], len(result["changes"])
    console.print(
        f"{method}: found {score['recall'] * changes:.0f} of {changes} changes, median delay "
        f"{score['delay']:g} batches, {score['false_alarms']} false alarms"
    )


def show_summary(console: Console, results: dict[str, dict[str, Any]]) -> None:
    table = Table(title="average accuracy over all tasks after the last")
    for column in ("method", "strength", "accuracy", "last task", "forgetting", "seconds"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for method, result in results.items():
        scores = [f"{result[key]:.3f}" for key in ("average_accuracy", "last_accuracy", "forgetting")]
        table.add_row(method, f"{result['strength']:g}", *scores, f"{result['seconds']:.0f}")
    console.print(table)


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    columns = min(4, len(results))
    rows = -(-len(results) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(5 * columns, 4.8 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(results) :]:
        axis.set_visible(False)
    for axis, (method, result) in zip(axes.flat, results.items(), strict=False):
        matrix = torch.tensor(result["matrix"])
        # Tasks that were not learned yet are left blank.
        seen = matrix.masked_fill(torch.ones_like(matrix).triu(1).bool(), torch.nan)
        image = axis.imshow(100 * seen, vmin=0, vmax=100, cmap="viridis")
        axis.set_title(f"{method}: average {result['average_accuracy']:.3f}")
        axis.set_xlabel("tested on task")
        axis.set_ylabel("after learning task")
        ticks = range(0, len(matrix), max(1, len(matrix) // 10))
        axis.set_xticks(ticks, [str(t + 1) for t in ticks])
        axis.set_yticks(ticks, [str(t + 1) for t in ticks])
    figure.colorbar(image, ax=axes, label="accuracy in %", shrink=0.8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--methods", nargs="+", type=chosen_from(METHODS), default=["none", "ewc"], metavar="METHOD"
    )
    parser.add_argument("--data", choices=SETTINGS, default="digits")
    parser.add_argument("--boundaries", choices=("declared", "drift"), default="declared")
    parser.add_argument("--transition", type=int, default=0, help="batches in which neighbouring tasks mix")
    parser.add_argument("--network", choices=("real", "binary"), default="real", help="kind of weights")
    parser.add_argument("--data-dir", type=Path, help="folder with train.parquet and test.parquet")
    parser.add_argument("--tasks", type=int, default=10, help="how many permutations (at least 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strength", type=float, help="of the methods; default: that of each rule")
    parser.add_argument("--json", type=Path, help="write averages and matrices to this file")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of logs and picture")
    parser.add_argument("--accelerator", default="cpu", help="a network this small is fastest there")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args()
    if args.tasks < 2:
        parser.error("a sequence to forget in has at least 2 tasks")
    return args


def main() -> None:
    args = parse()
    os.environ.setdefault("WANDB_SILENT", "true")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning's, under a newer torch
    args.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    results = {method: run(method, args) for method in args.methods}
    for method, result in results.items():
        if "found" in result:
            show_found(console, method, result)
    show_summary(console, results)
    picture = args.out / f"{args.data}.png"
    draw(results, picture)
    console.print(f"picture: {picture}; W&B runs: {args.out / 'wandb'}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
