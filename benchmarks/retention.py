r"""Rehearsal, distillation and averages of weights beside EWC: what is retained, and what it costs.

    python benchmarks/retention.py clinc --data-dir DIR --out FILE           # train, and print the table
    python benchmarks/retention.py split --data-dir DIR --out FILE --seeds 10 \
        --methods "ExperienceReplay(200)" "ExperienceReplay(200) @ lr=0.03"  # to choose
    python benchmarks/retention.py clinc --out FILE --show                   # print what there is

A method is a list of callbacks as one would write it, and after ``@`` how it is trained: ``lr``, ``epochs``
of a task, ``lora`` (the rank), ``tasks`` (how many). FILE gets one line of JSON for each training, and those
that are in there are left out. DIR has the folders ``clinc150``, ``mnist`` and ``text5`` with parquet files.

============  ================================================================================================
``clinc``     ten domains of requests, a head each; MiniLM with frozen embeddings, AdamW, 20 texts for each
              intent. ``none @ joint=1`` learns all of them at once, ``frozen`` trains heads alone, or takes
              class means, on the vectors of the pretrained network.
``guard``     the same with a guard, in five domains; one with tolerance 1 looks on.
``split``     MNIST in five tasks of two digits, one head of ten outputs and no word of the task; 2 x 400
              ReLU (``width=``, ``xavier=1``: as drawn by Glorot & Bengio), SGD, batches of 10, one epoch.
``permuted``  MNIST under twenty permutations of the pixels; the same network, batches of 128.
``lm``        a small language model from random weights on reviews, then an encyclopedia (perplexities).
============  ================================================================================================

Scores are accuracies on test data, and for the seeds from 10 on, which serve for choosing, on validation data
(of MNIST the last sixth of the training data): ``average`` over all tasks after the last, ``learned`` when
each had just ended, ``lost`` the most that a task has lost since.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader

sys.path.insert(0, str(Path(__file__).parent))
from records import Scores, callbacks_of, train_and_show
from sequences import QUIET, Classifier, mlp, splits
from text_sequences import default_model, domains, language_model

import cl_callbacks
from cl_callbacks import (
    EpochBoundaries,
    RetentionGuard,
    SeedEpochs,
    SequentialFineTuner,
    TaskSequence,
    TextTasks,
)
from cl_callbacks.data.image_tasks import ImageTask, Permute, as_is
from cl_callbacks.fine_tuning.task_heads import pooled

EWC_OF_TEXTS = "EWC(estimator='sampled', samples=200)"
REPLAY_OF_TEXTS = "ExperienceReplay(750, select='balanced')"  # five texts of each of 150 intents
REPLAY_OF_IMAGES = [
    f"{rule}({memory}, select='balanced')"
    for rule in ("ExperienceReplay", "DarkExperienceReplay")
    for memory in (200, 500)
]
METHODS = {
    "clinc": [
        "none",
        REPLAY_OF_TEXTS,
        f"{REPLAY_OF_TEXTS}, {EWC_OF_TEXTS}",
        "WeightMerging()",
        "WeightMerging(0.7)",
        f"WeightMerging(0.7), {REPLAY_OF_TEXTS}",
        "Distillation()",
        "Distillation(3.0, likelihood='gaussian')",
        EWC_OF_TEXTS,
        "none @ joint=1",
        "frozen",
    ],
    "guard": [f"RetentionGuard('val_acc', 'max', {tolerance}) @ tasks=5" for tolerance in (1.0, 0.05)],
    "split": ["none", *REPLAY_OF_IMAGES],
    "permuted": ["none", *[rule.replace(", select='balanced'", "") for rule in REPLAY_OF_IMAGES]],
    "lm": [
        "none",
        *[f"ExperienceReplay({size}, weight=0.1, past_only=True)" for size in (24, 240)],
        "Distillation()",
        "EWC(estimator='sampled', samples=100)",
    ],
}
TUNING_SEEDS = 10


class ScoreTasks(Callback):
    """Scores each task when it has ended, which is after weights were merged; cheaper than TaskEvaluation."""

    def __init__(self, loaders: list[DataLoader]) -> None:
        self.loaders = loaders
        self.learned: list[float] = []

    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        self.learned.append(accuracy(pl_module, self.loaders[task]))

    def scores(self, model: LightningModule) -> Scores:
        final = [accuracy(model, loader) for loader in self.loaders]
        if not self.learned:  # all at once
            return {"average": statistics.mean(final)}
        lost = max(then - now for then, now in zip(self.learned, final, strict=True))
        return {"average": statistics.mean(final), "learned": statistics.mean(self.learned), "lost": lost}


def accuracy(model: Any, loader: DataLoader) -> float:
    was_training, right, count = model.training, 0, 0
    model.eval()
    with torch.no_grad(), model.trainer.precision_plugin.forward_context():
        for batch in loader:
            if isinstance(batch, dict):
                labels = batch.pop("labels")
                found = model(**batch).logits
            else:
                labels, found = batch[1], model(batch[0])
            right, count = right + int((found.argmax(-1) == labels).sum()), count + len(labels)
    model.train(was_training)
    return right / count


def run(table: str, method: str, seed: int, args: argparse.Namespace) -> Scores:
    folder = args.data_dir
    if table == "clinc" and method == "frozen":
        return frozen(domains(seed, folder, tasks=10), seed)
    callbacks, options = callbacks_of(method, vars(cl_callbacks) | globals())
    if table == "lm":
        (learned, _), (first, second) = language_model(callbacks, seed, folder)
        return {"first, learned": learned, "first": first, "second": second}
    if table in ("clinc", "guard"):
        return texts(callbacks, seed, folder, args.precision, **options)
    return images(table, callbacks, seed, folder, **options)


# -- texts -------------------------------------------------------------------------------------------


def texts(
    callbacks: list[Callback],
    seed: int,
    folder: Path,
    precision: str,
    *,
    lr: float = 3e-4,
    epochs: float = 3,
    lora: float = 0,
    joint: float = 0,
    tasks: float = 10,
) -> Scores:
    data = domains(seed, folder, tasks=int(tasks), epochs=int(epochs))
    model = FusedFineTuner(
        default_model(), num_labels=data.num_labels, lr=lr, freeze=["embeddings"], lora_rank=int(lora)
    )
    scoring = ScoreTasks(evaluated(data, seed))
    guards = [rule for rule in callbacks if isinstance(rule, RetentionGuard)]
    boundaries = [] if joint else [EpochBoundaries(int(epochs))]
    trainer = Trainer(
        max_epochs=int(epochs) * (1 if joint else len(data)),
        limit_val_batches=1.0 if guards else 0,
        check_val_every_n_epoch=1000,
        callbacks=[*callbacks, *boundaries, SeedEpochs(seed), scoring],
        reload_dataloaders_every_n_epochs=1,
        precision=precision,
        **QUIET,
    )
    trainer.fit(model, all_at_once(data) if joint else data)
    scores = scoring.scores(model)
    for rule in guards:
        for key in ("lost", "lost_after", "share"):
            scores[f"guard/{key}"] = max(decision[key] for decision in rule.decisions)
    return scores


class FusedFineTuner(SequentialFineTuner):
    """With an AdamW that reads memory once, which on a CPU is a fifth of a step."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        for group in optimizer.param_groups:
            group.update(fused=True, foreach=False)
        return optimizer


