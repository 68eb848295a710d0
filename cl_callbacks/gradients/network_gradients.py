"""Squared per-sample gradients by running the whole network again: vectorised, or sample by sample.

The fallback of :mod:`~cl_callbacks.gradients.per_sample`, for parameters that are used outside the
module that owns them.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from cl_callbacks.gradients.sample_gradients import Magnitude
from cl_callbacks.guards.once import first_time
from cl_callbacks.tensors.batches import split_samples, take_samples

logger = logging.getLogger(__name__)


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """Dtype in which squares are summed: float32, or the tensor's own where that is wider."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _wide(gradient: Tensor) -> Tensor:
    return gradient.to(wide_dtype(gradient), copy=True)


class _Within(nn.Module):
    """Lets ``functional_call`` swap a module's parameters under any function that uses the module."""

    def __init__(self, module: nn.Module, function: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, batch: Any) -> Tensor:
        return self.function(batch)


class WholeNetwork:
    """Computes per-sample gradients by running a whole network again.

    Args:
        module: the network; its samples must not influence each other.
        forward: function from a batch to the outputs ``(N, ...)`` of ``module``.
        magnitude: function of a gradient that is summed, such as the square.
        max_bytes: a sixteenth of the bound on the per-sample gradients that are held at a time.
    """

    def __init__(
        self, module: nn.Module, forward: Callable[[Any], Tensor], magnitude: Magnitude, max_bytes: int
    ) -> None:
        self.module, self.forward = module, forward
        self.magnitude, self.max_bytes = magnitude, max_bytes
        self._vmap_works = True

    def sums(self, parameters: dict[str, Tensor], batch: Any, vectors: list[Tensor]) -> dict[str, Tensor]:
        r"""Sums :math:`\sum_n \sum_k (J_n^\top v^{(k)}_n)^2` by parameter name.

        Args:
            parameters: by their name in the module.
            batch: of ``N`` samples.
            vectors: cotangents, each of the shape of the outputs.
        """
        if self._vmap_works:
            try:
                return self._by_vmap(parameters, batch, vectors)
            except Exception as error:  # the loop does not need vmap, or raises the same error
                self._vmap_works = False
                logger.debug("vmap cannot follow %s: %s", type(self.module).__name__, error)
                if first_time(self.module, "vmap"):
                    warnings.warn(
                        f"torch.func.vmap cannot follow {type(self.module).__name__} "
                        f"({type(error).__name__}); the per-sample gradients of {len(parameters)} parameters "
                        f"are computed one sample at a time, which is slow. `exclude` them, or use fewer "
                        f"`samples`, if it takes too long.",
                        stacklevel=2,
                    )
        return self._by_loop(parameters, batch, vectors)

    def _by_vmap(self, parameters: dict[str, Tensor], batch: Any, vectors: list[Tensor]) -> dict[str, Tensor]:
        tensors, rebuild = split_samples(batch)
        within = _Within(self.module, self.forward)

        def magnitudes(sample: list[Tensor], v: Tensor) -> dict[str, Tensor]:
            def outputs(weights: dict[str, Tensor]) -> Tensor:
                inner = {f"module.{name}": weight for name, weight in weights.items()}
                return functional_call(within, inner, (rebuild([t[None] for t in sample]),))

            pull_back = vjp(outputs, {n: p.detach() for n, p in parameters.items()})[1]
            gradients = [pull_back(v[k, None])[0] for k in range(len(vectors))]
            return {
                n: torch.stack([self.magnitude(_wide(g[n])) for g in gradients]).sum(0) for n in parameters
            }

        size = sum(p.numel() for p in parameters.values()) * 4 * len(vectors)
        chunk = max(1, 16 * self.max_bytes // size)
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
            warnings.filterwarnings("ignore", "There is a performance drop")
            sums = vmap(magnitudes, in_dims=(0, 1), randomness="different", chunk_size=chunk)(
                tensors, torch.stack(vectors)
            )
        return {name: value.sum(0) for name, value in sums.items()}

    def _by_loop(self, parameters: dict[str, Tensor], batch: Any, vectors: list[Tensor]) -> dict[str, Tensor]:
        totals = {n: torch.zeros_like(p, dtype=wide_dtype(p)) for n, p in parameters.items()}
        for i in range(len(vectors[0])):
            outputs = self.forward(take_samples(batch, slice(i, i + 1)))
            for v in vectors:
                gradients = torch.autograd.grad(
                    outputs, list(parameters.values()), v[i : i + 1], True, allow_unused=True
                )
                for total, g in zip(totals.values(), gradients, strict=True):
                    if g is not None:
                        total.add_(self.magnitude(_wide(g)))
        return totals
