"""Choices of EWC and of boundaries, measured on the ten permutations of examples/digits.py.

    python benchmarks/choices.py anchors      # one anchor per task, or the latest; at each strength
    python benchmarks/choices.py estimators   # which Fisher; at each strength
    python benchmarks/choices.py optimizer    # one fit per task, with the optimizer reset or carried

Prints the average accuracy over all tasks after the last, mean and standard deviation over seeds. The
default seeds are not those that the README quotes.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from digits import EPOCHS, AccuracyMatrix, Classifier

from cl_callbacks import EWC, EpochBoundaries, FitBoundaries, TaskSequence
from cl_callbacks.data import digits
from cl_callbacks.functional.fisher import ESTIMATORS

STRENGTHS = (10.0, 30.0, 50.0, 70.0, 100.0, 300.0, 1000.0)


def train(rules: list[Callback], boundaries: Callback, seed: int, tasks: int = 10) -> float:
    seed_everything(seed, verbose=False)
    data = TaskSequence.permuted(digits(), tasks=tasks, seed=seed, pad=4)
    one_fit = isinstance(boundaries, EpochBoundaries)
    matrix = AccuracyMatrix()
    trainer = Trainer(
        max_epochs=EPOCHS * tasks if one_fit else EPOCHS,
        reload_dataloaders_every_n_epochs=int(one_fit),
        check_val_every_n_epoch=EPOCHS,
        num_sanity_val_steps=0,
        callbacks=[*rules, boundaries, matrix],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    model = Classifier(16 * 16)
    trainer.fit(model, data)
    for _ in range(0 if one_fit else tasks - 1):
        trainer.fit_loop.max_epochs += EPOCHS
        trainer.fit(model, data)
    return statistics.mean(matrix.rows[-1])


def anchors(seed: int) -> Iterator[tuple[str, float]]:
    for kind in ("latest", "each"):
        for strength in STRENGTHS:
            rules = [EWC(strength, anchors=kind)]
            yield f"anchors={kind:7} strength={strength:6g}", train(rules, EpochBoundaries(EPOCHS), seed)


def estimators(seed: int) -> Iterator[tuple[str, float]]:
    for kind in ESTIMATORS:
        for strength in STRENGTHS:
            rules = [EWC(strength, estimator=kind)]
            yield f"{kind:15} strength={strength:6g}", train(rules, EpochBoundaries(EPOCHS), seed)


def optimizer(seed: int) -> Iterator[tuple[str, float]]:
    for name, make in {"none": list, "ewc": lambda: [EWC(70.0)]}.items():
        for carry in (False, True):
            yield (
                f"{name:5} one fit per task, carry_optimizer={carry}",
                train(make(), FitBoundaries(carry_optimizer=carry), seed),
            )
        yield f"{name:5} one fit over all tasks", train(make(), EpochBoundaries(EPOCHS), seed)


STUDIES = {study.__name__: study for study in (anchors, estimators, optimizer)}


def measure(study: str, seed: int) -> list[tuple[str, float]]:
    """One seed of a study, in a process of its own."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    return list(STUDIES[study](seed))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10, 20)))
    parser.add_argument("--jobs", type=int, default=2, help="seeds measured at a time, a core each")
    args = parser.parse_args()
    found: dict[str, list[float]] = {}
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as processes:
        for settings in processes.map(partial(measure, args.study), args.seeds):
            for setting, accuracy in settings:
                found.setdefault(setting, []).append(accuracy)
    for setting, values in found.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{setting}: {statistics.mean(values):.3f} ± {spread:.3f}  ({len(values)} seeds)")


if __name__ == "__main__":
    main()
