"""What an offline W&B run has logged, read back from its file."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK, _FILE_HEADER, _RECORD_HEADER = 32768, 7, 7


def run_file(folder: Path) -> Path:
    """Of the only run below a folder."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    return file


def history(folder: Path) -> list[dict[str, Any]]:
    """The rows of the only run below a folder, which has finished."""
    return [_values(record.history.item) for record in of_kind(folder, "history")]


def config(folder: Path) -> dict[str, Any]:
    """What the run was configured with, by the first part of each key."""
    found: dict[str, Any] = {}
    for record in of_kind(folder, "config"):
        found |= _values(record.config.update)
    return found


def of_kind(folder: Path, kind: str) -> list[Record]:
    """All records of a kind, such as ``"artifact"`` or ``"metric"``, of the only run below a folder."""
    return [record for record in _finished(run_file(folder)) if record.WhichOneof("record_type") == kind]


def _values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _finished(file: Path, patience: float = 60.0) -> list[Record]:
    """All records: another process writes the last of them, at times after `finish` has returned."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        records = [Record.FromString(data) for data in _records(file.read_bytes())]
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        time.sleep(0.05)
    raise TimeoutError(f"{file} is not complete after {patience:g} s")


def _records(data: bytes) -> Iterator[bytes]:
    """Of a log in LevelDB's format: blocks of chunks, each with checksum, length and type."""
    position, parts = _FILE_HEADER, b""
    while position + _RECORD_HEADER <= len(data):
        if _BLOCK - position % _BLOCK < _RECORD_HEADER:  # the padding of a block
            position += _BLOCK - position % _BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + _RECORD_HEADER])
        position += _RECORD_HEADER
        if position + length > len(data):  # still being written
            return
        parts += data[position : position + length]
        position += length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""
