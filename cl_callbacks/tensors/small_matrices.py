"""Decompositions of small matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

LARGEST = 128
"""Largest number of rows of a small matrix, whose eigenvectors take a CPU less than a millisecond."""


def small_on_cpu(decompose: Callable[[Tensor], Iterable[Tensor]], matrix: Tensor) -> list[Tensor]:
    """Decomposes a matrix: on the CPU if it is small, else on its own device.

    An accelerator takes longer for a small matrix than a CPU, may give other results the next time, has
    ``torch.linalg.eig`` only if torch was built with another library, and the host waits for it in any case,
    to hear whether the iteration has converged.

    Args:
        decompose: such as ``torch.linalg.eigh``.
        matrix: of shape ``(n, n)``, on any device.

    Returns:
        The results, on the matrix's device.

    Example:
        >>> import torch
        >>> values, vectors = small_on_cpu(torch.linalg.eigh, torch.diag(torch.tensor([3.0, 1.0])))
        >>> values
        tensor([1., 3.])
    """
    small = len(matrix) <= LARGEST
    return [found.to(matrix.device) for found in decompose(matrix.cpu() if small else matrix)]
