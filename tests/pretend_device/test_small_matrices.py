"""Small matrices are decomposed on the CPU, others where they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cl_callbacks.tensors.small_matrices import LARGEST, small_on_cpu
from tests.pretend_device.device import DEVICE


@pytest.mark.parametrize(("rows", "where"), [(2, "cpu"), (LARGEST, "cpu"), (LARGEST + 1, DEVICE)])
def test_where_a_matrix_is_decomposed(rows: int, where: str) -> None:
    seen: list[str] = []

    def decompose(matrix: Tensor) -> list[Tensor]:
        seen.append(matrix.device.type)
        return [matrix.diagonal()]

    (found,) = small_on_cpu(decompose, torch.eye(rows, device=DEVICE))
    assert seen == [where]
    assert found.device.type == DEVICE
