"""Writes docs/odd_inputs.md from the declared outcomes: `python -m tests.odd`."""

from __future__ import annotations

from pathlib import Path

from tests.compatibility import classes, rows
from tests.every_rule import RULES
from tests.odd.table import ROWS, said

PAGE = Path(__file__).parents[2] / "docs" / "odd_inputs.md"

INTRODUCTION = """\
# Unusual batches and parameters

Written by `python -m tests.odd` from the outcomes that `tests/odd/` declares; do not edit.
`tests/test_odd.py` runs every cell in a real Trainer.

- **equals rows**: the importance is that of a loop over the rows of `outputs()`, one backward each. Where the
  layer is an unusual one too (pruned, a weight norm, a hook), that of `EWC` is compared.
- **works**: two tasks are learned, weights and state stay finite, and the rule has changed the training.
- **refused**: before the first step, with a sentence that says what to do. A parameter is named, and with
  `exclude=` the rest is trained as usual; of a batch, single samples cannot be remembered.
"""


def page() -> str:
    columns = classes(RULES)
    parts = [INTRODUCTION]
    for title, batch in (("Batches", True), ("Parameters", False)):
        table = [
            [row.title, *(said(row, variants[0]) for variants in columns.values())]
            for row in ROWS
            if row.batch is batch
        ]
        parts.append(f"## {title}\n\n{rows(['', *(f'`{name}`' for name in columns)], *table)}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
