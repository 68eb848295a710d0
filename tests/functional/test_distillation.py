"""The divergence from a teacher, against number by number and in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from cl_callbacks.functional import distillation_loss, positions_with_label
from cl_callbacks.functional.likelihood import Reading
from tests.references.distillation import distilled


@pytest.mark.parametrize("grown", [0, 2])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
def test_the_loss_is_that_of_the_reference(likelihood: Any, direction: Any, grown: int) -> None:
    generator = torch.Generator().manual_seed(0)
    new, old = (torch.randn(5, n, generator=generator, dtype=torch.float64) for n in (4 + grown, 4))
    found = distillation_loss(new, old, likelihood=likelihood, direction=direction, temperature=3.0)
    wanted = distilled(new.tolist(), old.tolist(), likelihood, 3.0, direction == "reverse")
    assert math.isclose(float(found), wanted, rel_tol=1e-12)


def test_closed_form_of_two_classes() -> None:
    """KL((1/2, 1/2) || (p, 1-p)) = -log(2) - (log p + log(1-p)) / 2, and the gradient T (q - p) / N."""
    new = torch.tensor([[math.log(3.0) * 2, 0.0]], dtype=torch.float64, requires_grad=True)
    loss = distillation_loss(new, torch.zeros(1, 2, dtype=torch.float64), temperature=2.0)
    assert math.isclose(float(loss), 4 * (-math.log(2) - math.log(3 / 16) / 2), rel_tol=1e-12)
    loss.backward()
    assert new.grad is not None
    torch.testing.assert_close(new.grad, torch.tensor([[0.5, -0.5]], dtype=torch.float64))


def test_masked_positions_count_nothing() -> None:
    new, old = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[True, False, True], [False, False, True]])
    found = distillation_loss(new, old, mask=mask)
    torch.testing.assert_close(found, distillation_loss(new[mask], old[mask]))
    new[~mask] = torch.nan
    torch.testing.assert_close(found, distillation_loss(new, old, mask=mask))
    assert distillation_loss(new, old, mask=torch.zeros_like(mask)) == 0


def test_classes_that_are_masked_by_infinity() -> None:
    new = torch.tensor([[1.0, 2.0, -torch.inf]], requires_grad=True)
    old = torch.tensor([[0.5, 1.0, -torch.inf]])
    for direction in ("forward", "reverse"):
        loss = distillation_loss(new, old, direction=direction)
        torch.testing.assert_close(loss, distillation_loss(new[:, :2], old[:, :2], direction=direction))
        (gradient,) = torch.autograd.grad(loss, new)
        assert gradient.isfinite().all() and gradient[0, 2] == 0


def test_outputs_that_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"may become more, .* but not fewer"):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 4))


def test_positions_with_a_label() -> None:
    outputs, labels = torch.zeros(2, 3, 4), torch.tensor([[1, -100, 2], [0, 3, -100]])
    wanted = labels != -100
    for given, dim in ((labels, -1), (labels.unsqueeze(-1), -1), (labels.unsqueeze(1), 1)):
        found = positions_with_label(outputs, given, Reading("categorical", dim))
        assert found is not None and torch.equal(found, wanted)
    assert positions_with_label(outputs, None, Reading()) is None
    assert positions_with_label(outputs, torch.zeros_like(outputs), Reading()) is None, "probabilities"
    targets = torch.tensor([[1.0, -100.0]])
    found = positions_with_label(torch.zeros(1, 2), targets, Reading("bernoulli"))
    assert found is not None and found.tolist() == [[True, False]]
