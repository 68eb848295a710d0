"""Saves the importance of a network's weights to a file that other runs can load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cl_callbacks.guards.bounds import Bounds
from cl_callbacks.guards.few import some
from cl_callbacks.guards.sound_state import memory_of_machine, unlike_shapes, unsound
from cl_callbacks.guards.whole_file import whole_file

State = dict[str, dict[str, Tensor]]


def save_importance(
    path: str | PathLike[str], state: State, kind: Mapping[str, str], tasks: int, offset: float
) -> None:
    """Writes one tensor ``FIELD/NAME`` per field and parameter, and kind, tasks and offset as metadata.

    Writing is atomic: if it fails, an older file of that name is left as it was.
    """
    tensors = {
        f"{field}/{name}": t.contiguous().cpu() for field, named in state.items() for name, t in named.items()
    }
    with whole_file(path) as part:
        save_file(tensors, part, {**kind, "tasks": str(tasks), "offset": repr(offset)})


def load_importance(
    path: str | PathLike[str], fields: Sequence[str], kind: Mapping[str, str], bounds: Mapping[str, Bounds]
) -> tuple[State, int, float]:
    """Reads a file of :func:`save_importance`: state, number of tasks, offset.

    The ``bounds`` of its numbers are by path, as in checkpoints of the rule.

    Raises:
        ValueError: no such file, a damaged one, one of another importance measure, or numbers that make no
            sense, of which the message names the tensor.
    """
    if not Path(path).is_file():
        raise ValueError(f"importance_file={str(path)!r} is not a file; write one with `save_importance`")
    try:
        state, tasks, offset = _read(path, fields, kind)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no safetensors file, or not the whole of one ({error}): copy it again, or write "
            f"another with `save_importance`"
        ) from error
    wrong = [*unsound({"synapses": state, "tasks": tasks, "offset": offset}, bounds), *unlike_shapes(state)]
    if wrong:
        raise ValueError(
            f"{path} was not loaded, since its numbers make no sense: {some(wrong)}. Write another with "
            f"`save_importance`, of a training whose weights are finite"
        )
    return state, int(tasks), float(offset)


def _read(
    path: str | PathLike[str], fields: Sequence[str], kind: Mapping[str, str]
) -> tuple[State, Any, Any]:
    size, most = Path(path).stat().st_size, memory_of_machine()
    if size > most:
        raise ValueError(
            f"{path} has {size:.3g} bytes, and this machine a memory of {most:.3g}: it is no importance of a "
            f"network that can be trained here"
        )
    state: State = {field: {} for field in fields}
    with safe_open(path, "pt") as file:
        about = file.metadata() or {}
        found = {key: about.get(key, "none") for key in kind}
        if found != kind:
            raise ValueError(
                f"{path} holds the importance {found}, and this rule measures {dict(kind)}: their "
                f"sizes differ by orders of magnitude, so they do not add up. Build the rule with the "
                f"arguments of the run that wrote the file (normalize=None for 'none')"
            )
        for key in file.keys():  # noqa: SIM118  (not a dict)
            field, _, name = key.partition("/")
            if field not in state:
                raise ValueError(f"{path} holds {key!r}, and an importance file has only {list(state)}")
            state[field][name] = file.get_tensor(key)
    if not {"tasks", "offset"} <= about.keys():
        raise ValueError(
            f"{path} was not written by `save_importance`: it does not say of how many tasks it is"
        )
    names = set().union(*state.values())
    lacking = [f"{field}/{name}" for field in fields for name in sorted(names - state[field].keys())]
    if lacking:
        raise ValueError(f"{path} is not whole: without {', '.join(lacking)}")
    return state, _number(about["tasks"], int), _number(about["offset"], float)


def _number(text: str, kind: type) -> Any:
    """A number of the file's header; the text itself if it is none."""
    try:
        return kind(text)
    except ValueError:
        return text
