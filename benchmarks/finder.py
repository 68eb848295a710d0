"""Is what StrengthFinder suggests after two tasks right for all of them?

    python benchmarks/finder.py --data-dir DIR --json FILE --sequences perm-digits split-digits clinc

Finds the strength of EWC for a sequence of benchmarks/sequences.py, then trains on all of its tasks at each
strength of the finder's grid, and prints the score at the suggestion beside the best of the grid.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from sequences import QUIET, TEXTS, Classifier, images, train

from cl_callbacks import EWC, EpochBoundaries, SequentialFineTuner, TaskSequence, find_strength
from cl_callbacks.data.image_tasks import ImageTask, as_is


class Validated(Classifier):
    """Reads the current task from the data module, and validates every task with its own classes."""

    def on_train_epoch_start(self) -> None:
        self.task = self.trainer.datamodule.current_task  # type: ignore[attr-defined]

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        now, self.task = self.task, dataloader_idx
        right = (self(batch[0]).argmax(1) == batch[1]).float().mean()
        self.task = now
        self.log("val_acc", right, batch_size=len(batch[1]))


def prepared(sequence: str, seed: int, folder: Path | None) -> tuple[Any, Any, int]:
    """Module, data module and epochs for each task."""
    seed_everything(seed, verbose=False)
    if sequence in TEXTS:
        from text_sequences import default_model, domains

        texts = domains(seed, folder)
        model = SequentialFineTuner(default_model(), lr=3e-4, freeze=["embeddings"])
        return model, texts, texts.epochs_per_task or 1
    tasks, plain, epochs = images(sequence, seed, folder, "adam:0.001")
    data = TaskSequence(
        [{"train": loader.dataset, "test": ImageTask(x, y)} for loader, x, y in tasks],
        epochs_per_task=epochs,
        batch_size=int(tasks[0][0].batch_size or 1),
        collate_fn=as_is,
    )
    return Validated(plain.net, plain.optimizer, plain.groups), data, epochs


def rule(sequence: str, strength: float | None = None) -> EWC:
    given = {} if strength is None else {"strength": strength}
    return EWC(estimator="sampled", samples=200, **given) if sequence in TEXTS else EWC(**given)


def measure(sequence: str, seed: int, folder: Path | None) -> dict[str, Any]:
    model, data, epochs = prepared(sequence, seed, folder)
    trainer = Trainer(
        max_epochs=epochs * len(data),
        reload_dataloaders_every_n_epochs=1,
        callbacks=[EpochBoundaries(epochs)],
        **QUIET,
    )
    start = time.perf_counter()
    found = find_strength(trainer, model, data, rule(sequence), monitor="val_acc")
    seconds, own = time.perf_counter() - start, rule(sequence).strength
    scores = {
        strength: train(sequence, [rule(sequence, strength)], seed, folder).score
        for strength in (own * factor for factor in found.factors)
    }
    suggested = found.strengths[0]
    return {
        "sequence": sequence,
        "seed": seed,
        "suggested": suggested,
        "score": scores[min(scores, key=lambda strength: abs(strength - suggested))],
        "best": max(scores.values()),
        "scores": scores,
        "two tasks": list(zip(found.factors, found.old, found.new, strict=True)),
        "cost": 1 + len(found.factors),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sequences", nargs="+", default=["perm-digits", "split-digits"])
    parser.add_argument("--data-dir", type=Path, help="folder with a folder for each data set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--json", type=Path, required=True, help="one line for each sequence and seed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for sequence in args.sequences:
        for seed in args.seeds:
            result = measure(sequence, seed, args.data_dir)
            with args.json.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(
                sequence,
                seed,
                *(f"{key}={result[key]:.4g}" for key in ("suggested", "score", "best", "cost")),
            )


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    main()
