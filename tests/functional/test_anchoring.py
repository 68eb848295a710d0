"""The quadratic pull against its closed forms and a list of stored anchors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cl_callbacks.functional import (
    add_quadratic_pull_,
    merge_each_,
    merge_latest_,
    quadratic_penalty,
    relax_to_anchor_,
)
from tests.references.ewc import OnlineEWC, SeparateEWC


def tensors(seed: int, positive: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = [torch.randn(s, generator=generator, dtype=torch.float64) for s in ((4, 3), (3,))]
    return [t.square() for t in found] if positive else found


@pytest.mark.parametrize("decay", [1.0, 0.7])
@pytest.mark.parametrize("anchors", ["latest", "each"])
def test_merged_state_equals_stored_tasks(anchors: str, decay: float) -> None:
    importance = [torch.zeros_like(t) for t in tensors(0)]
    anchor = tensors(99)
    slow = SeparateEWC(decay) if anchors == "each" else OnlineEWC(decay)
    offset = 0.0
    for k in range(20):
        fisher, theta = tensors(2 * k, positive=True), tensors(2 * k + 1)
        fisher[0][0] = 0.0  # synapses that never matter to any task
        if anchors == "each":
            growth = merge_each_(importance, anchor, fisher, theta, decay)
            offset = decay * offset + growth.item()
        else:
            merge_latest_(importance, anchor, fisher, theta, decay)
        slow.add(dict(enumerate(fisher)), dict(enumerate(theta)))
    now = [t.requires_grad_() for t in tensors(1000)]
    expected = slow.penalty(dict(enumerate(now)), strength=3.0)
    found = quadratic_penalty(now, importance, anchor, 3.0, offset)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    pull = [torch.zeros_like(t) for t in now]
    with torch.no_grad():
        add_quadratic_pull_(pull, now, importance, anchor, 3.0)
    for a, b in zip(pull, torch.autograd.grad(expected, now), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_pull_is_the_finite_difference_of_the_penalty() -> None:
    theta, importance, anchor = tensors(0), tensors(1, positive=True), tensors(2)
    pull = [torch.zeros_like(t) for t in theta]
    add_quadratic_pull_(pull, theta, importance, anchor, 5.0)
    epsilon = 1e-6
    for k, i in ((0, (1, 2)), (1, (0,))):
        values = []
        for sign in (1, -1):
            moved = [t.clone() for t in theta]
            moved[k][i] += sign * epsilon
            values.append(quadratic_penalty(moved, importance, anchor, 5.0))
        slope = (values[0] - values[1]) / (2 * epsilon)
        torch.testing.assert_close(pull[k][i], slope, rtol=1e-6, atol=0)


def test_one_weight_moved_by_delta() -> None:
    importance, anchor = tensors(1, positive=True), tensors(2)
    theta = [t.clone() for t in anchor]
    theta[1][2] += 0.25
    expected = 0.5 * 4.0 * importance[1][2] * 0.25**2
    torch.testing.assert_close(quadratic_penalty(theta, importance, anchor, 4.0), expected)


@pytest.mark.parametrize(("anchors", "minimum"), [("latest", 2.0), ("each", 40 / 21)])
def test_three_quadratics(anchors: str, minimum: float) -> None:
    """Curvatures (1, 2, 4), minima (0, 1, 3): the latest anchor finds the joint minimum."""
    importance, anchor = [torch.zeros(1).double()], [torch.zeros(1).double()]
    merge = merge_latest_ if anchors == "latest" else merge_each_
    for curvature, centre in ((1.0, 0.0), (2.0, 1.0), (4.0, 3.0)):
        # Where the gradient of this task's loss and the pull of the others cancel.
        pull = [torch.zeros(1).double()]
        add_quadratic_pull_(pull, [torch.zeros(1).double()], importance, anchor, 1.0)
        theta = (curvature * centre - pull[0]) / (curvature + importance[0])
        merge(importance, anchor, [torch.full((1,), curvature).double()], [theta])
    assert theta.item() == pytest.approx(minimum, abs=1e-12)


@pytest.mark.parametrize("step", [1e-3, 1.0, 1e12])
def test_the_proximal_step_minimises(step: float) -> None:
    """Penalty plus squared distance over twice the step: its gradient is 0 where the step ends."""
    start, importance, anchor = tensors(0), tensors(1, positive=True), tensors(2)
    theta = [t.clone() for t in start]
    relax_to_anchor_(theta, importance, anchor, [step, 2.0 * step])
    for i, size in enumerate((step, 2.0 * step)):
        gradient = size * importance[i] * (theta[i] - anchor[i]) + (theta[i] - start[i])
        rounding = 1e-15 * (1.0 + size * importance[i]) * (start[i].abs() + anchor[i].abs())
        assert (gradient.abs() <= rounding).all()


def test_wide_state_beside_half_precision_weights() -> None:
    theta = [torch.ones(3, dtype=torch.bfloat16)]
    gradient = [torch.zeros(3, dtype=torch.bfloat16)]
    add_quadratic_pull_(gradient, theta, [torch.full((3,), 2.0)], [torch.zeros(3)], 0.5)
    assert gradient[0].dtype is torch.bfloat16
    assert gradient[0].tolist() == [1.0, 1.0, 1.0]