def all_at_once(data: TextTasks) -> DataLoader:
    """The texts of all tasks in random order, with the number of the task of each."""

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        tasks = [row["task_id"] for row in rows]
        return data.collate_fn([row | {"task_id": 0} for row in rows]) | {"task_id": tasks}

    rows = ConcatDataset([task["train"] for task in data.tasks])
    return DataLoader(rows, data.batch_size, shuffle=True, collate_fn=collate)


def evaluated(data: TextTasks, seed: int) -> list[DataLoader]:
    """The texts to score, those of alike lengths together."""
    split = "validation" if seed >= TUNING_SEEDS else "test"
    rows = [sorted(task[split], key=lambda row: len(row["input_ids"])) for task in data.tasks]
    return [DataLoader(own, 50, collate_fn=data.collate_fn) for own in rows]


def text_vectors(model: Any, batch: Any) -> Tensor:
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "task_id")}
    states = model.network.encoder(**inputs).last_hidden_state
    return pooled(states, inputs["attention_mask"], "mean")


def frozen(data: TextTasks, seed: int) -> Scores:
    """Heads that are trained on the vectors of the pretrained network, and means of classes."""
    model = SequentialFineTuner(default_model(), num_labels=data.num_labels).eval()
    means, heads = [], []
    for task, loader in zip(data.tasks, evaluated(data, seed), strict=True):
        train = DataLoader(task["train"], 50, collate_fn=data.collate_fn)
        (x, y), (test_x, test_y) = vectors_of(model, train), vectors_of(model, loader)
        centres = torch.stack([F.normalize(x).clone()[y == c].mean(0) for c in range(15)])
        means.append((test_x @ F.normalize(centres).T).argmax(1).eq(test_y).float().mean().item())
        head = torch.nn.Linear(x.shape[1], 15)
        optimizer = torch.optim.AdamW(head.parameters(), lr=0.01)
        for _ in range(300):
            optimizer.zero_grad()
            F.cross_entropy(head(x), y).backward()
            optimizer.step()
        heads.append(head(test_x).argmax(1).eq(test_y).float().mean().item())
    return {"average": statistics.mean(heads), "class means": statistics.mean(means)}


