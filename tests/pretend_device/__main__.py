"""Writes docs/waits.md from what is counted: `python -m tests.pretend_device`."""

from __future__ import annotations

import logging
from pathlib import Path

from tests.compatibility import classes, rows
from tests.every_rule import RULES
from tests.pretend_device import counts, device

PAGE = Path(__file__).parents[2] / "docs" / "waits.md"

INTRODUCTION = """\
# How often the host waits for the device

Written by `python -m tests.pretend_device`, which counts on a device that stands in for a GPU; do not edit.
`tests/pretend_device/test_waits.py` counts again.

A training is fast on a GPU as long as the host runs ahead of it. Whatever needs a number from the device (a
`loss.item()`, a condition on a tensor, a copy to memory that is not pinned) makes the host wait until the
device has done all that was asked of it. These are such waits per batch in steps that do not log, beyond
those of the same training without a callback.
"""


def number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def of_rules() -> str:
    columns = [
        "a step",
        "two batches a step",
        "16-mixed",
        "state on the CPU",
        "two processes",
        "end of a task",
    ]
    table = []
    for name, variants in classes(RULES).items():
        measured = [counts.beyond_none(rule) for rule in variants]
        table.append([f"`{name}`", *(number(max(m[column] for m in measured)) for column in columns)])
    return rows(["", *columns], *table)


def page() -> str:
    others = [[f"`{name}`", number(counts.of_other(name))] for name in counts.OTHERS]
    return f"""{INTRODUCTION}
## Rules

The last column is per batch that importance is measured on, once a task.

{of_rules()}

`StreamingConsolidation` reads the unit of its importance: in the first ten steps nearly always, then once in
a tenth more steps, later once in 1000. `DarkExperienceReplay` waits in a step after one whose samples enter
its memory, ever more rarely, for outputs that were copied since. `ExperienceReplay` does so if batches come
from the loader on the device, or where hooks of one's own transfer them. Rules that read the learning rate
wait for one that is a tensor on the device.

## Boundaries and what looks on

{rows(["", "a batch"], *others)}

`DriftBoundaries` and `PlateauBoundaries` wait once in `check_every_n_batches` (5), with `hard_samples` more
often then. `BatchBoundaries` waits once in a batch that comes from the loader on the device, or where the
module or the data module has a `transfer_batch_to_device` or `on_after_batch_transfer` of its own.
"""


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    device.load()
    PAGE.write_text(page())
