"""Many tensors in one memory, each in the order of the tensor that it belongs to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cl_callbacks.tensors.blocks import spans
from cl_callbacks.tensors.flat import flat_zeros

LIKE = {
    "contiguous": torch.zeros(4, 3, 2, 2),
    "channels_last": torch.zeros(4, 3, 2, 2).to(memory_format=torch.channels_last),
    "channels_last_3d": torch.zeros(4, 3, 2, 2, 2).to(memory_format=torch.channels_last_3d),
    "channels_last, one row": torch.zeros(1, 3, 2, 2).to(memory_format=torch.channels_last),
    "channels_last, one pixel": torch.zeros(4, 3, 1, 1).to(memory_format=torch.channels_last),
    "scalar": torch.zeros(()),
    "empty": torch.zeros(0, 3),
}
OTHERS = {"transposed": torch.zeros(3, 4).T, "every second": torch.zeros(4, 6)[:, ::2]}


@pytest.mark.parametrize("name", LIKE)
def test_views_are_laid_out_as_what_they_belong_to(name: str) -> None:
    like = LIKE[name]
    (flat,), (_, view) = flat_zeros([torch.zeros(5), like], laid_out=True)
    assert (view.shape, view.stride()) == (like.shape, like.stride())
    assert flat.numel() == 5 + like.numel()
    view += 1.0
    assert flat.sum() == like.numel()


@pytest.mark.parametrize("like", [*LIKE.values(), *OTHERS.values()])
def test_no_row_of_a_view_has_gaps(like: Tensor) -> None:
    """Or a part of the rows would not be a span."""
    _, (view,) = flat_zeros([like], laid_out=True)
    assert view.shape == like.shape
    for rows in [view, *([view[:1], view[1:]] if view.ndim else [])]:
        assert sum(map(len, spans([rows]))) == rows.numel()


@pytest.mark.parametrize("like", [*LIKE.values(), *OTHERS.values()])
def test_by_default_the_order_is_that_of_the_dimensions(like: Tensor) -> None:
    """So that the same random numbers are drawn for the same weights in any memory format."""
    (flat,), (view,) = flat_zeros([like])
    flat.copy_(torch.arange(float(flat.numel())))
    assert torch.equal(view.flatten(), flat)