@torch.no_grad()
def vectors_of(model: Any, loader: Iterable[Any]) -> tuple[Tensor, Tensor]:
    found = [(text_vectors(model, batch), batch["labels"]) for batch in loader]
    return torch.cat([x for x, _ in found]), torch.cat([y for _, y in found])


# -- images ------------------------------------------------------------------------------------------


def images(
    table: str,
    callbacks: list[Callback],
    seed: int,
    folder: Path,
    *,
    lr: float = 0.1,
    batch_size: float = 0,
    width: float = 400,
    xavier: float = 0,
) -> Scores:
    train, test = splits("mnist", folder)
    if seed >= TUNING_SEEDS:
        train, test = tuple(t[:50_000] for t in train), tuple(t[50_000:] for t in train)
    if table == "split":
        parts = [[(x[y // 2 == k], y[y // 2 == k], None) for x, y in (train, test)] for k in range(5)]
    else:
        changes = [Permute(1000 * seed + k, 784) for k in range(20)]
        parts = [[(*train, change), (*test, change)] for change in changes]
    data = TaskSequence(
        [{"train": ImageTask(*own), "test": ImageTask(*other)} for own, other in parts],
        epochs_per_task=1,
        batch_size=int(batch_size) or (10 if table == "split" else 128),
        eval_batch_size=1000,
        shuffle_seed=seed,
        collate_fn=as_is,
    )
    net = mlp(784, int(width), int(width), 10)
    if xavier:
        for layer in (module for module in net.modules() if isinstance(module, torch.nn.Linear)):
            torch.nn.init.xavier_uniform_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    model = Classifier(net, f"sgd:{lr}", None)
    scoring = ScoreTasks(data.test_dataloader())
    trainer = Trainer(
        max_epochs=len(data),
        limit_val_batches=0,
        callbacks=[*callbacks, EpochBoundaries(1), scoring],
        reload_dataloaders_every_n_epochs=1,
        **QUIET,
    )
    trainer.fit(model, data)
    return scoring.scores(model)


if __name__ == "__main__":
    train_and_show(__doc__, METHODS, run)
