"""Draws what benchmarks/plasticity.py has found.

    python benchmarks/plasticity_pictures.py found.jsonl --probe docs/plasticity_probe.png
    python benchmarks/plasticity_pictures.py found.jsonl --permuted docs/plasticity_permuted.png

``--probe``: what costs plasticity, by rule, as bars. ``--permuted``: how well tasks are learned against how
well they are remembered, a mark for each training.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).parent))
from records import Scores, load

PARTS = {"rigidity": "#c44e52", "optimizer": "#dd8452", "representation": "#4c72b0"}


def by_method(path: Path, table: str) -> dict[str, list[Scores]]:
    """Scores of all seeds up to 9; the later ones served to choose."""
    found: dict[str, list[Scores]] = {}
    for (method, seed), scores in load(path, table).items():
        if seed < 10:
            found.setdefault(method, []).append(scores)
    return found


def shown(method: str) -> str:
    """A method as in the tables: without what all of them share."""
    return {"none": "Adam", "none @ sgd=1 lr=0.1": "SGD"}.get(method, method)


def draw_probe(found: dict[str, list[Scores]], file: Path) -> None:
    figure, axis = plt.subplots(figsize=(7, 0.55 * len(found) + 1.2))
    height = 0.8 / len(PARTS)
    for k, (part, colour) in enumerate(PARTS.items()):
        places = [row + k * height for row in range(len(found))]
        values = [[scores[part] for scores in rows] for rows in found.values()]
        axis.barh(places, [statistics.mean(v) for v in values], height, color=colour, label=part)
        for place, each in zip(places, values, strict=True):
            axis.plot(each, [place] * len(each), "k.", markersize=3)
    axis.set_yticks([row + height for row in range(len(found))], [shown(method) for method in found])
    axis.set_xscale("symlog", linthresh=1.0)
    axis.set_xticks([-1, -0.5, 0, 0.5, 1, 2, 4], ["−1", "−0.5", "0", "0.5", "1", "2", "4"])
    axis.invert_yaxis()
    axis.axvline(0, color="k", linewidth=0.8)
    axis.set_xlabel("what it adds to the loss on a fresh task (nats); below 0: it helps")
    axis.legend(frameon=False)
    save(figure, file)


def draw_permuted(found: dict[str, list[Scores]], file: Path) -> None:
    figure, axis = plt.subplots(figsize=(7, 4))
    for method, rows in found.items():
        x, y = [row["backward"] for row in rows], [row["online"] for row in rows]
        axis.plot(x, y, "o", markersize=5, label=shown(method))
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.18), fontsize=8)
    axis.set_xlabel("accuracy on old tasks at the end, minus that when just learned")
    axis.set_ylabel("accuracy before each step")
    save(figure, file)


def save(figure: plt.Figure, file: Path) -> None:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150, bbox_inches="tight", facecolor="white")
    print(f"wrote {file}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("found", type=Path, help="what benchmarks/plasticity.py wrote with --out")
    parser.add_argument("--probe", type=Path)
    parser.add_argument("--permuted", type=Path)
    args = parser.parse_args()
    if args.probe:
        draw_probe(by_method(args.found, "probe"), args.probe)
    if args.permuted:
        draw_permuted(by_method(args.found, "permuted"), args.permuted)


if __name__ == "__main__":
    main()
