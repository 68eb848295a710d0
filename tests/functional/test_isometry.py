"""The nearest isometry, against the singular value decomposition."""

from __future__ import annotations

import pytest
import torch

from cl_callbacks.functional import isometry_scale, nearest_isometry
from tests.references.renewal import nearest_isometry as by_svd


@pytest.mark.parametrize("shape", [(5, 5), (9, 4), (4, 9), (2, 3, 6, 4), (1, 1), (3, 1)])
def test_is_the_polar_factor(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = nearest_isometry(matrices, iterations=None)
    torch.testing.assert_close(found, by_svd(matrices), rtol=0, atol=1e-9)
    values = torch.linalg.svdvals(found)
    torch.testing.assert_close(values, torch.ones_like(values), rtol=0, atol=1e-9)


def test_ten_iterations_reach_a_twentieth_of_the_norm_and_five_do_not() -> None:
    matrix = torch.diag(torch.tensor([1.0, 0.05], dtype=torch.float64))
    smallest = [torch.linalg.svdvals(nearest_isometry(matrix, n))[-1].item() for n in (1, 5, 10, 20)]
    assert smallest[0] == pytest.approx(1.5 * 0.05 / matrix.norm().item(), rel=2e-3)
    assert smallest[1] < 0.5 and smallest[2] > 0.98 and smallest[3] == pytest.approx(1.0, abs=1e-9)


def test_what_is_zero_stays_zero() -> None:
    assert not nearest_isometry(torch.zeros(3, 2)).any()
    found = nearest_isometry(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), iterations=None)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


def test_half_precision_is_computed_in_single() -> None:
    assert nearest_isometry(torch.randn(3, 3).bfloat16()).dtype == torch.float32


def test_the_scale_keeps_the_size_of_activations() -> None:
    """A unit of the outputs is as large on average as one of the inputs, for fewer outputs than inputs."""
    torch.manual_seed(0)
    inputs = torch.randn(4000, 30)
    weight = isometry_scale(10, 30) * nearest_isometry(torch.randn(10, 30), iterations=None)
    mean_square = (inputs @ weight.T).square().sum(1).mean() / 30
    assert mean_square.item() == pytest.approx(10 / 30 * 10 / 30, rel=0.05)
