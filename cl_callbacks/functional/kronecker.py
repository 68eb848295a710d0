r"""Kronecker-factored curvature of linear and convolutional layers.

A layer with weight matrix :math:`W` (bias as its last column) that saw inputs :math:`a` (with a trailing 1)
and whose outputs receive the cotangents :math:`\delta` has the Fisher information
:math:`\mathrm E[\delta\delta^\top \otimes aa^\top]`, approximated by the product of the two means

.. math:: G \otimes A, \qquad G = \mathrm E[\delta\delta^\top], \qquad A = \mathrm E[aa^\top],

which is exact where :math:`\delta` and :math:`a` are independent. Against the diagonal it knows which
*combinations* of weights matter. With several positions for each sample (the pixels of a convolution, the
tokens of a sequence) :math:`G` is summed and :math:`A` averaged over them.

Sources: Martens & Grosse 2015 (arXiv 1503.05671); convolutions: Grosse & Martens 2016 (1602.01573);
several tasks: Ritter et al. 2018 (1805.07810).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from cl_callbacks.functional.layer_gradients import Outer, layer_gradients
from cl_callbacks.functional.per_sample import Cotangents, Forward
from cl_callbacks.functional.recorded_calls import finite_pass, output_cotangents


class Factors(NamedTuple):
    r"""The two factors of a layer's curvature :math:`G \otimes A`."""

    inputs: Tensor
    """:math:`A`, of shape ``(I, I)``."""
    outputs: Tensor
    """:math:`G`, of shape ``(O, O)``."""


Factored = nn.Linear | nn.Conv2d
"""Layers whose curvature is factored."""


def has_factors(module: nn.Module) -> TypeGuard[Factored]:
    """Whether the curvature of the module's weights is known in factors."""
    plain = any(type(module).forward is kind.forward for kind in (nn.Linear, nn.Conv2d))
    return plain and getattr(module, "groups", 1) == 1


class KroneckerFactors:
    r"""Sums of the factors of some layers of a network, batch after batch.

    Args:
        layers: by any name; modules for which :func:`has_factors` holds.
        forward: what gives ``(outputs, labels)`` of a batch; outputs ``(N, ...)``, one row a sample.

    Attributes:
        explained: of each layer, whether its factors stood the test in the batches so far: their
            gradient of the first batch is the one that autograd finds. A weight that is also used outside
            its layer's call fails it.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> factors = KroneckerFactors({"net": net}, lambda x: (net(x), None))
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> factors.sums(x, lambda outputs, labels: [torch.ones_like(outputs)])
        ([tensor([[5.]]), tensor([[2.]])], 2)
    """

    def __init__(self, layers: Mapping[str, Factored], forward: Forward) -> None:
        self.layers, self.forward = dict(layers), forward
        self.explained = dict.fromkeys(layers, True)
        self._checked = False

    def zeros(self) -> list[Tensor]:
        """The sums over no sample."""
        found = []
        for layer in self.layers.values():
            rows = _matrix(layer.weight)
            for size in (rows.shape[1] + (layer.bias is not None), rows.shape[0]):
                found.append(rows.new_zeros(size, size))
        return found

    def sums(self, batch: Any, cotangents: Cotangents) -> tuple[list[Tensor], int]:
        """Sum over the batch's samples (and, for the outputs, over cotangents), and their number.

        A sample whose outputs are not finite is left out.

        Returns:
            Input factor and output factor of the first layer, of the second, and so on; the count.
        """
        names: dict[nn.Module, str] = {layer: name for name, layer in self.layers.items()}
        totals = dict(zip(self.layers, paired(self.zeros()), strict=True))
        batch, outputs, labels, calls = finite_pass(names, self.forward, batch)
        for k, vector in enumerate(cotangents(outputs.detach(), labels) if len(outputs) else ()):
            seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
            for call, (delta,) in zip(calls, output_cotangents(outputs, calls, vector), strict=True):
                if delta is not None:
                    seen.setdefault(names[call.module], []).append(
                        _positions(call.module, call.inputs, delta)
                    )
            if not self._checked:
                self._check(outputs, vector, seen)
            for name, uses in seen.items():
                a, delta = (torch.cat(parts) for parts in zip(*uses, strict=True))
                if k == 0:
                    totals[name].inputs.add_(a.T @ a, alpha=len(outputs) / len(a))
                totals[name].outputs.add_(delta.T @ delta)
        return [factor for pair in totals.values() for factor in pair], len(outputs)

    def _check(
        self, outputs: Tensor, vector: Tensor, seen: Mapping[str, list[tuple[Tensor, Tensor]]]
    ) -> None:
        self._checked = True
        weights = [layer.weight for layer in self.layers.values()]
        truth = torch.autograd.grad(outputs, weights, vector, retain_graph=True, allow_unused=True)
        for (name, layer), expected in zip(self.layers.items(), truth, strict=True):
            expected = _matrix(torch.zeros_like(layer.weight) if expected is None else expected)
            found = torch.zeros_like(expected)
            for a, delta in seen.get(name, []):
                found += delta.T @ a[:, : expected.shape[1]]
            # Generous against rounding in the model's own dtype, far below any missing term.
            self.explained[name] = bool((found - expected).norm() <= 1e-2 * expected.norm())


