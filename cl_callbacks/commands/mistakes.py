"""Tells errors that are mistakes in the arguments, which one sentence explains, from all others."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType

_PACKAGE = Path(__file__).parents[1]
_INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_MISTAKES = (ValueError, TypeError, OSError, ImportError)
"""What a wrong argument, a missing file or a missing package raises."""

_NOT_BUILT = "Does not validate against any of the Union subtypes"
"""How jsonargparse begins where a class raised an error when it was built."""

_NO_CHECKPOINT = "it is damaged, no checkpoint, or holds more than tensors and plain values"
_MOST_CHARACTERS = 400
"""Of an error's message, such as a list of all weights that a checkpoint does not have."""


def sentence_of(error: BaseException) -> str | None:
    """The message of an error that is a mistake in the arguments; ``None`` for one whose traceback is needed.

    That is an error of another kind, or one that passed through code that is neither installed nor of this
    package: a module of the user's. Any error is a mistake that is raised where a checkpoint is read.
    """
    while error.__cause__ is not None and str(error).startswith(_NOT_BUILT):
        error = error.__cause__
    frames = list(_frames(error.__traceback__))
    files = [Path(frame.f_code.co_filename) for frame in frames]
    if not all(_PACKAGE in file.parents or str(file).startswith((*_INSTALLED, "<frozen")) for file in files):
        return None
    text = " ".join(str(error).split()) or type(error).__name__
    checkpoint = next(filter(None, map(_checkpoint_read_in, frames)), None)
    if checkpoint is not None and checkpoint not in text:
        unread = any(file.match("torch/serialization.py") for file in files)  # it is not that it does not fit
        why = _NO_CHECKPOINT if unread else _cut(text)
        return f"the checkpoint {checkpoint!r} cannot be read here: {why}"
    if not isinstance(error, _MISTAKES) and type(error).__name__ != "MisconfigurationException":
        return None
    made = next(filter(None, map(_made_in, frames)), None)
    return text if made is None or made in text else f"{made}: {text}"


def _frames(traceback: TracebackType | None) -> Iterator[FrameType]:
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _made_in(frame: FrameType) -> str | None:
    """The class of this package that a frame is making, if any, and if it has a name to a user."""
    made = type(frame.f_locals.get("self"))
    own = made.__module__.startswith(f"{_PACKAGE.name}.") and "<locals>" not in made.__qualname__
    return made.__name__ if own and frame.f_code.co_name == "__init__" else None


def _checkpoint_read_in(frame: FrameType) -> str | None:
    """The checkpoint that a frame of Lightning reads, if any."""
    reads = frame.f_code.co_name in ("_parse_ckpt_path", "_restore_modules_and_callbacks", "resume_start")
    found = (frame.f_locals.get(name) for name in ("ckpt_path", "checkpoint_path"))
    return next((str(path) for path in found if path), None) if reads else None


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"
