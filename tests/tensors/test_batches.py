"""Batches of every nesting."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from cl_callbacks.tensors.batches import count_samples, split_samples, take_samples
from cl_callbacks.tensors.containers import map_tensors, plain_containers


class Named(NamedTuple):
    x: Tensor
    name: str


@dataclass
class Data:
    x: Tensor
    extra: int = 3


class Encoding(UserDict):
    """As tokenizers return."""


X = torch.arange(4.0)


@pytest.mark.parametrize("batch", [X, [X, X], (X, 1), {"x": X}, Encoding(x=X), Named(X, "a"), Data(X)])
def test_containers_keep_their_types(batch: object) -> None:
    cut = take_samples(batch, slice(1, 3))
    assert type(cut) is type(batch)
    assert count_samples(batch) == 4
    assert count_samples(cut) == 2
    assert count_samples(batch) == 4  # the original is as it was
    tensors, rebuild = split_samples(batch)
    assert count_samples(rebuild([t[:1] for t in tensors])) == 1


def test_what_does_not_count_samples_is_left_whole() -> None:
    batch = {"task": torch.zeros(1), "x": X, "y": X, "mask": torch.zeros(7, 7), "scale": torch.ones(())}
    cut = take_samples(batch, slice(0, 2))
    assert {k: tuple(v.shape) for k, v in cut.items()} == {
        "task": (1,), "x": (2,), "y": (2,), "mask": (7, 7), "scale": (),
    }  # fmt: skip
    assert count_samples("text") == 0


def test_checkpoints_get_plain_containers() -> None:
    plain = plain_containers({"a": Encoding(x=X), "b": [Named(X, "n")]})
    assert type(plain["a"]) is dict
    assert type(plain["b"][0]) is tuple
    assert map_tensors(Tensor.clone, plain)["b"][0][1] == "n"
