"""Splits parameters into blocks that fit into the processor's cache.

The time of a rule is that of its memory traffic. On a whole network each of its operations reads all tensors
from memory again; block by block, all operations but the first find them in the cache, and temporary tensors
have the size of a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cl_callbacks.compiled.memory_order import in_memory_order, is_dense
from cl_callbacks.tensors.shards import held

Rows = slice
"""A range of a tensor's first dimension."""

ALL: Rows = slice(None)
ELEMENTS_ON_CPU = 2**17
"""Elements in a block, on a CPU: eight such tensors of float32 are 4 MiB."""
ELEMENTS_IF_COMPILED = 2**24
"""Elements in a block of compiled operations, which need no cache, and whose calls are expensive."""
ELEMENTS_ELSEWHERE = 2**26
"""Elements in a block, on other devices, where it only bounds the memory of temporary tensors."""


def in_blocks(parameters: Sequence[Tensor], elements: int | None = None) -> list[dict[Tensor, Rows]]:
    """Splits parameters into blocks: each has many small ones or some rows of a large one.

    Args:
        parameters: of any shapes; rows of a sharded one are those of this process's shard.
        elements: largest number of elements in a block, if a row is not larger; default: by device.

    Returns:
        For each block, in the order of the parameters, its rows by parameter, which are on one device.

    Example:
        >>> a, b = torch.zeros(4, 3), torch.zeros(2)
        >>> [list(block.values()) for block in in_blocks([a, b], 9)]
        [[slice(0, 3, None)], [slice(3, 4, None), slice(None, None, None)]]
    """
    blocks: list[dict[Tensor, Rows]] = []
    device: torch.device | None = None
    room = 0
    for p in parameters:
        rows = len(held(p)) if held(p).ndim else 1
        row, start = max(1, held(p).numel() // max(1, rows)), 0
        while True:
            if p.device != device or row > room:
                blocks.append({})
                device, room = p.device, elements or _elements_on(p.device)
            count = min(rows - start, max(1, room // row))
            blocks[-1][p] = ALL if count == rows else slice(start, start + count)
            start, room = start + count, room - count * row
            if start == rows:
                break
    return blocks


def _elements_on(device: torch.device) -> int:
    return ELEMENTS_ON_CPU if device.type == "cpu" else ELEMENTS_ELSEWHERE


def rows_of(tensor: Tensor, rows: Rows) -> Tensor:
    """Returns some rows of a tensor as a view; for :data:`ALL` the tensor itself.

    Example:
        >>> rows_of(torch.arange(3), slice(1, 3))
        tensor([1, 2])
    """
    return tensor if rows == ALL else tensor[rows]


def spans(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Flat views of dense tensors; those that are adjacent in memory share one view. Others are as they are.

    Example:
        >>> flat = torch.arange(5)
        >>> spans([flat[:2].view(2, 1), flat[2:4]])
        [tensor([0, 1, 2, 3])]
    """
    found: list[Tensor] = []
    others: list[Tensor] = []
    for t in sorted(tensors, key=lambda t: (t.untyped_storage().data_ptr(), t.storage_offset())):
        last = found[-1] if found else None
        if not is_dense(t):
            others.append(t)
        elif last is not None and _follows(t, last):
            found[-1] = last.as_strided((len(last) + t.numel(),), (1,))
        else:
            found.append(in_memory_order(t))
    return found + others


def _follows(tensor: Tensor, last: Tensor) -> bool:
    same = tensor.untyped_storage().data_ptr() == last.untyped_storage().data_ptr()
    return (
        same and tensor.dtype == last.dtype and tensor.storage_offset() == last.storage_offset() + len(last)
    )


def spread(index: Tensor, entries: int) -> Tensor:
    """The entries of each index, where each has several side by side.

    Example:
        >>> spread(torch.tensor([0, 2]), 3)
        tensor([0, 1, 2, 6, 7, 8])
    """
    if entries == 1:
        return index
    return (index[:, None] * entries + torch.arange(entries, device=index.device)).flatten()
