"""Choices of rules and boundaries, measured on the ten permutations of examples/digits.py.

    python benchmarks/choices.py strengths    # every method at each strength of its grid
    python benchmarks/choices.py anchors      # one anchor per task, or the latest; at each strength
    python benchmarks/choices.py estimators   # which Fisher; at each strength
    python benchmarks/choices.py optimizer    # one fit per task, with the optimizer reset or carried
    python benchmarks/choices.py streaming    # which running importance, and over which windows
    python benchmarks/choices.py strengths --data mnist --data-dir DIR --seeds 10

Prints the average accuracy over all tasks after the last, mean and standard deviation over seeds. The
default seeds are not those that the README quotes. Strengths are in the papers' units (``normalize=None``);
benchmarks/strengths.py measures those in units of the mean.
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
from typing import NamedTuple

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from digits import METHODS, SETTINGS, Classifier, average_accuracy, callbacks, task_sequence

from cl_callbacks import EWC, EpochBoundaries, FitBoundaries, StreamingConsolidation
from cl_callbacks.functional.fisher import ESTIMATORS

STRENGTHS = (10.0, 30.0, 50.0, 70.0, 100.0, 300.0, 1000.0)
GRIDS = {
    "digits": {
        "ewc": (30.0, 70.0, 150.0),
        "si": (1.0, 2.0, 3.0, 5.0, 10.0),
        "mas": (0.001, 0.003, 0.005, 0.01, 0.1),
        "rwalk": (0.3, 1.0, 3.0, 10.0),
        "kfac": (3.0, 10.0, 30.0, 100.0),
        "streaming": (0.02, 0.05, 0.1, 0.2),
        "mesu": (3e4, 1e5, 3e5),
        "bgd": (0.1, 0.2, 0.3),
        "metaplastic": (1.35, 10.0, 20.0, 30.0),
        "benna_fusi": (0.003, 0.01, 0.03),
    },
    "mnist": {
        "ewc": (10.0, 30.0, 50.0, 100.0),
        "si": (3.0, 10.0, 30.0),
        "mas": (0.003, 0.01, 0.03),
        "rwalk": (0.1, 0.3, 1.0),
        "kfac": (3.0, 10.0, 30.0),
        "streaming": (0.02, 0.1, 0.2, 0.5),
        "mesu": (3e3, 1e4, 3e4),
        "bgd": (0.05, 0.1, 0.2),
        "metaplastic": (10.0, 20.0, 40.0),
        "benna_fusi": (0.003, 0.01, 0.03),
    },
}


class Case(NamedTuple):
    data: str
    folder: Path | None
    methods: list[str]
    seed: int


def train(rules: list[Callback], boundaries: Callback, case: Case, tasks: int = 10) -> float:
    setting = SETTINGS[case.data]
    seed_everything(case.seed, verbose=False)
    data = task_sequence(case.data, case.folder, tasks, case.seed)
    one_fit = isinstance(boundaries, EpochBoundaries)
    trainer = Trainer(
        max_epochs=setting.epochs * (tasks if one_fit else 1),
        reload_dataloaders_every_n_epochs=int(one_fit),
        check_val_every_n_epoch=setting.epochs,
        num_sanity_val_steps=0,
        callbacks=[*rules, boundaries],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    model = Classifier(setting.pixels, setting.hidden)
    trainer.fit(model, data)
    for _ in range(0 if one_fit else tasks - 1):
        trainer.fit_loop.max_epochs += setting.epochs
        trainer.fit(model, data)
    trainer.validate(model, data, verbose=False)  # the end of the last task may have changed weights
    return average_accuracy(trainer)


def train_at_once(rules: list[Callback], case: Case) -> float:
    return train(rules, EpochBoundaries(SETTINGS[case.data].epochs), case)


def strengths(case: Case) -> Iterator[tuple[str, float]]:
    if "none" in case.methods:
        yield "none", train_at_once([], case)
    # The strength of a metaplastic rule is another quantity for each: see METHODS.
    for method, grid in GRIDS[case.data].items():
        for strength in grid if method in case.methods else ():
            # In the papers' units; the strengths in units of the mean are those of benchmarks/strengths.py.
            raw = {"normalize": None} if METHODS[method][1] == "strength" else {}
            yield (
                f"{method:10} strength={strength:6g}",
                train_at_once(callbacks(method, strength, **raw), case),
            )


def anchors(case: Case) -> Iterator[tuple[str, float]]:
    for kind in ("latest", "each"):
        for strength in STRENGTHS:
            rules = [EWC(strength, anchors=kind, normalize=None)]
            yield f"anchors={kind:7} strength={strength:6g}", train_at_once(rules, case)


def estimators(case: Case) -> Iterator[tuple[str, float]]:
    for kind in ESTIMATORS:
        for strength in STRENGTHS:
            rules = [EWC(strength, estimator=kind, normalize=None)]
            yield f"{kind:15} strength={strength:6g}", train_at_once(rules, case)


def optimizer(case: Case) -> Iterator[tuple[str, float]]:
    for name, make in {"none": list, "ewc": lambda: [EWC(70.0, normalize=None)]}.items():
        for carry in (False, True):
            yield (
                f"{name:5} one fit per task, carry_optimizer={carry}",
                train(make(), FitBoundaries(carry_optimizer=carry), case),
            )
        yield f"{name:5} one fit over all tasks", train_at_once(make(), case)


def streaming(case: Case) -> Iterator[tuple[str, float]]:
    grids = {"fisher": (100.0, 300.0, 1000.0), "sensitivity": (1.0, 3.0, 10.0), "path": (0.02, 0.05, 0.1)}
    for importance, grid in grids.items():
        for importance_decay in (1.0, 0.999):
            for anchor_decay in (0.99, 0.995, 0.998):
                for strength in grid:
                    rule = StreamingConsolidation(
                        strength,
                        measure=importance,
                        importance_decay=importance_decay,
                        anchor_decay=anchor_decay,
                        normalize=None,
                    )
                    settings = f"decays={importance_decay:g}, {anchor_decay:g} strength={strength:g}"
                    yield f"{importance:11} {settings}", train_at_once([rule], case)


STUDIES = {study.__name__: study for study in (strengths, anchors, estimators, optimizer, streaming)}


def measure(study: str, case: Case) -> list[tuple[str, float]]:
    """One seed of a study, in a process of its own."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    return list(STUDIES[study](case))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--data", choices=SETTINGS, default="digits")
    parser.add_argument("--data-dir", type=Path, help="folder with train.parquet and test.parquet")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="of strengths")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10, 20)))
    parser.add_argument("--jobs", type=int, default=2, help="seeds measured at a time, a core each")
    args = parser.parse_args()
    found: dict[str, list[float]] = {}
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as processes:
        cases = [Case(args.data, args.data_dir, args.methods, seed) for seed in args.seeds]
        for settings in processes.map(partial(measure, args.study), cases):
            for setting, accuracy in settings:
                found.setdefault(setting, []).append(accuracy)
    for setting, values in found.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{setting}: {statistics.mean(values):.3f} ± {spread:.3f}  ({len(values)} seeds)")


if __name__ == "__main__":
    main()
