"""Names that users give, made fit for log keys, file names and spreadsheets."""

from __future__ import annotations

import re
import unicodedata
from hashlib import sha256

_NOT_TEXT = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode categories of control characters, halves of surrogate pairs, and separators of lines."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""Beginnings of a cell that a spreadsheet would compute; the last four are full-width forms."""

_DIGEST = 9
"""Number of characters of a tilde and the digest of a name."""


def readable(name: str, most: int = 200) -> str:
    r"""The name, with ``_`` for what is no text, at most ``most`` characters long.

    A name that had to be changed ends in a number made from all of it, so that different names stay so.

    Example:
        >>> readable("letters/upper"), readable("a" * 5000, most=16)
        ('letters/upper', 'aaaaaaa~c526c622')
        >>> readable("nul\0")
        'nul_~cd0798f9'
    """
    text = _text(name[:most])
    return name if text == name else _with_digest(text, name, most)


def readable_key(key: str, most: int = 200) -> str:
    """A log key, each part of which between slashes is :func:`readable`.

    Example:
        >>> readable_key("cl_task/" + "a" * 5000 + "/average", most=16)
        'cl_task/aaaaaaa~c526c622/average'
    """
    return "/".join(readable(part, most) for part in key.split("/"))


def file_name(name: str, ending: str = "", most: int = 150) -> str:
    """A file name of at most ``most`` bytes for a name of any characters; slashes become dashes.

    Example:
        >>> file_name("cl_task/matrix", ".png"), file_name("a/../../b")
        ('cl_task-matrix.png', 'a-..-..-b')
        >>> file_name("..", ".json")
        '~5ec1f7e7.json'
    """
    dashed = name.replace("/", "-")
    text = re.sub(r'[\\:*?"<>|]', "_", _text(dashed))
    if set(text) <= {"."} or text != dashed or len(text.encode()) > most - len(ending):
        text = text.encode()[: most - len(ending) - _DIGEST].decode(errors="ignore").strip(".")
        text = _with_digest(text, name, most)
    return text + ending


def csv_cell(text: str) -> str:
    """The text of a cell, with a quote in front where a spreadsheet would take it for a formula.

    Example:
        >>> csv_cell("=1+1"), csv_cell("digits 1+1")
        ("'=1+1", 'digits 1+1')
    """
    return f"'{text}" if text.startswith(_FORMULA) else text


def _text(name: str) -> str:
    if name.isprintable():
        return name
    return "".join("_" if unicodedata.category(c) in _NOT_TEXT else c for c in name)


def _with_digest(text: str, name: str, most: int) -> str:
    digest = sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[: _DIGEST - 1]
    return f"{text[: most - _DIGEST]}~{digest}"
