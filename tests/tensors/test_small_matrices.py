"""Decompositions of small matrices, which are on the CPU."""

from __future__ import annotations

import pytest
import torch

from cl_callbacks.tensors.small_matrices import LARGEST, small_on_cpu


@pytest.mark.parametrize("rows", [1, LARGEST, LARGEST + 1])
def test_values_and_vectors_make_up_the_matrix(rows: int) -> None:
    torch.manual_seed(0)
    half = torch.randn(rows, rows, dtype=torch.float64)
    values, vectors = small_on_cpu(torch.linalg.eigh, half + half.T)
    torch.testing.assert_close(vectors @ values.diag() @ vectors.T, half + half.T)
