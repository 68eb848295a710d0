"""What is read off an optimizer, of torch or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from cl_callbacks.synapses.optimizers import closure_of, inner_optimizers, with_closure, with_inner
from tests.odd_optimizers import Delegating, Lookahead, Plain, Sam


def sgd(module: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(module.parameters(), lr=0.1)


def test_inner_optimizers_are_found_among_attributes_lists_and_mappings() -> None:
    module = nn.Linear(2, 2)
    lookahead = Lookahead(sgd(module))
    outer: Any = Delegating(lookahead)
    outer.more, outer.named = [sgd(module)], {"plain": Plain(module.parameters())}
    assert inner_optimizers(outer) == [lookahead, outer.more[0], outer.named["plain"]]
    assert with_inner([outer, lookahead]) == [
        outer, lookahead, outer.more[0], outer.named["plain"], lookahead._base_optimizer,
    ]  # fmt: skip
    assert [type(inner) for inner in inner_optimizers(Sam(module.parameters(), torch.optim.SGD))] == [
        torch.optim.SGD
    ]


def test_what_steps_other_parameters_or_only_looks_like_an_optimizer_is_not_inner() -> None:
    module, other = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer: Any = sgd(module)
    optimizer.other, optimizer.itself = sgd(other), optimizer
    optimizer.schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert inner_optimizers(optimizer) == []
    assert inner_optimizers(Sam.__new__(Sam)) == []  # without any attribute


@pytest.mark.parametrize("given", [((0, int, 1), {}), ((0,), {"closure": int, "more": 1})])
def test_a_closure_is_found_and_replaced_wherever_it_stands(given: Any) -> None:
    assert closure_of(0, *given) is int
    args, kwargs = with_closure(float, *given)
    assert closure_of(0, args, kwargs) is float
    assert (len(args), kwargs.keys()) == (len(given[0]), given[1].keys())


def test_without_a_closure_there_is_none_and_something_else_is_refused() -> None:
    assert closure_of(0, (0,), {}) is None
    assert closure_of(0, (0, None), {}) is None
    with pytest.raises(MisconfigurationException, match=r"SGD\.step was given a list in place"):
        closure_of(sgd(nn.Linear(1, 1)), (0, [1]), {})
