"""Do the default strengths hold on data that nobody tuned for? Sequences times rules times strengths.

    python benchmarks/strengths.py run --data-dir DIR --json FILE --sequences perm-digits split-mnist
    python benchmarks/strengths.py run --data-dir DIR --json FILE --rules ewc si --strengths default raw grid
    python benchmarks/strengths.py table --json FILE   # none, default, tuned and raw, as a markdown table
    python benchmarks/strengths.py flat --json FILE    # strengths within 0.02 of the best

DIR has a folder ``mnist``, ``fashion``, ``clinc150`` or ``text5`` with parquet files; without it the images
come from the hub. ``run`` adds one line of JSON for each training to FILE, and leaves out those that are in
there, so it may be stopped at any time. The ``grid`` is eight strengths around the default in the unit of the
mean, ``rawgrid`` the same around README's former strength in the papers' units; both are run on seed 10 and
serve for choosing. What is reported are the means over seeds 0, 1 and 2 of no rule, of the defaults, of the
best of the grid (``tuned``) and of README's former strengths (``raw``). The sequences are described in
benchmarks/sequences.py.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import statistics
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

sys.path.insert(0, str(Path(__file__).parent))
from sequences import IMAGES, TEXTS, train

from cl_callbacks import (
    BGD,
    EWC,
    MAS,
    MESU,
    KFACLaplace,
    RWalk,
    StreamingConsolidation,
    SynapticIntelligence,
)

RULES: dict[str, Callable[..., Callback]] = {
    "ewc": EWC,
    "sampled": lambda *a, **k: EWC(*a, estimator="sampled", samples=200, **k),
    "empirical": lambda *a, **k: EWC(*a, estimator="empirical", **k),
    "reversal": lambda *a, **k: EWC(*a, estimator="logits_reversal", **k),
    "si": SynapticIntelligence,
    "mas": MAS,
    "rwalk": RWalk,
    "kfac": KFACLaplace,
    "streaming": StreamingConsolidation,
    "mesu": MESU,
    "bgd": BGD,
}
# What README suggested in the papers' units, and for fine-tuning.
FORMER = {
    "ewc": 70.0,
    "sampled": 70.0,
    "si": 2.0,
    "mas": 0.005,
    "rwalk": 1.0,
    "kfac": 30.0,
    "streaming": 0.05,
}
FORMER_FOR_TEXTS = FORMER | {"ewc": 10_000.0, "sampled": 10_000.0, "si": 1000.0}
FACTORS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
TUNING_SEEDS = (10,)
SEEDS = (0, 1, 2)
Case = tuple[str, str, str, float, int]  # sequence, rule, unit, strength, seed


def default_of(rule: str) -> float:
    return RULES[rule]().strength  # type: ignore[attr-defined]


def former_of(sequence: str, rule: str) -> float:
    return (FORMER_FOR_TEXTS if sequence in TEXTS else FORMER)[rule]


def rounded(value: float) -> float:
    return float(f"{value:.3g}")


def cases(args: argparse.Namespace, known: dict[Case, dict[str, Any]]) -> Iterator[Case]:
    for sequence in args.sequences:
        if "none" in args.strengths:
            yield from ((sequence, "none", "", 0.0, seed) for seed in args.seeds)
        for rule in args.rules:
            owner = rule in ("mesu", "bgd")
            for wanted in args.strengths:
                if wanted == "default":
                    strength = 0.0 if owner else default_of(rule)
                    yield from ((sequence, rule, "mean", strength, seed) for seed in args.seeds)
                elif owner:
                    continue
                elif wanted == "raw" and rule in FORMER:
                    yield from ((sequence, rule, "", former_of(sequence, rule), s) for s in args.seeds)
                elif wanted in ("grid", "rawgrid") and (wanted == "grid" or rule in FORMER):
                    middle = default_of(rule) if wanted == "grid" else former_of(sequence, rule)
                    unit = "mean" if wanted == "grid" else ""
                    grid = [rounded(middle * factor) for factor in FACTORS]
                    yield from ((sequence, rule, unit, s, seed) for s in grid for seed in TUNING_SEEDS)
                elif wanted == "tuned" and (found := tuned(known, sequence, rule)) is not None:
                    yield from ((sequence, rule, "mean", found, seed) for seed in args.seeds)


def tuned(known: dict[Case, dict[str, Any]], sequence: str, rule: str, unit: str = "mean") -> float | None:
    """The best strength on the seeds for choosing; ``None`` if there was no search."""
    scores = curve(known, sequence, rule, unit)
    return max(scores, key=scores.__getitem__) if len(scores) > 2 else None


def curve(known: dict[Case, dict[str, Any]], sequence: str, rule: str, unit: str) -> dict[float, float]:
    found = defaultdict(list)
    for (s, r, u, strength, seed), result in known.items():
        if (s, r, u) == (sequence, rule, unit) and seed in TUNING_SEEDS:
            found[strength].append(result["score"])
    return {strength: statistics.mean(scores) for strength, scores in sorted(found.items())}


def rule_of(rule: str, unit: str, strength: float) -> list[Callback]:
    if rule == "none":
        return []
    if rule in ("mesu", "bgd"):
        return [RULES[rule]()]
    return [RULES[rule](strength, normalize=unit or None)]


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    for case in cases(args, load(args.json)):
        if case in load(args.json):  # another process may have done it meanwhile
            continue
        sequence, rule, unit, strength, seed = case
        start = time.perf_counter()
        result = train(sequence, rule_of(rule, unit, strength), seed, args.data_dir)
        line = {"case": case, **result._asdict(), "seconds": round(time.perf_counter() - start, 1)}
        with args.json.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(*case, f"{result.score:.3f}", flush=True)


def load(path: Path) -> dict[Case, dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines]
    return {tuple(line["case"]): line for line in found}


def mean_of(known: dict[Case, dict[str, Any]], sequence: str, rule: str, unit: str, strength: float) -> str:
    scores = [known[key]["score"] for s in SEEDS if (key := (sequence, rule, unit, strength, s)) in known]
    return f"{statistics.mean(scores):.3f}" + ("" if len(scores) == len(SEEDS) else "*") if scores else "–"


def table(args: argparse.Namespace) -> None:
    known = load(args.json)
    print("| sequence | rule | none | default | tuned | at | former strength, papers' units |")
    print("|---|---|---|---|---|---|---|")
    pairs = dict.fromkeys((sequence, rule) for sequence, rule, *_ in known if rule != "none")
    for sequence, rule in pairs:
        owner = rule in ("mesu", "bgd")
        default = 0.0 if owner else default_of(rule)
        best = None if owner else tuned(known, sequence, rule)
        former = former_of(sequence, rule) if rule in FORMER else math.nan
        cells = [
            mean_of(known, sequence, "none", "", 0.0),
            mean_of(known, sequence, rule, "mean", default),
            "–" if best is None else mean_of(known, sequence, rule, "mean", best),
            "–" if best is None else f"{best:g}",
            mean_of(known, sequence, rule, "", former),
        ]
        print(f"| {sequence} | {rule} | {' | '.join(cells)} |")


def flat(args: argparse.Namespace) -> None:
    known = load(args.json)
    print("| sequence | rule | unit | best | strengths within 0.02 of it |\n|---|---|---|---|---|")
    for sequence, rule, unit in dict.fromkeys(case[:3] for case in known if case[1] != "none"):
        scores = curve(known, sequence, rule, unit)
        if len(scores) > 2:
            best = max(scores.values())
            close = [strength for strength, score in scores.items() if score >= best - 0.02]
            names = f"| {sequence} | {rule} | {unit or 'raw'} | {best:.3f}"
            print(f"{names} | {min(close):g} to {max(close):g} |")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("run", "table", "flat"))
    parser.add_argument("--json", type=Path, required=True, help="one line for each training")
    parser.add_argument("--data-dir", type=Path, help="folder with a folder for each data set")
    parser.add_argument("--sequences", nargs="+", default=IMAGES)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=["ewc", "si", "mas", "rwalk", "kfac"])
    parser.add_argument("--strengths", nargs="+", default=["none", "default", "raw"])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    return parser.parse_args()


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    arguments = parse()
    {"run": run, "table": table, "flat": flat}[arguments.what](arguments)