def paired(flat: Sequence[Tensor]) -> list[Factors]:
    """Input factor, output factor, input factor, …, as pairs."""
    return [Factors(*pair) for pair in zip(flat[::2], flat[1::2], strict=True)]


def _matrix(weight: Tensor) -> Tensor:
    return weight.detach().flatten(1).to(torch.promote_types(weight.dtype, torch.float32))


def _positions(layer: nn.Module, inputs: Any, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs (with a trailing 1 for a bias) and cotangents at all positions: ``(P, I)``, ``(P, O)``."""
    args, kwargs = inputs
    outer = layer_gradients(layer, args[0] if args else kwargs["input"], delta)["weight"]
    assert isinstance(outer, Outer)
    a, delta = outer.inputs.flatten(0, 2), outer.delta.flatten(0, 2)
    return (a if layer.bias is None else nn.functional.pad(a, (0, 1), value=1.0)), delta


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


class Eigen(NamedTuple):
    """Eigenvalues and eigenvectors of both factors of a layer."""

    input_values: Tensor
    input_vectors: Tensor
    output_values: Tensor
    output_vectors: Tensor


def decompose(factors: Factors) -> Eigen:
    """What :func:`relax_kronecker` needs of a pair of factors; worth keeping, since it is no cheap thing."""
    (a_values, a_vectors), (g_values, g_vectors) = map(torch.linalg.eigh, factors)
    # Positive semi-definite but for rounding.
    return Eigen(a_values.clamp_min(0.0), a_vectors, g_values.clamp_min(0.0), g_vectors)


def relax_kronecker(change: Tensor, eigen: Eigen, step: float) -> Tensor:
    r"""Proximal step of the penalty of one pair, :math:`(1 + \eta k\, G \otimes A)^{-1} D`.

    In the eigenvectors of both factors it divides each number by :math:`1 + \eta k\,s_G s_A`.

    Args:
        change: :math:`D`, weights minus anchor with the bias as last column, of shape ``(O, I)``.
        eigen: the pair, by :func:`decompose`.
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
    r"""The Kronecker product nearest to a sum of them, :math:`\min \|\sum_k G_k\otimes A_k - G\otimes A\|_F`.

    A sum of Kronecker products is not one itself. Rearranged, each is the outer product
    :math:`\mathrm{vec}(G_k)\mathrm{vec}(A_k)^\top`, and the nearest one is the leading singular pair of
    the sum, which lies in the span of the terms: a problem as small as their number. The factors stay
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
    values, vectors = torch.linalg.eig(gram_a @ gram_g)
    x = vectors[:, values.real.argmax()].real.abs()
    y = gram_g @ x
    u, v = x @ g, y @ a
    tiny = torch.finfo(u.dtype).tiny  # where nothing ever mattered, all is 0
    norm_u, norm_v = u.norm(), v.norm()
    size = (y @ gram_a @ y / (norm_u * norm_v).clamp_min(tiny)).sqrt()
    first = terms[0]
    return Factors(
        (v * (size / norm_v.clamp_min(tiny))).view_as(first.inputs).to(first.inputs.dtype),
        (u * (size / norm_u.clamp_min(tiny))).view_as(first.outputs).to(first.outputs.dtype),
    )
