"""Arguments that are not what they should be, of every public class."""

from __future__ import annotations

import inspect
import typing
from typing import Any

import pytest

import cl_callbacks
from cl_callbacks.guards.signatures import arguments_of

NEEDED: dict[str, Any] = {"strength": 1.0, "every_n_epochs": 3, "key": "domain", "memory_steps": 100.0}
SEVERAL = {"factors", "degrees", "order", "samples", "label_groups", "num_labels"}


def numeric(kind: type, name: str, parameter: inspect.Parameter) -> bool:
    """Whether an argument is declared as a number, or as one or ``None``."""
    text = str(parameter.annotation)
    if "str" in text:  # a key, or a mode besides the number
        return "Decay" in text
    parts = {part.strip() for part in text.split("|")}
    return bool(parts & {"int", "float", "<class 'int'>", "<class 'float'>", "Decay"}) or text in ("Decay",)


def public() -> list[type]:
    found = [getattr(cl_callbacks, name) for name in cl_callbacks.__all__]
    callbacks = [kind for kind in found if isinstance(kind, type) and hasattr(kind, "on_train_start")]
    from cl_callbacks.drift import CUSUM, Plateau

    kinds = [*callbacks, CUSUM, Plateau]
    return [kind for kind in kinds if not inspect.isabstract(kind) and not hasattr(kind, "training_step")]


CASES = [
    (kind, name)
    for kind in public()
    for name, parameter in arguments_of(kind).items()
    if numeric(kind, name, parameter)
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
    assert typing.get_args(cl_callbacks.rules.rule_options.Decay)
