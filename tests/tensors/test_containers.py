"""Containers of every kind, and objects, with the tensors in them."""

from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from cl_callbacks.tensors.containers import copied, flat_tensors, map_tensors, moved, nodes
from tests.odd.batches import Checked, Fields, Graph, Sized
from tests.tensors.test_batches import Encoding, Named


@dataclass(frozen=True)
class Frozen:
    """Which Lightning itself cannot move, but a transfer hook of the user's own may."""

    x: Tensor
    y: Tensor


X, Y = torch.arange(4.0)[:, None], torch.arange(4)
PACKED = pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
CONTAINERS: list[Any] = [
    [X, Y],
    (X, Y),
    {"x": X, "y": Y},
    OrderedDict(x=X, y=Y),
    defaultdict(list, x=X, y=Y),
    UserDict(x=X, y=Y),
    MappingProxyType({"x": X, "y": Y}),
    Encoding(x=X, y=Y),
    Named(X, "a"),
    Checked(X, Y, "a"),
    Fields(X, Y),
    Frozen(X, Y),
    Sized({"x": X, "y": Y}, 4),
    torch.max(X, 0),
    PACKED,
    {"both": [(X, Y), Fields(X, Y)], "text": "a", "none": None},
]


@pytest.mark.parametrize("batch", CONTAINERS, ids=lambda batch: type(batch).__name__)
def test_types_are_kept_and_the_original_is_as_it_was(batch: Any) -> None:
    before = [t.clone() for t in flat_tensors(batch)]
    found = map_tensors(lambda t: t + 1, batch)
    assert type(found) is type(batch)
    assert before
    for old, new, now in zip(before, flat_tensors(found), flat_tensors(batch), strict=True):
        assert torch.equal(new, old + 1)
        assert torch.equal(now, old)
    apart = copied(batch)
    assert type(apart) is type(batch)
    for old, new in zip(flat_tensors(batch), flat_tensors(apart), strict=True):
        assert torch.equal(old, new)
        assert old.data_ptr() != new.data_ptr()
    elsewhere = moved(batch, torch.device("meta")) if not isinstance(batch, PackedSequence) else None
    assert elsewhere is None or type(elsewhere) is type(batch)
    assert elsewhere is None or all(t.is_meta for t in flat_tensors(elsewhere))


def test_fields_may_hold_what_their_checks_would_refuse() -> None:
    """Between a batch and its copy on another device they do not fit each other."""
    assert map_tensors(lambda t: None, Checked(X, Y, "a"))[0] is None
    assert map_tensors(lambda t: None, Fields(X, Y)).x is None
    assert map_tensors(lambda t: None, PACKED).data is None


def test_objects_are_copied_with_their_tensors_and_left_alone_otherwise() -> None:
    graph = Graph(X, Y, Y)
    assert map_tensors(torch.neg, [graph])[0] is graph
    assert flat_tensors(graph) == []
    apart = copied({"graph": graph}, "cpu")["graph"]
    assert type(apart) is Graph
    assert torch.equal(apart.x, X)
    assert apart.x.data_ptr() != X.data_ptr()
    assert copied(PACKED, "cpu").batch_sizes.tolist() == PACKED.batch_sizes.tolist()
    with pytest.raises(TypeError, match="a generator cannot be copied"):
        copied([x for x in (iter_nothing(),)])


def iter_nothing() -> Any:
    yield from ()


def test_all_that_a_batch_holds() -> None:
    graph = Graph(X, Y, Y)  # which refers to itself
    paths = {path for path, node in nodes([graph, nn.Linear(1, 1)]) if isinstance(node, Tensor)}
    assert paths == {(0, "x"), (0, "graph"), (0, "y")}
