"""Averages of weights over tasks, against a loop over single weights."""

from __future__ import annotations

import pytest
import torch

from cl_callbacks.functional import draw_back_, merge_weights_
from tests.references.averaging import mean_over_tasks, towards


def of_tasks(tasks: int, size: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights after each task, and shares of which some are 0, of the first weight all."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(tasks, size, generator=generator, dtype=torch.float64)
    shares = torch.rand(tasks, size, generator=generator, dtype=torch.float64)
    shares[shares < 0.3] = 0.0
    shares[:, 0] = 0.0
    return values, shares


def test_merged_one_after_the_other_they_are_the_mean_of_all() -> None:
    values, shares = of_tasks(5)
    old, total = [torch.zeros(40, dtype=torch.float64)], [torch.zeros(40, dtype=torch.float64)]
    for value, share in zip(values, shares, strict=True):
        weight = [value.clone()]
        merge_weights_(weight, old, total, [share])
    expected = torch.tensor(mean_over_tasks(values.tolist(), shares.tolist()), dtype=torch.float64)
    torch.testing.assert_close(weight[0], expected, rtol=0, atol=1e-14)
    assert torch.equal(old[0], weight[0])
    torch.testing.assert_close(total[0], shares.sum(0), rtol=0, atol=1e-14)


def test_with_its_importance_it_is_the_minimum_of_all_tasks_together() -> None:
    """At which the gradient of the sum of all quadratics is 0."""
    minima, curvatures = of_tasks(4)
    curvatures += 0.1
    old, total = [torch.zeros(40, dtype=torch.float64)], [torch.zeros(40, dtype=torch.float64)]
    for minimum, curvature in zip(minima, curvatures, strict=True):
        weight = [minimum.clone()]
        merge_weights_(weight, old, total, [curvature])
    gradient = (curvatures * (weight[0] - minima)).sum(0)
    assert gradient.abs().max() < 1e-14


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9])
def test_a_fixed_share_of_the_old_weights(share: float) -> None:
    (old, weight), (total, new) = of_tasks(2)
    expected = [
        towards(*three, share) for three in zip(*(t.tolist() for t in (weight, old, total)), strict=True)
    ]
    at_the_end, within, kept = [weight.clone()], [weight.clone()], [old.clone()]
    merge_weights_(at_the_end, kept, [total.clone()], [new], share)
    draw_back_(within, [old], [total], share)
    for found in (at_the_end, within):
        torch.testing.assert_close(found[0], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-14)
    assert torch.equal(kept[0], at_the_end[0])


def test_what_is_not_averaged_stays_bit_for_bit() -> None:
    weight, old = torch.randn(1000), torch.randn(1000)
    nothing, all_of_it = torch.zeros(1000), torch.ones(1000)
    first, kept = [weight.clone()], [old.clone()]
    merge_weights_(first, kept, [nothing.clone()], [all_of_it])
    assert torch.equal(first[0], weight)
    untouched = [weight.clone()]
    merge_weights_(untouched, [old.clone()], [all_of_it.clone()], [nothing])
    assert torch.equal(untouched[0], old)
    narrow = [weight.bfloat16()]
    merge_weights_(narrow, [old.clone()], [nothing.clone()], [all_of_it])
    assert torch.equal(narrow[0], weight.bfloat16())
