"""Calls of every public constructor with one argument that is wrong, and how many are refused by its name.

``python -m tests.guards.invalid_calls`` prints the count.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

import cl_callbacks
from cl_callbacks import drift
from cl_callbacks.guards.signatures import arguments_of

HUGE = 10**400
NUMBERS: list[Any] = [-1, 0, 1, 0.5, float("nan"), float("inf"), -float("inf"), HUGE]
WRONG: list[Any] = [
    *NUMBERS, "", "abc", "70", "False", b"x", True, None, 1j, [], (), {}, [None], [HUGE], [float("nan")],
    ["a", 1], [[]], {"a": None}, {1}, object(), object, len, torch.ones(2, 2), torch.tensor(float("nan")),
    torch.tensor(1j), np.float32("inf"), np.zeros((1, 1)), np.array([1j]), range(0), ...,
]  # fmt: skip

# Results, and what steps are made of, are not built by users.
RESULTS = {"Need", "Step", "SynapseView", "FoundStrength", "BoundaryScore"}

SIGNED = {"ignore_index", "class_dim", "degrees", "score", "reference", "alarms", "changes", "key", "groups"}
SIGNED |= {"level", "task_order", "label_groups"}
"""Arguments that may be below 0, or labels."""
ENDLESS = {"max_bytes", "recent_bytes", "memory_steps", "memory_epochs", "threshold"}
MAY_BE_EMPTY = {"exclude", "freeze", "alarms", "changes"}

NEEDED: dict[str, Any] = {
    "strength": 1.0, "every_n_epochs": 3, "key": "domain", "monitor": "val_acc", "mode": "max",
    "tolerance": 1, "memory": 10, "tokenizer": "none",
    "processor": "none", "model": "none", "reference": [1.0], "dataset": "digits", "alarms": [],
    "changes": [], "batches": [], "groups": [[0]], "degrees": [0.0],
    "features": 8, "num_labels": [2],
}  # fmt: skip


class Argument(NamedTuple):
    """One argument of a public constructor or function."""

    call: Callable[..., Any]
    name: str
    hint: Any

    def __repr__(self) -> str:
        return f"{self.call.__qualname__}({self.name})"


def public() -> list[Callable[..., Any]]:
    names = [(cl_callbacks, name) for name in cl_callbacks.__all__] + [(drift, n) for n in drift.__all__]
    tasks = cl_callbacks.TaskSequence
    more: list[Callable[..., Any]] = [tasks.permuted, tasks.rotated, tasks.split_by_label]
    found = [getattr(module, name) for module, name in names if name not in RESULTS]
    return [call for call in found if not inspect.isabstract(call)] + more


def parameters_of(call: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    found = arguments_of(call) if isinstance(call, type) else inspect.signature(call).parameters
    return {n: p for n, p in found.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


def hint_of(call: Callable[..., Any], name: str) -> Any:
    functions = [call]
    if isinstance(call, type):
        functions = [vars(kind)["__init__"] for kind in call.__mro__ if "__init__" in vars(kind)]
    for function in functions:
        hints = get_type_hints(inspect.unwrap(function))
        if name in hints and name in inspect.signature(function).parameters:
            return hints[name]
    return Any


def arguments() -> list[Argument]:
    """All that say what they take."""
    found = [Argument(call, name, hint_of(call, name)) for call in public() for name in parameters_of(call)]
    return [argument for argument in found if argument.hint is not Any]


def may_be(hint: Any, value: Any, name: str) -> bool:
    """Whether a value could be meant, by an annotation and the names of arguments above."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    value = value.item() if isinstance(value, np.generic) else value
    if kind in (Union, UnionType):
        return any(may_be(part, value, name) for part in parts)
    if kind in (Any, NoneType):
        return kind is Any or value is None
    if kind is Literal:
        return isinstance(value, str) and value in parts
    if kind is str:
        return isinstance(value, str) and value != ""
    if kind is bool:
        return isinstance(value, bool)
    if kind in (int, float):
        if type(value) not in (int, float)[: 1 + (kind is float)]:
            return False
        if value == float("inf"):
            return kind is float and name in ENDLESS
        return value == value and abs(value) < 2**63 and (name in SIGNED or value >= 0)
    if kind in (Sequence, Mapping):
        if not isinstance(value, list | tuple | range if kind is Sequence else dict):
            return False
        inner = value.values() if isinstance(value, dict) else value
        return all(may_be(parts[-1], v, name) for v in inner) and (len(value) > 0 or name in MAY_BE_EMPTY)
    if getattr(kind, "_is_protocol", False):
        return value is object  # looks like anything
    return not inspect.isclass(kind) or isinstance(value, kind)


def invalid_calls() -> Iterator[tuple[Argument, Any]]:
    """Every argument with every value that it cannot mean."""
    for argument in arguments():
        for value in WRONG:
            if not may_be(argument.hint, value, argument.name):
                yield argument, value


def needed(call: Callable[..., Any]) -> dict[str, Any]:
    """Arguments without a default."""
    name = call.__name__
    objects = {
        "trainer": lambda: Trainer(
            logger=False, enable_checkpointing=False, accelerator="cpu", barebones=True
        ),
        "module": lambda: nn.Linear(1, 1) if name == "fisher_information" else LightningModule(),
        "rule": lambda: cl_callbacks.EWC(1.0),
        "data": lambda: ([], []) if name == "find_strength" else "digits",
        "tasks": lambda: 2 if name == "permuted" else [{"train": [1]}],
    }
    missing = [name for name, p in parameters_of(call).items() if p.default is p.empty]
    return {name: objects[name]() if name in objects else NEEDED[name] for name in missing}


def refused(argument: Argument, value: Any, given: Mapping[str, Any]) -> bool:
    """Whether a call is refused at once, with the name of the argument in the message."""
    try:
        argument.call(**{**given, argument.name: value})
    except (ValueError, TypeError) as error:
        return argument.name in str(error) and len(str(error)) < 1000
    except Exception:  # too late, as where a file is not found
        return False
    return False


def count() -> tuple[int, list[tuple[Argument, Any]]]:
    """The number of invalid calls, and those that are not refused by name."""
    known: dict[Any, dict[str, Any]] = {}
    calls, missed = 0, []
    for argument, value in invalid_calls():
        if argument.call not in known:
            known[argument.call] = needed(argument.call)
        calls += 1
        if not refused(argument, value, known[argument.call]):
            missed.append((argument, value))
    return calls, missed


if __name__ == "__main__":
    calls, missed = count()
    print(f"{calls - len(missed)} of {calls} invalid calls are refused by the name of the argument")
    for argument, value in missed:
        print(f"  not refused: {argument!r} = {value!r}"[:160])
