"""Warnings that come once."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_callbacks import EWC, fisher_information
from cl_callbacks.guards import once
from cl_callbacks.guards.once import first_time
from tests.small import FEATURES, Net, fit_tasks, task


class Item(nn.Module):
    """Vmap cannot follow it, and its weight is used outside the module that owns it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(FEATURES, 3)

    def forward(self, x: Tensor) -> Tensor:
        scale = 1.0 + 0.0 * float(x.sum().item())
        return nn.functional.linear(x, self.inner.weight, self.inner.bias) * scale


def test_once_for_each_object_and_matter() -> None:
    one, other = nn.Linear(1, 1), nn.Linear(1, 1)
    assert [first_time(one, "a"), first_time(one, "a"), first_time(one, "b"), first_time(other, "a")] == [
        True, False, True, True,
    ]  # fmt: skip
    known = len(once._SAID)
    del one, other
    gc.collect()
    assert len(once._SAID) < known


def test_a_network_that_vmap_cannot_follow_is_said_once_in_our_words() -> None:
    with pytest.warns(match="vmap cannot follow") as found:
        warnings.simplefilter("always")
        fit_tasks(Net(Item()), EWC(1.0, samples=8), tasks=3)
    told = [str(w.message) for w in found if "vmap" in str(w.message)]
    assert len(told) == 1
    assert "RuntimeError" in told[0] and "report" not in told[0] and "issue" not in told[0]


def test_of_two_modules_each_is_said(recwarn: Any) -> None:
    for _ in range(2):
        fisher_information(Net(Item()), [task(0)])
    assert len([w for w in recwarn if "vmap cannot follow" in str(w.message)]) == 2
    assert torch.is_grad_enabled()
