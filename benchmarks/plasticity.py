"""How well a network goes on learning, with rules that renew it and rules that consolidate.

    python benchmarks/plasticity.py permuted --data-dir DIR --out FILE           # train, and print the table
    python benchmarks/plasticity.py permuted --out FILE --show                   # print what there is

A method is a list of callbacks as one would write it, and after ``@`` how it is trained: ``lr``, ``decay``
(of weights), ``norm=1`` (LayerNorm), ``input_norm=1`` (running mean and variance of each pixel), ``sgd=1`` or
``adamw=1`` instead of Adam, ``tasks``, ``epochs``. FILE gets one line of JSON for each
training, and those that are in there are left out. DIR has a folder ``mnist`` with parquet files.

=================  ===========================================================================================
``random_labels``  1,200 images of MNIST under new random labels in each of 12 tasks of 80 epochs; batches of
                   16, 784-100-100-10 ReLU, Adam. ``first``, ``last``: mean accuracy of batches before their
                   step, over the first and the last three tasks.
``permuted``       10,000 images of MNIST under 20 permutations of the pixels, one epoch, the same network.
                   ``online``: mean accuracy of batches before their step. ``backward``: mean over tasks of
                   the accuracy on test images after the last task minus that after the task itself;
                   ``one step``: after the next task minus that after the task itself.
``stream``         MNIST under 60 permutations, 5,000 images each, one at a time; 784-300-150-10 ReLU.
                   ``online``: mean accuracy before each step.
``probe``          the digits of scikit-learn under 100 permutations, one epoch of batches of 16, with
                   :class:`~cl_callbacks.PlasticityProbe` after every tenth: mean over the last five.
=================  ===========================================================================================

Source of the first two: Kumar et al. 2023 (arXiv 2308.11958), the first cut to 80 of 400 epochs and 12 of 50
tasks; of the third: Elsayed & Mahmood 2024 (2404.00781), cut to 60 of 200 tasks.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
from records import Scores, callbacks_of, train_and_show
from sequences import QUIET, splits

import cl_callbacks
from cl_callbacks import EpochBoundaries, PlasticityProbe, TaskSequence
from cl_callbacks.data import digits
from cl_callbacks.data.image_tasks import ImageTask, Permute, as_is, image_tensors

RENEWING = ["L2Init(0.001)", "ShrinkAndPerturb(shrink=0.999, noise=0.01, every_n_steps=1)", "FIRE()"]
RENEWING += ["ContinualBackprop(0.001)", "ReDo(0.1, every_n_steps=6000)", "SelfNormalizedResets()"]
CONSOLIDATING = ["EWC()", "SynapticIntelligence()"]
TOGETHER = [
    "EWC(), L2Init(0.001)",
    "EWC(), ContinualBackprop(0.001)",
    "SynapticIntelligence(), L2Init(0.001)",
]
ADAMW, NORMALISED = "adamw=1 lr=0.001", "sgd=1 lr=0.01 input_norm=1"
METHODS = {
    "random_labels": [
        "none",
        "none @ tasks=1",
        "none @ norm=1",
        "none @ decay=0.002",
        "UPGD() @ sgd=1 lr=0.1",
        *(f"{rule} @ norm=1" for rule in ("ContinualBackprop(0.001)", "ReDo(0.1, every_n_steps=6000)")),
        *(*RENEWING, *CONSOLIDATING, *TOGETHER),
    ],
    "permuted": [
        "none",
        "EWC(0.005)",
        "EWC(10.0, normalize=None), L2Init(0.001)",
        "EWC(0.005), ContinualBackprop(0.0001)",
        "EWC(0.005), ContinualBackprop(0.0001, spared_by='ewc')",
    ],
    "stream": [
        f"none @ {ADAMW}",
        "none @ adamw=1 lr=0.0001",
        f"ContinualBackprop(0.0001) @ {ADAMW}",
        "UPGD(decay=0.9999, noise=0.1, weight_decay=0.01) @ sgd=1 lr=0.01",
        f"none @ {ADAMW} input_norm=1",
        "none @ adamw=1 lr=0.0001 input_norm=1",
        f"ContinualBackprop(0.0001) @ {ADAMW} input_norm=1",
        f"none @ {NORMALISED}",
        "none @ sgd=1 lr=0.003 input_norm=1",
        f"UPGD(decay=0.9999, noise=0.0, weight_decay=0.01) @ {NORMALISED}",
        f"L2Init(0.001) @ {NORMALISED}",
    ],
    "probe": ["none", "none @ sgd=1 lr=0.1", *CONSOLIDATING, "MESU()", "MESU(memory_epochs=10)", "BGD()"],
}


class InputNorm(nn.Module):
    """Normalises each input by its running mean and variance, with a memory of some 100 batches."""

    def __init__(self, inputs: int, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("var", torch.ones(inputs))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(x.mean(0), 1 - self.decay)
            self.var.lerp_((x - self.mean).square().mean(0), 1 - self.decay)
        return (x - self.mean) / (self.var + 1e-4).sqrt()


class Online(LightningModule):
    """A classifier that counts how often it is right before it learns."""

    def __init__(
        self,
        widths: list[int],
        *,
        lr: float = 1e-3,
        decay: float = 0.0,
        norm: float = 0,
        input_norm: float = 0,
        sgd: float = 0,
        adamw: float = 0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [InputNorm(widths[0])] if input_norm else []
        for inputs, outputs in pairwise(widths[:-1]):
            layers += [nn.Linear(inputs, outputs), *([nn.LayerNorm(outputs)] if norm else []), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))
        self.options = {"lr": lr, "weight_decay": decay}
        self.optimizer = torch.optim.SGD if sgd else torch.optim.AdamW if adamw else torch.optim.Adam
        self.right = torch.zeros((), dtype=torch.long)
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        outputs = self(batch[0])
        self.right += (outputs.detach().argmax(1) == batch[1]).sum()
        self.count += len(batch[1])
        return F.cross_entropy(outputs, batch[1])

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters(), **self.options)


class Watch(Callback):
    """The accuracy of each task before its steps, and on the test data of all tasks."""

    observes = True
    reads_task_data = False

    def __init__(self, tests: list[tuple[Tensor, Tensor]]) -> None:
        self.tests = tests
        self.online: list[float] = []
        self.scores: list[list[float]] = []  # after each task, on all that were learned

    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        assert isinstance(pl_module, Online)
        self.online.append(int(pl_module.right) / pl_module.count)
        pl_module.right.zero_()
        pl_module.count = 0
        with torch.no_grad():
            known = self.tests[: len(self.scores) + 1]
            self.scores.append([float((pl_module(x).argmax(1) == y).float().mean()) for x, y in known])

    def backward(self) -> float:
        """Mean loss of accuracy on old tasks after the last."""
        return statistics.mean(self.scores[-1][k] - self.scores[k][k] for k in range(len(self.scores) - 1))

    def one_step(self) -> float:
        """Mean loss of accuracy on a task by the next one."""
        return statistics.mean(self.scores[k + 1][k] - self.scores[k][k] for k in range(len(self.scores) - 1))


def run(table: str, method: str, seed: int, args: argparse.Namespace) -> Scores:
    callbacks, options = callbacks_of(method, vars(cl_callbacks))
    tasks, epochs = int(options.pop("tasks", 0)), int(options.pop("epochs", 0))
    if table == "random_labels":
        parts, widths = random_labels(seed, args.data_dir, tasks or 12), [784, 100, 100, 10]
        watch = train(Online(widths, **options), callbacks, parts, [], seed, epochs=epochs or 80)
        return {"first": statistics.mean(watch.online[:3]), "last": statistics.mean(watch.online[-3:])}
    if table == "permuted":
        parts, tests = permuted(seed, args.data_dir, tasks or 20, 10_000)
        watch = train(Online([784, 100, 100, 10], **options), callbacks, parts, tests, seed)
        online = statistics.mean(watch.online)
        return {"online": online, "backward": watch.backward(), "one step": watch.one_step()}
    if table == "stream":
        parts, _ = permuted(seed, args.data_dir, tasks or 60, 5_000)
        watch = train(Online([784, 300, 150, 10], **options), callbacks, parts, [], seed, batch_size=1)
        return {"online": statistics.mean(watch.online), "last": statistics.mean(watch.online[-10:])}
    images, labels = image_tensors(digits()["train"])
    parts = [(images.flatten(1), labels, Permute(1000 * seed + k, 64)) for k in range(tasks or 100)]
    probe = PlasticityProbe(max(1, len(parts) // 10), steps=100)
    watch = train(Online([64, 100, 100, 10], **options), [*callbacks, probe], parts, [], seed)
    late = list(probe.results.values())[-5:]
    names = ("as_is", "fresh", "rigidity", "optimizer", "representation")
    online = {"online, last ten": statistics.mean(watch.online[-10:])}
    return online | {name: statistics.mean(found[name] for found in late) for name in names}


def random_labels(seed: int, folder: Path, tasks: int) -> list[Any]:
    (images, _), _ = splits("mnist", folder)
    generator = torch.Generator().manual_seed(seed)
    chosen = images[torch.randperm(len(images), generator=generator)[:1200]]
    return [(chosen, torch.randint(0, 10, (len(chosen),), generator=generator), None) for _ in range(tasks)]


def permuted(seed: int, folder: Path, tasks: int, size: int) -> tuple[list[Any], list[tuple[Tensor, Tensor]]]:
    """Random images for each task, and a thousand test images under each permutation."""
    (images, labels), (test_images, test_labels) = splits("mnist", folder)
    generator = torch.Generator().manual_seed(seed)
    changes = [Permute(1000 * seed + k, 784) for k in range(tasks)]
    orders = [torch.randperm(len(images), generator=generator)[:size] for _ in changes]
    parts = [(images[order], labels[order], change) for order, change in zip(orders, changes, strict=True)]
    return parts, [(change(test_images[:1000]), test_labels[:1000]) for change in changes]


def train(
    model: Online,
    callbacks: list[Callback],
    parts: list[Any],
    tests: list[tuple[Tensor, Tensor]],
    seed: int,
    *,
    epochs: int = 1,
    batch_size: int = 16,
) -> Watch:
    data = TaskSequence(
        [{"train": ImageTask(*part)} for part in parts],
        epochs_per_task=epochs,
        batch_size=batch_size,
        shuffle_seed=seed,
        collate_fn=as_is,
    )
    watch = Watch(tests)
    trainer = Trainer(
        max_epochs=epochs * len(parts),
        limit_val_batches=0,
        callbacks=[*callbacks, EpochBoundaries(epochs), watch],
        reload_dataloaders_every_n_epochs=1,
        **QUIET,
    )
    trainer.fit(model, data)
    return watch


if __name__ == "__main__":
    train_and_show(__doc__, METHODS, run)
