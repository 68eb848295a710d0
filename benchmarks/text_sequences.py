"""Sequences of texts, for benchmarks/sequences.py: reduced forms of the examples."""

from __future__ import annotations

import math
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict, load_dataset
from lightning.pytorch import Callback, Trainer

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from finetune_causal_lm import from_scratch, sources_of
from finetune_text import default_model
from sequences import QUIET, Result

from cl_callbacks import EpochBoundaries, SeedEpochs, SequentialFineTuner, TaskEvaluation, TextTasks

TEXT5 = ["ag_news", "amazon5", "dbpedia14", "yahoo10", "yelp5"]
DOMAINS = ["amazon5", "dbpedia14"]


def train_on_texts(name: str, callbacks: Sequence[Callback], seed: int, folder: Path | None) -> Result:
    """Fine-tunes MiniLM with frozen embeddings, or trains a language model, on one task after the other."""
    if folder is None:
        raise ValueError(f"{name} reads parquet files from --data-dir")
    if name == "lm":
        final = language_model(callbacks, seed, folder)[-1]
        return Result(-math.exp(sum(map(math.log, final)) / len(final)), math.nan)
    data = domains(seed, folder) if name.startswith("clinc") else _text5(seed, folder)
    rank = 8 if name == "clinclora" else 0
    model = SequentialFineTuner(default_model(), lr=3e-4, freeze=["embeddings"], lora_rank=rank)
    epochs = data.epochs_per_task or 1
    trainer = Trainer(
        max_epochs=epochs * len(data),
        limit_val_batches=0,
        callbacks=[*callbacks, EpochBoundaries(epochs), SeedEpochs(seed)],
        reload_dataloaders_every_n_epochs=1,
        **QUIET,
    )
    trainer.fit(model, data)
    scoring = Trainer(**QUIET)
    scoring.validate(model, data, verbose=False)  # after the last task has ended
    final = [scoring.callback_metrics[f"val_acc/dataloader_idx_{k}"].item() for k in range(len(data))]
    return Result(sum(final) / len(final), math.nan)


def domains(seed: int, folder: Path, tasks: int = 5, epochs: int = 2) -> TextTasks:
    """Some of CLINC150's ten domains, in another order for each seed, with 20 texts for each intent."""
    return TextTasks(
        str(folder / "clinc150"),
        tokenizer=default_model(),
        task_column="domain",
        task_order=np.random.default_rng(seed).permutation(10)[:tasks].tolist(),
        label_column="intent",
        scenario="task",
        splits={"train": "train", "validation": "validation", "test": "test"},
        examples_per_label=20,
        max_length=64,
        epochs_per_task=epochs,
        batch_size=16,
        eval_batch_size=32,
        seed=seed,
        shuffle_seed=seed,
    )


def _text5(seed: int, folder: Path) -> TextTasks:
    """The five sets in another order for each seed, 400 texts of each to train on and 320 to look at."""
    draw, sets = np.random.default_rng(seed), []
    for name in draw.permutation(TEXT5):
        found = load_dataset(
            "parquet",
            data_files={s: str(folder / "text5" / name / f"{s}.parquet") for s in ("train", "test")},
        )
        rows = {split: draw.permutation(len(found[split])) for split in ("train", "test")}
        some: dict[str, Any] = {
            "train": found["train"].select(rows["train"][:400]),
            "validation": found["test"].select(rows["test"][:320]),
        }
        sets.append(DatasetDict(some).select_columns(["text", "label"]))
    return TextTasks(
        sets,
        tokenizer=default_model(),
        label_column="label",
        scenario="task",
        max_length=64,
        epochs_per_task=2,
        batch_size=8,
        eval_batch_size=32,
        seed=seed,
        shuffle_seed=seed,
    )


def language_model(callbacks: Sequence[Callback], seed: int, folder: Path) -> list[list[float]]:
    """Perplexities of both domains, after each of them, of the language model of the example.

    It begins with random weights; the validation texts are held-out ones.
    """
    with tempfile.TemporaryDirectory() as out:
        setting = Namespace(
            out=Path(out),
            seed=seed,
            domains=DOMAINS,
            data_dir=folder / "text5",
            split="validation",
            vocabulary=2000,
            max_length=64,
            width=128,
            layers=2,
        )
        name = from_scratch(setting)
        data = TextTasks(
            sources_of(setting),
            tokenizer=name,
            kind="causal_lm",
            scenario="domain",
            max_length=64,
            epochs_per_task=1,
            batch_size=8,
            eval_batch_size=32,
            seed=seed,
        )
        model = SequentialFineTuner(name, kind="causal_lm", lr=3e-3, warmup_steps=20)
        evaluation = TaskEvaluation("val_perplexity", mode="min", names=DOMAINS, untrained=False)
        trainer = Trainer(
            max_epochs=len(data),
            limit_train_batches=300,
            limit_val_batches=8,
            callbacks=[*callbacks, EpochBoundaries(1), evaluation],
            reload_dataloaders_every_n_epochs=1,
            **QUIET,
        )
        trainer.fit(model, data)
    return evaluation.record.table()[1:]  # the first row is of the network before any training
