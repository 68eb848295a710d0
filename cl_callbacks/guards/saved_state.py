"""Restoring of saved state, either completely or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor

from cl_callbacks.guards.bounds import Bounds
from cl_callbacks.guards.few import some
from cl_callbacks.guards.sound_state import unlike_shapes, unsound


class Keeper(Protocol):
    """Protocol of an object with a state that can be saved and restored."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state to be saved."""

    def restore(self, state_dict: dict[str, Any]) -> None:
        """Replaces the present state."""


def restore_atomically(
    keeper: Keeper, state: Any, bounds: Mapping[str, Bounds] | None = None, source: str = ""
) -> None:
    """Restores a state that ``state_dict`` returned, or keeps the present one and raises if it does not fit.

    Args:
        keeper: whose state it is to be.
        state: that was saved.
        bounds: of its numbers, by path: see :func:`~cl_callbacks.guards.sound_state.unsound`.
        source: the file that it is from, for the error, where that is known.

    Raises:
        ValueError: a state that does not fit; the message says why.

    Example:
        >>> from cl_callbacks import EWC
        >>> restore_atomically(EWC(1.0), {"tasks": 1})
        Traceback (most recent call last):
        ValueError: This is no state of EWC, whose own state is kept: without 'next_task', ...
    """
    own = keeper.state_dict()
    misfits = list(_misfits(state, own)) or [*unsound(state, bounds or {})]
    if not misfits and "synapses" in state:
        misfits = list(unlike_shapes(state["synapses"]))
    if misfits:
        raise ValueError(_refusal(keeper, some(misfits), source))
    try:
        keeper.restore(state)
    except Exception as error:  # of any type: a half-restored state must not remain
        keeper.restore(own)
        raise ValueError(_refusal(keeper, f"{type(error).__name__}: {error}", source)) from error


def _refusal(keeper: Keeper, reason: str, source: str) -> str:
    return (
        f"This is no state of {type(keeper).__name__}, whose own state is kept: {reason}"
        f"{source and f' (in {source})'}. Load what the `state_dict` of the same class with the same "
        f"arguments has given, or a checkpoint with it; to begin anew, leave the state out."
    )


def _misfits(state: Any, own: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(state, Mapping):
        yield f"it is a {type(state).__name__} and not a dict"
        return
    missing, unexpected = own.keys() - state.keys(), state.keys() - own.keys()
    if missing:
        yield f"without {', '.join(map(repr, sorted(missing)))}"
    if unexpected:
        yield f"with {', '.join(sorted(map(repr, unexpected)))}"
    for key in sorted(own.keys() & state.keys()):
        given, kept = state[key], own[key]
        if given is not None and kept is not None and _kind(given) is not _kind(kept):
            yield f"{key!r} is a {type(given).__name__} and not a {type(kept).__name__}"
        elif isinstance(kept, int) and isinstance(given, float):
            yield f"{key!r} is {given} and not a whole number"
        elif key == "synapses":
            yield from (f"in {key!r}: {misfit}" for misfit in _misfits_of_fields(given, kept))


def _misfits_of_fields(state: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[str]:
    found = list(_misfits(state, own))
    tensors = [(f, n, t) for f in own if not found for n, t in state[f].items()]
    yield from found
    for field, name, tensor in tensors:
        if not isinstance(tensor, Tensor):
            yield f"{field!r} of {name!r} is a {type(tensor).__name__} and not a Tensor"


def _kind(value: Any) -> type:
    """Type of a value for comparison: ``float`` for all numbers but bools, base types for subclasses."""
    kinds: tuple[type, ...] = (bool, int, float, Mapping, Tensor)
    found = next((kind for kind in kinds if isinstance(value, kind)), type(value))
    return float if found is int else found
