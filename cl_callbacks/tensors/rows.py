"""Cuts batches of any nesting into their rows, one for each sample, and puts rows together to batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from cl_callbacks.tensors.containers import children, with_leaves

Row = list[Any]
"""What one sample has at each leaf of its batch: a tensor without the dimension of the samples, an item of a
list, or a value that all samples of the batch share."""
_SINGLE = str, bytes, bool, int, float, type(None)
_IGNORED_LABEL = -100


@dataclass
class BatchRows:
    """A batch as its leaves, and how many rows these have.

    Attributes:
        paths: where each leaf is, as text.
        leaves: tensors whose first dimension counts the samples, packed sequences, lists with one entry for
            each sample, and what all samples share: numbers, texts and tensors without a dimension.
        count: number of rows.
        skeleton: the containers, without the leaves.
    """

    paths: tuple[str, ...]
    leaves: list[Any]
    count: int
    skeleton: Any

    def take(self, which: Sequence[int]) -> list[Row]:
        """Some of the rows; their tensors are views of the batch, except those of packed sequences."""
        columns = [_entries(leaf, which) for leaf in self.leaves]
        return [list(row) for row in zip(*columns, strict=True)]

    def emptied(self) -> BatchRows:
        """The same without samples: what :func:`join_rows` needs of it."""
        return replace(self, leaves=[_empty(leaf) for leaf in self.leaves])

    def is_shared(self, index: int) -> bool:
        """Whether all samples of a batch have the same at a leaf."""
        leaf = self.leaves[index]
        return not isinstance(leaf, PackedSequence | list) and not (isinstance(leaf, Tensor) and leaf.ndim)


def read_rows(batch: Any) -> BatchRows:
    """Finds the rows of a batch: all of its tensors have one entry for each.

    A list of texts or numbers has one entry for each sample if it is as long as the tensors have rows, and so
    has a list of tensors of any shapes.

    Raises:
        ValueError: rows that cannot be told.

    Example:
        >>> rows = read_rows({"x": torch.arange(3), "text": ["a", "b", "c"], "task": 7})
        >>> rows.count, rows.take([1])
        (3, [[tensor(1), 'b', 7]])
    """
    is_leaf = _leaf_test(batch)
    found = list(_leaves(batch, (), is_leaf))
    objects = {
        type(leaf).__name__
        for _, leaf in found
        if not isinstance(leaf, (Tensor, PackedSequence, list, *_SINGLE))
    }
    if objects:
        raise ValueError(f"a {type(batch).__name__} holds a {' and a '.join(sorted(objects))}")
    leaves = [leaf for _, leaf in found]
    count = next(_size(leaf) for leaf in leaves if _size(leaf) is not None)
    assert count is not None
    try:
        skeleton = with_leaves(batch, iter([None] * len(found)), is_leaf)
    except Exception as error:  # containers that check what is put into them raise errors of any type
        raise ValueError(f"a {type(batch).__name__} takes no other rows ({error})") from error
    return BatchRows(tuple("/".join(map(str, path)) for path, _ in found), leaves, count, skeleton)


def with_values_of_each(batch: Any, names: Iterable[str]) -> Any:
    """Gives each sample of a mapping a value of its own, where all samples share one.

    Example:
        >>> with_values_of_each({"x": torch.arange(2), "task": 7, "name": "a"}, ["task"])
        {'x': tensor([0, 1]), 'task': [7, 7], 'name': 'a'}
    """
    if not isinstance(batch, Mapping):
        return batch
    shared = [name for name in names if isinstance(batch.get(name), int)]
    return {**batch, **{name: [batch[name]] * read_rows(batch).count for name in shared}} if shared else batch


def join_rows(rows: Sequence[Row], like: BatchRows) -> Any:
    """Puts rows of one shape together to a batch, in the containers of another.

    Raises:
        ValueError: containers that do not take them.

    Example:
        >>> like = read_rows({"x": torch.arange(3), "name": "a"})
        >>> join_rows([[torch.tensor(5), "b"], [torch.tensor(6), "b"]], like)
        {'x': tensor([5, 6]), 'name': 'b'}
    """
    leaves = [_joined([row[i] for row in rows], like.leaves[i]) for i in range(len(like.paths))]
    try:
        return with_leaves(like.skeleton, iter(leaves), lambda value: value is None)
    except Exception as error:  # as above
        raise ValueError(f"a {type(like.skeleton).__name__} takes no other rows ({error})") from error


def alike(rows: Sequence[Row], like: BatchRows) -> list[list[int]]:
    """Groups rows that fit into one batch: of the same shapes and types, and with the same shared values.

    Example:
        >>> like = read_rows({"x": torch.zeros(2, 3)})
        >>> alike([[torch.zeros(3)], [torch.zeros(4)], [torch.ones(3)]], like)
        [[0, 2], [1]]
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, row in enumerate(rows):
        kind = tuple(_kind(value, like.leaves[i], like.is_shared(i)) for i, value in enumerate(row))
        groups.setdefault(kind, []).append(number)
    return list(groups.values())


