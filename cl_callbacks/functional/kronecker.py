r"""Kronecker-factored curvature of linear and convolutional layers.

A layer with weight matrix :math:`W` (bias as its last column), inputs :math:`a` (with a trailing 1) and
cotangents :math:`\delta` of its outputs has the Fisher information
:math:`\mathrm E[\delta\delta^\top \otimes aa^\top]`, approximated by the product of the two means

.. math:: G \otimes A, \qquad G = \mathrm E[\delta\delta^\top], \qquad A = \mathrm E[aa^\top],

which is exact where :math:`\delta` and :math:`a` are independent. Unlike the diagonal it measures which
*combinations* of weights matter. With several positions for each sample (the pixels of a convolution, the
tokens of a sequence) :math:`G` is summed and :math:`A` averaged over them.

Sources: Martens & Grosse 2015 (arXiv 1503.05671); convolutions: Grosse & Martens 2016 (1602.01573);
several tasks: Ritter et al. 2018 (1805.07810).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cl_callbacks.tensors.small_matrices import small_on_cpu


class Factors(NamedTuple):
    r"""The two factors of a layer's curvature :math:`G \otimes A`."""

    inputs: Tensor
    """:math:`A`, of shape ``(I, I)``."""
    outputs: Tensor
    """:math:`G`, of shape ``(O, O)``."""


def paired(flat: Sequence[Tensor]) -> list[Factors]:
    """Pairs a flat sequence: input factor, output factor, input factor, …."""
    return [Factors(*pair) for pair in zip(flat[::2], flat[1::2], strict=True)]


def kronecker_pull(change: Tensor, factors: Sequence[Factors]) -> Tensor:
    r"""Gradient :math:`\sum_k G_k D A_k` of the penalty :math:`\frac12\sum_k\mathrm{tr}(G_k D A_k D^\top)`.

    Args:
        change: :math:`D`, weights minus anchor with the bias as last column, of shape ``(O, I)``.
        factors: one pair for each term.

    Example:
        >>> one = torch.ones(1, 1)
        >>> kronecker_pull(3.0 * one, [Factors(2.0 * one, one), Factors(one, one)])
        tensor([[9.]])
    """
    total = torch.zeros_like(change)
    for inputs, outputs in factors:
        total.addmm_(outputs @ change, inputs)
    return total


def kronecker_diagonal(factors: Sequence[Factors]) -> Tensor:
    r"""Diagonal of :math:`\sum_k G_k\otimes A_k`, as a matrix of shape ``(O, I)``.

    Example:
        >>> kronecker_diagonal([Factors(torch.diag(torch.tensor([1.0, 3.0])), torch.diag(torch.ones(1)))])
        tensor([[1., 3.]])
    """
    terms = [torch.outer(outputs.diagonal(), inputs.diagonal()) for inputs, outputs in factors]
    return torch.stack(terms).sum(0)


def kronecker_trace(factors: Factors) -> Tensor:
    r"""Trace of :math:`G\otimes A`, the sum of the curvature over all weights of a layer.

    Example:
        >>> kronecker_trace(Factors(torch.diag(torch.tensor([1.0, 3.0])), torch.diag(torch.ones(2))))
        tensor(8.)
    """
    return factors.outputs.trace() * factors.inputs.trace()


def curvature_bound(factors: Sequence[Factors]) -> Tensor:
    r"""Upper bound :math:`\sum_k\|G_k\|_F\|A_k\|_F` of the curvature in any direction.

    Example:
        >>> curvature_bound([Factors(torch.diag(torch.tensor([3.0, 4.0])), 2.0 * torch.ones(1, 1))])
        tensor(10.)
    """
    return torch.stack([outputs.norm() * inputs.norm() for inputs, outputs in factors]).sum()


class Eigen(NamedTuple):
    """Eigenvalues and eigenvectors of both factors of a layer."""

    input_values: Tensor
    input_vectors: Tensor
    output_values: Tensor
    output_vectors: Tensor


def decompose(factors: Factors) -> Eigen:
    """Eigendecomposition of both factors, for :func:`relax_kronecker`; worth caching, since it is slow."""
    (a_values, a_vectors), (g_values, g_vectors) = (small_on_cpu(torch.linalg.eigh, t) for t in factors)
    # Positive semi-definite up to rounding.
    return Eigen(a_values.clamp_min(0.0), a_vectors, g_values.clamp_min(0.0), g_vectors)


def relax_kronecker(change: Tensor, eigen: Eigen, step: float) -> Tensor:
    r"""Proximal step of the penalty of one pair, :math:`(1 + \eta k\, G \otimes A)^{-1} D`.

    In the eigenbases of both factors it divides each element by :math:`1 + \eta k\,s_G s_A`.

    Args:
        change: :math:`D`, weights minus anchor with the bias as last column, of shape ``(O, I)``.
        eigen: the result of :func:`decompose` for the pair.
        step: :math:`\eta k`, learning rate times stiffness.

    Example:
        >>> one = torch.ones(1, 1)
        >>> relax_kronecker(6.0 * one, decompose(Factors(2.0 * one, one)), step=1.0)
        tensor([[2.]])
    """
    rotated = eigen.output_vectors.T @ change @ eigen.input_vectors
    rotated /= 1.0 + step * torch.outer(eigen.output_values, eigen.input_values)
    return eigen.output_vectors @ rotated @ eigen.input_vectors.T


def nearest_sum(terms: Sequence[Factors]) -> Factors:
    r"""Kronecker product nearest to a sum of them, :math:`\min \|\sum_k G_k\otimes A_k - G\otimes A\|_F`.

    A sum of Kronecker products is not one itself. Rearranged, each is the outer product
    :math:`\mathrm{vec}(G_k)\mathrm{vec}(A_k)^\top`, and the nearest one is the leading singular pair of
    the sum, which lies in the span of the terms: a problem of the size of their number. The factors stay
    positive semi-definite. Source: Van Loan & Pitsianis 1993.

    Returns:
        Factors of equal norm.

    Example:
        >>> one = torch.ones(1, 1)
        >>> pair = nearest_sum([Factors(2.0 * one, 3.0 * one), Factors(one, one)])
        >>> round((pair.inputs * pair.outputs).item(), 4)
        7.0
    """
    a, g = (torch.stack([t.flatten().double() for t in side]) for side in zip(*terms, strict=True))
    # (Σ g_k a_kᵀ) v = s u with u = Σ x_k g_k, v = Σ y_k a_k: both are combinations of few vectors.
    gram_a, gram_g = a @ a.T, g @ g.T
    (x,) = small_on_cpu(_leading, gram_a @ gram_g)
    y = gram_g @ x
    u, v = x @ g, y @ a
    tiny = torch.finfo(u.dtype).tiny  # all factors may be 0
    norm_u, norm_v = u.norm(), v.norm()
    size = (y @ gram_a @ y / (norm_u * norm_v).clamp_min(tiny)).sqrt()
    first = terms[0]
    return Factors(
        (v * (size / norm_v.clamp_min(tiny))).view_as(first.inputs).to(first.inputs.dtype),
        (u * (size / norm_u.clamp_min(tiny))).view_as(first.outputs).to(first.outputs.dtype),
    )


def _leading(matrix: Tensor) -> list[Tensor]:
    """Magnitudes of the eigenvector of the largest eigenvalue."""
    values, vectors = torch.linalg.eig(matrix)
    return [vectors[:, values.real.argmax()].real.abs()]
