"""What loggers are told of how everything is set."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from lightning.pytorch import Callback

import cl_callbacks
from cl_callbacks.drift import CUSUM
from cl_callbacks.training.log import configuration

CALLBACKS = [
    getattr(cl_callbacks, name)
    for name in cl_callbacks.__all__
    if inspect.isclass(getattr(cl_callbacks, name)) and issubclass(getattr(cl_callbacks, name), Callback)
]
NEEDED: dict[str, Any] = {
    "strength": 1.0, "memory_steps": 100.0, "every_n_epochs": 2, "key": "domain", "monitor": "val_acc",
    "mode": "max", "tolerance": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("kind", CALLBACKS, ids=lambda kind: kind.__name__)
def test_every_argument_is_told(kind: Any) -> None:
    arguments = inspect.signature(kind).parameters
    needed = {name: p for name, p in arguments.items() if p.default is p.empty and name != "self"}
    made = kind(**{name: NEEDED[name] for name in needed})
    assert configuration(made).keys() == {"class", *arguments} - {"self"}


def test_of_what_is_made_of_parts_the_parts_are_told() -> None:
    found = configuration(cl_callbacks.DriftBoundaries(CUSUM(threshold=9.0)))
    assert found["detector"] == {"class": "CUSUM", "threshold": 9.0, "allowance": CUSUM().allowance}
