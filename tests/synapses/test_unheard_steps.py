"""Weights that change although no step of theirs was heard."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from cl_callbacks.synapses.state import Synapses
from cl_callbacks.synapses.unheard_steps import UnheardSteps


def watch(*weights: Tensor) -> UnheardSteps:
    synapses, named = Synapses({}), {f"w{i}": w for i, w in enumerate(weights)}
    synapses.place(named, list(named))
    rule: Any = SimpleNamespace(synapses=synapses)
    return UnheardSteps([rule])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_least_change_of_one_weight_is_noticed(dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.full((100, 100), 1000.0, dtype=dtype))
    unheard = watch(weight)
    unheard.refuse(set())
    weight.data[3, 4] = weight.data[3, 4].nextafter(torch.tensor(0.0, dtype=dtype))
    with pytest.raises(MisconfigurationException, match=r"SimpleNamespace cannot act on .*: w0 changed"):
        unheard.refuse(set())


def test_weights_that_are_not_finite_have_not_changed_by_that() -> None:
    watch(nn.Parameter(torch.tensor([torch.nan, torch.inf]))).refuse(set())


def test_where_others_step_only_weights_with_a_gradient_are_suspect() -> None:
    stepping, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    unheard = watch(stepping, other)
    stepping.data += 1
    other.data += 1
    unheard.refuse({id(stepping)})
    other.grad = torch.ones(2)
    with pytest.raises(MisconfigurationException, match=r": w1 changed"):
        unheard.refuse({id(stepping)})


def test_it_looks_ever_more_rarely_and_no_more_once_all_were_heard() -> None:
    weight = nn.Parameter(torch.ones(2))
    unheard = watch(weight)
    for _ in range(4):
        unheard.refuse(set())
    weight.data += 1
    for _ in range(3):
        unheard.refuse(set())
    with pytest.raises(MisconfigurationException):
        unheard.refuse(set())  # the eighth time
    unheard = watch(weight)
    unheard.refuse({id(weight)})
    weight.data += 1
    for _ in range(8):
        unheard.refuse(set())