def pad_rows(rows: Sequence[Row], paths: Sequence[str]) -> list[Row]:
    """Pads the sequences of rows that have an ``attention_mask`` to one length; other rows are as they were.

    Everything that is as long as the mask is padded: labels with -100, which losses ignore, all else with 0,
    and so the mask. The padding goes where the rows already have theirs, and otherwise to the end.

    Example:
        >>> short, long = [torch.tensor([7]), torch.tensor([1])], [torch.tensor([8, 9]), torch.tensor([1, 1])]
        >>> pad_rows([short, long], ["input_ids", "attention_mask"])[0]
        [tensor([7, 0]), tensor([1, 0])]
    """
    masks = [i for i, path in enumerate(paths) if path.split("/")[-1] == "attention_mask"]
    if len(masks) != 1 or any(row[masks[0]].ndim != 1 for row in rows):
        return list(rows)
    lengths = [len(row[masks[0]]) for row in rows]
    longest = max(lengths)
    at_start = any(
        n and not row[masks[0]][0] and row[masks[0]][-1] for row, n in zip(rows, lengths, strict=True)
    )
    padded = []
    for row, length in zip(rows, lengths, strict=True):
        more = (longest - length, 0) if at_start else (0, longest - length)
        padded.append(
            [
                F.pad(v, more, value=_IGNORED_LABEL if path.split("/")[-1] == "labels" else 0)
                if isinstance(v, Tensor) and v.ndim == 1 and len(v) == length and length < longest
                else v
                for v, path in zip(row, paths, strict=True)
            ]
        )
    return padded


def row_bytes(row: Row) -> int:
    """Bytes of a row's tensors and texts.

    Example:
        >>> row_bytes([torch.zeros(3), "text", 1])
        24
    """
    sizes = (v.nbytes if isinstance(v, Tensor) else len(v) if isinstance(v, str | bytes) else 8 for v in row)
    return sum(sizes)


def _leaf_test(batch: Any) -> Callable[[Any], bool]:
    """Finds out which lists have one entry for each sample, and returns whether a value is a leaf."""
    tensors = [leaf for _, leaf in _leaves(batch, (), _is_packed) if _size(leaf) is not None]
    sizes = sorted({size for size in map(_size, tensors) if size is not None})
    if not sizes:  # texts alone
        sizes = sorted({len(v) for v in _lists(batch) if _is_list_of(v, _SINGLE)})
    if len(sizes) == 1 and sizes[0]:
        return lambda v: _is_packed(v) or (_is_list_of(v, _SINGLE) and len(v) == sizes[0])
    for size in sizes:  # a list of tensors of different shapes, beside a tensor with one row for each

        def is_leaf(v: Any, size: int = size) -> bool:
            return _is_packed(v) or (_is_list_of(v, (*_SINGLE, Tensor)) and len(v) == size)

        found = [leaf for _, leaf in _leaves(batch, (), is_leaf)]
        tensors = [
            leaf for leaf in found if isinstance(leaf, Tensor | PackedSequence) and _size(leaf) is not None
        ]
        if tensors and {_size(leaf) for leaf in tensors} == {size}:
            return is_leaf
    why = f"the tensors in it have {sizes} entries" if sizes else "there are no tensors in it"
    raise ValueError(f"the rows of a {type(batch).__name__} cannot be told, since {why}")


def _is_packed(value: Any) -> bool:
    return isinstance(value, PackedSequence)


def _is_list_of(value: Any, kinds: Any) -> bool:
    return type(value) is list and len(value) > 0 and all(isinstance(item, kinds) for item in value)


def _lists(tree: Any) -> Iterator[list[Any]]:
    if type(tree) is list:
        yield tree
    for _, value in children(tree) or ():
        yield from _lists(value)


def _leaves(
    tree: Any, path: tuple[Any, ...], is_leaf: Callable[[Any], bool]
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    inner = None if is_leaf(tree) else children(tree)
    if inner is None:
        yield path, tree
    for key, value in inner or ():
        yield from _leaves(value, (*path, key), is_leaf)


def _size(leaf: Any) -> int | None:
    """Number of rows of a leaf; ``None`` for what all samples share."""
    if isinstance(leaf, PackedSequence):
        return int(leaf.batch_sizes[0])  # on the CPU always
    if isinstance(leaf, Tensor):
        return len(leaf) if leaf.ndim else None
    return len(leaf) if isinstance(leaf, list) else None


def _empty(leaf: Any) -> Any:
    """A leaf of the same kind that holds no memory of the batch."""
    if isinstance(leaf, Tensor):
        return torch.empty(0) if leaf.ndim else torch.empty(())
    if isinstance(leaf, PackedSequence):
        return PackedSequence(torch.empty(0), torch.empty(0, dtype=torch.long))
    return [] if isinstance(leaf, list) else leaf


def _entries(leaf: Any, which: Sequence[int]) -> list[Any]:
    if isinstance(leaf, PackedSequence):
        sequences = unpack_sequence(leaf)
        return [sequences[i] for i in which]
    shared = _size(leaf) is None
    return [leaf if shared else leaf[i] for i in which]


def _joined(values: list[Any], like: Any) -> Any:
    if isinstance(like, PackedSequence):
        return pack_sequence(values, enforce_sorted=False)
    if isinstance(like, Tensor) and like.ndim:
        return torch.stack(values)
    return values if isinstance(like, list) else values[0]


def _kind(value: Any, like: Any, shared: bool) -> Any:
    """What two rows have to agree on at a leaf, to fit into one batch."""
    if not isinstance(value, Tensor):
        return (type(value), value) if shared else ()
    if isinstance(like, list | PackedSequence):
        return value.dtype
    return value.dtype, tuple(value.shape), tuple(value.flatten().tolist()) if shared else ()
