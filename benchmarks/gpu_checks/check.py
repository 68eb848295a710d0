"""A check, what came of it, and the ways in which it ends."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpu_checks.place import Place


@dataclass(frozen=True)
class Check:
    """A function that raises, or says what it has seen. Its docstring says what it must show."""

    run: Callable[[Place], str]
    seconds: float
    """Its share of the time, on an H200."""

    @property
    def name(self) -> str:
        return self.run.__name__

    @property
    def shows(self) -> str:
        return " ".join((self.run.__doc__ or "").split())


@dataclass(frozen=True)
class Result:
    name: str
    outcome: Literal["PASS", "FAIL", "SKIP"]
    seen: str
    seconds: float = 0.0


class Skip(Exception):
    """This check says nothing here, and why."""


def needs_cuda(place: Place) -> None:
    if place.device != "cuda":
        raise Skip("needs CUDA")


def each(rules: Mapping[str, Callable[..., Any]], check: Callable[[str, Any], float | None]) -> str:
    """Checks every rule, and then raises for all that were wrong at once.

    Args:
        rules: functions that make a rule, by name.
        check: function of the name and of the function that makes the rule; returns a difference.
    """
    wrong, largest = [], 0.0
    for name, make in rules.items():
        try:
            largest = max(largest, check(name, make) or 0.0)
        except Skip:
            raise
        except Exception as error:
            wrong.append(f"{name}: {described(error)}")
    if wrong:
        raise AssertionError("; ".join(wrong))
    return f"{len(rules)} rules, largest difference {largest:.1e}"


def described(error: BaseException) -> str:
    """An error in one line: its kind, the first line of its message, and where it was raised."""
    message = str(error).partition("\n")[0][:200]
    frames = traceback.extract_tb(error.__traceback__)[-2:]
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    return f"{type(error).__name__}: {message} ({places})"
