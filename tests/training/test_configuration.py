"""What loggers get of arguments of any kind: plain, of bounded size, and without secrets."""

from __future__ import annotations

import json
import os
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from cl_callbacks import EWC, BatchBoundaries, EpochBoundaries
from cl_callbacks.training.configuration import HIDDEN, MOST_ITEMS, configuration
from tests.small import Net, loader, make_trainer, task


class Of(EpochBoundaries):
    """A user's callback with an argument of any kind."""

    def __init__(self, value: Any = None, api_key: Any = None) -> None:
        super().__init__(1)
        self.value, self.api_key = value, api_key


class Client:
    """An object of another package, that a callback holds."""

    def __init__(self, url: str, mode: str = "fast", retries: int = 3, more: Any = None) -> None:
        self.url, self.mode, self.retries, self.more = url, mode, retries, more
        self.session = "not declared"


class Raising:
    def __init__(self, value: int = 0, other: int = 1) -> None:
        self.other = other

    @property
    def value(self) -> int:
        raise RuntimeError("no connection")


class Colour(Enum):
    RED = 1


def shown(value: Any) -> Any:
    return configuration(Of(value))["value"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array(2.5), 2.5),
        (torch.tensor(0.25), 0.25),
        (torch.tensor(True), True),
        (nn.Parameter(torch.tensor(0.25)), 0.25),
        (torch.tensor([1, 2]), [1, 2]),
        (np.zeros((3, 4)), "ndarray (3, 4)"),
        (torch.empty((), device="meta"), "Tensor ()"),
        (Decimal("0.5"), 0.5),
        (1 + 2j, "(1+2j)"),
        (10**400, "integer of 1329 bits"),
        (Colour.RED, "RED"),
        (torch.float16, "torch.float16"),
        (nn.Linear(2, 2), "Linear"),
        (len, "len"),
        (b"bytes", "(bytes of 5)"),
        ({"a": {1, 2}}, {"a": [1, 2]}),
    ],
    ids=str,
)
def test_numbers_keep_their_value_and_the_rest_is_plain(value: Any, expected: Any) -> None:
    found = shown(value)
    assert (found, type(found)) == (expected, type(expected))


def cyclic() -> list[Any]:
    found: list[Any] = [1]
    found.append({"again": found})
    return found


def deep() -> list[Any]:
    found: list[Any] = []
    for _ in range(100_000):
        found = [found]
    return found


def wide() -> Any:
    return [[[[0] * 100 for _ in range(100)] for _ in range(100)] for _ in range(10)]


@pytest.mark.parametrize(
    "value",
    [
        cyclic(),
        deep(),
        wide(),
        list(range(10**6)),
        "x" * 10**6,
        dict.fromkeys(range(10**5)),
        set(range(10**5)),
    ],
    ids=["cyclic", "deep", "wide", "list", "text", "dict", "set"],
)
def test_what_has_no_end_is_cut(value: Any) -> None:
    text = json.dumps(shown(value), ensure_ascii=False)
    assert len(text) < 10_000
    assert "…" in text


def test_a_cycle_of_objects_is_cut() -> None:
    first = Client("a")
    first.more = Client("b", more=first)
    assert shown(first)["more"]["more"] == "…"


def test_the_first_items_of_a_long_list_are_shown() -> None:
    assert shown(list(range(100))) == [*range(MOST_ITEMS), "… 100 in all"]


def test_a_property_that_raises_is_named() -> None:
    assert shown(Raising()) == {"class": "Raising", "value": "(RuntimeError)", "other": 1}


@pytest.mark.parametrize(
    "text",
    [
        "api_key=abc123",
        "https://me:pass@example.org/x",
        "password: hunter2",
        '{"token": "abc"}',
        "Bearer abcdef",
        "hf_abcdefghijk",
        "sk-abcdefghijk",
        "AKIAABCDEFGHIJKLMNOP",
    ],
)
def test_a_text_that_looks_like_a_secret_is_hidden(text: str) -> None:
    assert shown(text) == HIDDEN
    assert shown({"a": [text]}) == {"a": [HIDDEN]}


@pytest.mark.parametrize(
    "name",
    ["key", "apiKey", "api_keys", "HF_TOKEN", "clientSecret", "db-password", "Authorization", "credentials"],
)
def test_what_has_the_name_of_a_secret_is_hidden(name: str) -> None:
    assert shown({name: "abc"}) == shown({name: 1234}) == shown({name: ["abc"]}) == {name: HIDDEN}
    assert configuration(Of(api_key="abc"))["api_key"] == HIDDEN
    assert configuration(Of(api_key=None))["api_key"] is None


@pytest.mark.parametrize("name", ["monitor", "keyboard", "max_tokens", "monkey", "tokenizer"])
def test_other_names_are_not(name: str) -> None:
    assert shown({name: 3}) == {name: 3}


def test_an_argument_of_this_package_is_no_secret() -> None:
    assert configuration(BatchBoundaries("domain"))["key"] == "domain"


def test_of_another_packages_object_declared_arguments_alone_are_shown_and_no_texts() -> None:
    found = shown(Client("abcdef", more=["inner", 2]))
    assert found == {
        "class": "Client",
        "url": "(str of 6)",
        "mode": "fast",  # its default
        "retries": 3,
        "more": ["(str of 5)", 2],
    }


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/me/data/file.txt", "file.txt"),
        (Path("/home/me/data"), "data"),
        ("/data", "data"),
        ("read /home/me/a.txt and file:///home/me/b.txt", "read a.txt and file://b.txt"),
        ("C:\\Users\\me\\a.txt", "a.txt"),
        ("~/me/a.txt", "a.txt"),
        (Path.cwd() / "runs" / "a", os.path.join("runs", "a")),
        ("val/acc", "val/acc"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        (r"net\.[0-9]+\.weight", r"net\.[0-9]+\.weight"),
    ],
    ids=str,
)
def test_no_folder_of_this_machine_is_shown(path: Any, expected: str) -> None:
    assert shown(path) == expected


@pytest.mark.parametrize(
    "value",
    [cyclic(), Raising(), 10**5000, "\ud800\0", Client("x"), object()],
    ids=["cyclic", "raising", "large", "no text", "client", "object"],
)
def test_no_argument_ends_the_training(value: Any, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    trainer = make_trainer(Of(value), EWC(1.0), EWC(2.0, name="a b"), logger=logger)
    trainer.fit(Net(), loader(*task(0)))
    text = Path(logger.log_dir, "hparams.yaml").read_text()
    assert all(name in text for name in ("every_n_epochs", "ewc:", "a b:")) or "value" in text
    assert "strength: 2.0" in text
