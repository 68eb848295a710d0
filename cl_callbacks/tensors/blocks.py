"""Parameters in blocks: as much of them at a time as stays in the cache.

What a rule does costs the bytes that it moves. Its few operations on a whole network read everything from
memory again in each; block by block, all but the first find it in the cache, and what they need in between
is the size of a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from cl_callbacks.tensors.shards import held

Rows = slice
"""A range of a tensor's first dimension."""

ALL: Rows = slice(None)
ELEMENTS_ON_CPU = 2**17
"""Of one tensor in a block: eight such tensors of float32 are 4 MiB."""
ELEMENTS_IF_COMPILED = 2**24
"""Compiled operations need no cache, and their calls are dear."""
ELEMENTS_ELSEWHERE = 2**26
"""There it only bounds what is needed in between."""


def in_blocks(parameters: Sequence[Tensor], elements: int | None = None) -> list[dict[Tensor, Rows]]:
    """Cuts parameters into blocks: each has many small ones or some rows of a large one.

    Args:
        parameters: of any shapes; of a sharded one, rows are of this process's shard.
        elements: of a block, at least one row; default: by device.

    Returns:
        For each block, in the order of the parameters, which rows of which parameters it has.

    Example:
        >>> import torch
        >>> a, b = torch.zeros(4, 3), torch.zeros(2)
        >>> [list(block.values()) for block in in_blocks([a, b], 9)]
        [[slice(0, 3, None)], [slice(3, 4, None), slice(None, None, None)]]
    """
    if elements is None:
        on_cpu = all(p.device.type == "cpu" for p in parameters)
        elements = ELEMENTS_ON_CPU if on_cpu else ELEMENTS_ELSEWHERE
    blocks: list[dict[Tensor, Rows]] = [{}]
    room = elements
    for p in parameters:
        rows = len(held(p)) if held(p).ndim else 1
        row, start = max(1, held(p).numel() // max(1, rows)), 0
        while True:
            if blocks[-1] and row > room:
                blocks.append({})
                room = elements
            count = min(rows - start, max(1, room // row))
            blocks[-1][p] = ALL if count == rows else slice(start, start + count)
            start, room = start + count, room - count * row
            if start == rows:
                break
    return [block for block in blocks if block]


def rows_of(tensor: Tensor, rows: Rows) -> Tensor:
    """Some rows of a tensor, as a view; all of them are the tensor itself.

    Example:
        >>> import torch
        >>> rows_of(torch.arange(3), slice(1, 3))
        tensor([1, 2])
    """
    return tensor if rows == ALL else tensor[rows]


def spans(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Contiguous tensors as few flat ones: those that lie one after the other in memory are one.

    Example:
        >>> import torch
        >>> flat = torch.arange(5)
        >>> spans([flat[:2].view(2, 1), flat[2:4]])
        [tensor([0, 1, 2, 3])]
    """
    found: list[Tensor] = []
    for t in sorted(tensors, key=lambda t: (t.untyped_storage().data_ptr(), t.storage_offset())):
        last = found[-1] if found else None
        if last is not None and _follows(t, last):
            found[-1] = last.as_strided((len(last) + t.numel(),), (1,))
        else:
            found.append(t.view(-1))
    return found


def _follows(tensor: Tensor, last: Tensor) -> bool:
    same = tensor.untyped_storage().data_ptr() == last.untyped_storage().data_ptr()
    return (
        same and tensor.dtype == last.dtype and tensor.storage_offset() == last.storage_offset() + len(last)
    )
