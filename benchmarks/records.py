"""Trainings whose scores are kept in a file, one line of JSON for each, and their table."""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import datasets
import torch
from lightning.pytorch import Callback, seed_everything

Scores = dict[str, float]


def train_and_show(
    description: str | None, methods: Mapping[str, Sequence[str]], train: Callable[..., Scores]
) -> None:
    """Reads the command line, trains what is not in the file yet, and prints the table.

    Args:
        description: of the script.
        methods: those of each table, by its name.
        train: ``train(table, method, seed, args)`` returns the scores of one training.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=methods)
    parser.add_argument("--data-dir", type=Path, help="folder with a folder for each data set")
    parser.add_argument("--out", type=Path, required=True, help="one line of JSON for each training")
    parser.add_argument("--methods", nargs="+", help="default: those of the tables in docs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--precision", default="32-true", help="of the Trainer, for texts")
    parser.add_argument("--show", action="store_true", help="train nothing")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    for seed in [] if args.show else args.seeds:
        for method in args.methods or methods[args.table]:
            if (method, seed) in load(args.out, args.table):
                continue
            start = time.perf_counter()
            seed_everything(seed, verbose=False)
            scores = train(args.table, method, seed, args)
            line = {"table": args.table, "method": method, "seed": seed, "scores": scores}
            line["seconds"] = round(time.perf_counter() - start, 1)
            with args.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
    show(load(args.out, args.table), args.seeds, args.methods)


def callbacks_of(method: str, names: Mapping[str, object]) -> tuple[list[Callback], dict[str, float]]:
    """What a method says: callbacks as one would write them, and after ``@`` options of the training.

    Example:
        >>> callbacks_of("none @ lr=0.1", {})
        ([], {'lr': 0.1})
    """
    rules, _, found = method.partition(" @ ")
    options = {key: float(value) for key, value in (pair.split("=") for pair in found.split())}
    return ([] if rules == "none" else list(eval(f"[{rules}]", dict(names)))), options


def load(path: Path, table: str) -> dict[tuple[str, int], Scores]:
    """Scores in a file, by method and seed."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(line["method"], line["seed"]): line["scores"] for line in lines if line["table"] == table}


def show(known: dict[tuple[str, int], Scores], seeds: list[int], methods: list[str] | None) -> None:
    """Prints the means over seeds."""
    columns = dict.fromkeys(column for scores in known.values() for column in scores)
    print(f"| method | {' | '.join(columns)} | seeds |\n|---|{'---|' * (len(columns) + 1)}")
    for method in methods or dict.fromkeys(method for method, _ in known):
        found = [known[method, seed] for seed in seeds if (method, seed) in known]
        means = [statistics.mean(s.get(c, float("nan")) for s in found) for c in columns] if found else []
        if found:
            print(f"| `{method}` | {' | '.join(f'{mean:.3f}' for mean in means)} | {len(found)} |")
