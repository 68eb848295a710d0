"""The sequences of tasks on which strengths are chosen and judged.

Each name is a kind of change, a dash and the data: ``perm`` (a permutation of the pixels for each task, one
head), ``split`` (two classes for each task, only whose outputs are used) and ``splitcnn`` of ``digits``
(scikit-learn's), ``mnist`` or ``fashion``, and ``split`` of ``insects`` (33 measurements of wing beats, six
species); ``clinc`` (ten domains of requests, a head each), ``clinclora``
with low-rank adapters, ``text5`` (five data sets of texts, a head each) and ``lm`` (a small language model
from random weights on reviews and then an encyclopedia). ``@sgd:0.1`` after the name of an image sequence
takes another optimizer than ``@adam:0.001``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from cl_callbacks import FitBoundaries
from cl_callbacks.data import digits
from cl_callbacks.data.data_source import load_splits
from cl_callbacks.data.image_tasks import ImageTask, as_is, image_tensors, splits_of

HUB = {"mnist": "ylecun/mnist", "fashion": "zalando-datasets/fashion_mnist"}
IMAGES = [
    f"{kind}-{data}" for kind in ("perm", "split", "splitcnn") for data in ("digits", "mnist", "fashion")
]
TEXTS = ["clinc", "clinclora", "text5", "lm"]


class Result(NamedTuple):
    score: float
    """Average accuracy over all tasks after the last; of ``lm`` minus the geometric mean of perplexities."""
    learned: float
    """Average accuracy on each task when it was just learned; NaN where that was not measured."""


def train(sequence: str, callbacks: Sequence[Callback], seed: int, folder: Path | None) -> Result:
    """Trains on one task after the other, with one ``fit`` for each and the optimizer carried on."""
    seed_everything(seed, verbose=False)
    name, _, optimizer = sequence.partition("@")
    if name in TEXTS:
        sys.path.insert(0, str(Path(__file__).parent))
        from text_sequences import train_on_texts

        return train_on_texts(name, callbacks, seed, folder)
    tasks, model, epochs = images(name, seed, folder, optimizer or "adam:0.001")
    trainer = Trainer(max_epochs=epochs, callbacks=[*callbacks, FitBoundaries(carry_optimizer=True)], **QUIET)
    learned = []
    for index, (loader, _, _) in enumerate(tasks):
        model.task = index
        trainer.fit(model, loader)
        trainer.fit_loop.max_epochs += epochs
        learned.append(_accuracy(model, tasks[index], index))
    final = [_accuracy(model, task, index) for index, task in enumerate(tasks)]
    return Result(sum(final) / len(final), sum(learned) / len(learned))


QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "num_sanity_val_steps": 0,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
}
Task = tuple[DataLoader, Tensor, Tensor]


class Classifier(LightningModule):
    """A network that uses only the outputs of the current task's classes, if tasks have classes."""

    def __init__(self, net: nn.Module, optimizer: str, groups: list[list[int]] | None) -> None:
        super().__init__()
        self.net, self.optimizer, self.groups, self.task = net, optimizer, groups, 0

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return logits if self.groups is None else logits[:, self.groups[self.task]]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        kind, lr = self.optimizer.split(":")
        kinds: dict[str, Any] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
        return kinds[kind](self.parameters(), lr=float(lr))


@torch.no_grad()
def _accuracy(model: Classifier, task: Task, index: int) -> float:
    model.eval()
    now, model.task = model.task, index
    right = (model(task[1]).argmax(1) == task[2]).float().mean().item()
    model.task = now
    model.train()
    return right


@cache
def splits(data: str, folder: Path | None) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    if data == "insects":
        return _insects(folder)
    if data == "digits":
        found = splits_of(digits(), seed=0)
    else:
        found = load_splits(HUB[data] if folder is None else str(folder / data))
    train, test = image_tensors(found["train"]), image_tensors(found["test"])
    pad = (4, 4, 4, 4) if data == "digits" else (0, 0, 0, 0)
    return (F.pad(train[0], pad), train[1]), (F.pad(test[0], pad), test[1])


def _insects(folder: Path | None) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Standardised measurements and species, every fifth row to test on."""
    if folder is None:
        raise ValueError("insects are read from --data-dir")
    rows = torch.from_numpy(pd.read_parquet(folder / "streams" / "insects_gradual.parquet").to_numpy(float))
    x, labels = rows[:, :-1].float(), rows[:, -1].long()
    labels = labels.unique(return_inverse=True)[1]
    x, test = (x - x.mean(0)) / x.std(0).clamp(min=1e-6), torch.arange(len(x)) % 5 == 0
    return (x[~test], labels[~test]), (x[test], labels[test])


def images(name: str, seed: int, folder: Path | None, optimizer: str) -> tuple[list[Task], Classifier, int]:
    kind, data = name.split("-")
    (images, labels), (test_images, test_labels) = splits(data, folder)
    test_images, test_labels = test_images[:4000], test_labels[:4000]
    draw, small = torch.Generator().manual_seed(seed), data == "digits"
    pixels, tasks, groups = images[0].numel(), [], None
    if kind == "perm":
        for _ in range(10 if small else 8):
            order = torch.randperm(pixels, generator=draw)
            some = torch.randperm(len(labels), generator=draw)[:5000]
            tasks.append((images[some].flatten(1)[:, order], labels[some], test_images.flatten(1)[:, order]))
        batch_size, epochs = (32, 10) if small else (64, 3)
        made = [(x, y, z, test_labels) for x, y, z in tasks]
    else:
        some = torch.randperm(len(labels), generator=draw)[:30_000]
        images, labels = images[some], labels[some]
        classes = int(labels.max()) + 1
        order = torch.randperm(classes, generator=draw).tolist()
        groups = [sorted(order[i : i + 2]) for i in range(0, classes, 2)]
        made = []
        for _, second in groups:
            pair = [labels == c for c in groups[len(made)]], [test_labels == c for c in groups[len(made)]]
            rows, test_rows = (a | b for a, b in pair)
            own = (labels[rows] == second).long(), (test_labels[test_rows] == second).long()
            made.append((images[rows], own[0], test_images[test_rows], own[1]))
        batch_size, epochs = (16, 10) if small else (64, 2)
    loaders = [
        DataLoader(ImageTask(x, y), batch_size, shuffle=True, collate_fn=as_is, drop_last=True)
        for x, y, _, _ in made
    ]
    net = _cnn(images.shape[-1]) if kind == "splitcnn" else mlp(pixels, 256, 256, 10)
    found = [(loader, x, y) for loader, (_, _, x, y) in zip(loaders, made, strict=True)]
    return found, Classifier(net, optimizer, groups), epochs


def mlp(*widths: int) -> nn.Sequential:
    layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers[:-1])


def _cnn(side: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (side // 4) ** 2, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
