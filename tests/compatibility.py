"""Writes docs/compatibility.md from the declared outcomes: `python -m tests.compatibility`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tests.every_rule import (
    DISTILLING,
    OWNING,
    PULLING,
    RECYCLING,
    REHEARSING,
    REWRITING,
    RULES,
    VARIANTS,
    make,
)
from tests.settings import SETTINGS
from tests.settings.outcomes import Differs, Exact, Idle, Outcome, Refused, Setting, Within

PAGE = Path(__file__).parent.parent / "docs" / "compatibility.md"

INTRODUCTION = """\
# Which rule works under which setting

Written by `python -m tests.compatibility` from the outcomes that `tests/settings/` declares; do not edit.
`tests/test_settings.py` runs every cell: two tasks in one fit, once under the setting and once in a *twin*, a
training that should come to the same without it. The last table says what each twin is.

- **exact**: weights and the rule's whole state are those of the twin, bit for bit.
- **1e-9** and the like: the same but for rounding, relative to the largest entry of each tensor.
- **differs**: the rule works, and by its nature does something else than in the twin.
- **refused**: training does not go on; the error says what to do instead.

In every cell that is not refused the rule really does something: the weights differ from those of a training
without it. State is float32 or wider under all settings.
"""


def classes(rules: Iterable[str]) -> dict[str, list[str]]:
    """The rules of a table, by the name of their class."""
    found: dict[str, list[str]] = {}
    for rule in rules:
        found.setdefault(type(make(rule)).__name__, []).append(rule)
    return found


class Notes:
    """Reasons, numbered in the order in which they are first met."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def mark(self, reason: str) -> str:
        return f"<sup>{self.numbers.setdefault(reason, len(self.numbers) + 1)}</sup>"

    def __str__(self) -> str:
        return "\n".join(f"{number}. {reason}" for reason, number in self.numbers.items())


def said(outcome: Outcome, notes: Notes) -> str:
    match outcome:
        case Exact():
            return "exact"
        case Within(tolerance, reason):
            return f"{tolerance:.0e}".replace("e-0", "e-") + notes.mark(reason)
        case Differs(reason):
            return "differs" + notes.mark(reason)
        case Refused(_, reason):
            return "refused" + notes.mark(reason)
        case Idle(_, reason):
            return "warns" + notes.mark(reason)


def cell(setting: Setting, variants: list[str], notes: Notes) -> str:
    """The outcome of a class: that of its plain form, and of other forms where it is another."""
    usual = said(setting.outcome_of(variants[0]), notes)
    others = {rule: said(setting.outcome_of(rule), notes) for rule in variants[1:]}
    return "<br>".join(
        [usual, *(f"{other} ({VARIANTS[rule]})" for rule, other in others.items() if other != usual)]
    )


def rows(*lines: Iterable[str]) -> str:
    head, *body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([head, "|---" * (head.count(" | ") + 1) + "|", *body])


def page() -> str:
    notes = Notes()
    parts = [INTRODUCTION]
    for title, kind in {
        "Rules that pull": PULLING,
        "Rules that change the update": {**REWRITING, **OWNING},
        "Rules that rehearse": REHEARSING,
        "Rules that distil": DISTILLING,
        "Rules that replace units": RECYCLING,
    }.items():
        columns = classes(kind)
        table = [[s.title, *(cell(s, variants, notes) for variants in columns.values())] for s in SETTINGS]
        parts.append(f"## {title}\n\n{rows(['', *(f'`{name}`' for name in columns)], *table)}\n")
    parts.append(f"Notes:\n\n{notes}\n")
    tried = "\n".join(
        f"- `{name}`: {'; '.join(VARIANTS[rule] for rule in variants)}"
        for name, variants in classes(RULES).items()
        if len(variants) > 1
    )
    parts.append(f"Some rules are run in several forms; one outcome is that of all:\n\n{tried}\n")
    twins = [[s.title, s.twin_is] for s in SETTINGS if s.twin is not None]
    parts.append(f"## What each setting is compared with\n\n{rows(['', 'twin'], *twins)}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
