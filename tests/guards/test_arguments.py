"""Arguments that are not what they should be, of every public class."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from lightning.pytorch import Callback

import cl_callbacks
from cl_callbacks.drift import CUSUM, Plateau
from cl_callbacks.guards.signatures import arguments_of

NEEDED: dict[str, Any] = {
    "strength": 1.0, "every_n_epochs": 3, "key": "domain", "memory_steps": 100.0, "monitor": "val_acc",
    "mode": "max", "tolerance": 0.1,
}  # fmt: skip


def is_number(parameter: inspect.Parameter) -> bool:
    """Whether an argument is declared as a number, perhaps or ``None``, or as a decay."""
    parts = {part.strip() for part in str(parameter.annotation).split("|")}
    return "str" not in parts and bool(parts & {"int", "float", "Decay"})


def public() -> list[type]:
    found = [getattr(cl_callbacks, name) for name in cl_callbacks.__all__]
    callbacks = [kind for kind in found if isinstance(kind, type) and issubclass(kind, Callback)]
    return [*(kind for kind in callbacks if not inspect.isabstract(kind)), CUSUM, Plateau]


CASES = [
    (kind, name)
    for kind in public()
    for name, parameter in arguments_of(kind).items()
    if is_number(parameter)
]


@pytest.mark.parametrize("wrong", ["70", [1.0], True], ids=repr)
@pytest.mark.parametrize(("kind", "name"), CASES, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_what_is_no_number_is_refused_by_name(kind: type, name: str, wrong: Any) -> None:
    names = arguments_of(kind)
    needed = {key: value for key, value in NEEDED.items() if key in names}
    with pytest.raises((ValueError, TypeError), match=name):
        kind(**needed | {name: wrong})


def test_there_are_many_of_them() -> None:
    assert len(CASES) > 60
    assert (cl_callbacks.EWC, "strength") in CASES
