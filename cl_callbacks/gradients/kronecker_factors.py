"""Kronecker factors of the curvature of linear and convolutional layers, summed batch after batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from cl_callbacks.functional.kronecker import paired
from cl_callbacks.gradients.per_sample import Cotangents, Forward, PerSampleGradients
from cl_callbacks.gradients.precision import wide_dtype, widened
from cl_callbacks.gradients.sample_gradients import OfCall, Outer

Factored = nn.Linear | nn.Conv2d
"""Layers whose curvature can be approximated by Kronecker factors."""


def has_factors(module: nn.Module) -> TypeGuard[Factored]:
    """Whether Kronecker factors of the module's curvature are implemented: linear, or ungrouped Conv2d."""
    plain = any(type(module).forward is kind.forward for kind in (nn.Linear, nn.Conv2d))
    return plain and getattr(module, "groups", 1) == 1


class KroneckerFactors:
    r"""Sums of the Kronecker factors of some layers of a network, batch after batch.

    Args:
        module: the network.
        layers: layers of it for which :func:`has_factors` holds, by the name of their weight.
        forward: function from a batch to ``(outputs, labels)``; outputs ``(N, ...)``, one row per sample.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> factors = KroneckerFactors(net, {"weight": net}, lambda x: (net(x), None))
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> factors.sums(x, lambda outputs, labels: [torch.ones_like(outputs)])
        ([tensor([[5.]]), tensor([[2.]])], 2)
    """

    def __init__(self, module: nn.Module, layers: Mapping[str, Factored], forward: Forward) -> None:
        self.layers = dict(layers)
        weights = {name: layer.weight for name, layer in layers.items()}
        biases = {bias_name(name): layer.bias for name, layer in layers.items() if layer.bias is not None}
        self._gradients = PerSampleGradients(module, weights | biases, forward)
        self._inside: set[str] = set()  # weights that are used by an enclosing module

    @property
    def explained(self) -> dict[str, bool]:
        """Whether each layer's calls account for its per-sample gradients, in all batches so far.

        False for a weight that is also used elsewhere, or in a call that mixes samples.
        """
        fallback = self._gradients.fallback | self._inside
        return {name: not {name, bias_name(name)} & fallback for name in self.layers}

    def zeros(self) -> list[Tensor]:
        """Zero factors ``(I, I)`` and ``(O, O)`` of each layer, in the order of :meth:`sums`."""
        found = []
        for layer in self.layers.values():
            rows = layer.weight.detach().flatten(1)
            for size in (rows.shape[1] + (layer.bias is not None), rows.shape[0]):
                found.append(rows.new_zeros(size, size, dtype=wide_dtype(rows)))
        return found

    @property
    def rows(self) -> int:
        """Number of rows of the latest batch that were to be measured, with those that are not finite."""
        return self._gradients.rows

    def sums(self, batch: Any, cotangents: Cotangents, most: int | None = None) -> tuple[list[Tensor], int]:
        """Sums over the batch's samples (output factors: also over cotangents), and the number of samples.

        Samples whose outputs are not finite are left out; with ``most``, also those after so many.

        Returns:
            Input factor and output factor of the first layer, of the second, and so on; the number.
        """
        totals = dict(zip(self.layers, paired(self.zeros()), strict=True))
        passed = self._gradients.run(batch, most)
        outputs, samples = passed.outputs, passed.samples
        for k, vector in enumerate(cotangents(widened(outputs), passed.labels) if samples else ()):
            parts = self._gradients.parts(outputs, passed.calls, vector)
            for name, layer in self.layers.items():
                # Removed one by one, so that the inputs and cotangents of one layer are copied at a time.
                found = parts.pop(name, [])
                parts.pop(bias_name(name), None)
                closed = (part.computed for part in found if isinstance(part, OfCall))
                uses = [part for part in closed if isinstance(part, Outer)]
                if len(uses) < len(found):
                    self._inside.add(name)
                if not uses or not self.explained[name]:
                    continue
                pairs = (_positions(use, samples) for use in uses)
                a, delta = (torch.cat(sides) for sides in zip(*pairs, strict=True))
                if k == 0:
                    a = a if layer.bias is None else nn.functional.pad(a, (0, 1), value=1.0)
                    totals[name].inputs.add_(a.T @ a, alpha=samples / len(a))
                totals[name].outputs.add_(delta.T @ delta)
        return [factor for pair in totals.values() for factor in pair], samples


def _positions(use: Outer, samples: int) -> tuple[Tensor, Tensor]:
    """Inputs and cotangents at all positions of the first samples: ``(P, I)``, ``(P, O)``."""
    delta, inputs = use.sides(0, samples)
    return inputs.flatten(0, 2), delta.flatten(0, 2)


def bias_name(weight: str) -> str:
    """Name of the bias beside a weight."""
    return weight.removesuffix("weight") + "bias"
