"""Squared per-sample gradients by way of the whole network: vectorised, sample by sample or row by row.

The fallback of :mod:`~cl_callbacks.gradients.per_sample`, for parameters that are used outside the
module that owns them, or where samples cannot be told apart within it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from cl_callbacks.gradients.computed_weights import computed_weights_kept
from cl_callbacks.gradients.cotangent_scale import CotangentScale, unscaled
from cl_callbacks.gradients.precision import wide_dtype
from cl_callbacks.gradients.sample_gradients import Magnitude, add_magnitudes
from cl_callbacks.gradients.sample_slices import SampleSlices
from cl_callbacks.gradients.vectorised import PLAIN_ATTENTION, WITHOUT_WARNING
from cl_callbacks.guards.once import first_time

ROWS_AT_A_TIME = 16
"""Most rows whose gradients are computed in one backward: each takes the memory of a batch's backward."""

logger = logging.getLogger(__name__)


def _wide(gradient: Tensor) -> Tensor:
    return gradient.to(wide_dtype(gradient), copy=True)


def row_gradients(
    outputs: Tensor, parameters: Sequence[Tensor], vector: Tensor, rows: Sequence[int], batched: bool = False
) -> tuple[Tensor | None, ...]:
    r"""Gradients :math:`J_n^\top v_n` of some rows of the outputs, which are computed from a whole batch.

    Args:
        outputs: of ``N`` samples, with their autograd graph, which is kept.
        parameters: to differentiate.
        vector: cotangents, of the shape of the outputs.
        rows: their numbers; without ``batched`` there is one.
        batched: whether to compute them in one backward, by ``vmap``.

    Returns:
        One tensor per parameter, with ``batched`` of shape ``(rows, *shape)``; ``None`` where it has no
        influence.

    Example:
        >>> weight = torch.ones(1, requires_grad=True)
        >>> row_gradients(torch.tensor([[2.0], [3.0]]) * weight, [weight], torch.ones(2, 1), [1])
        (tensor([3.]),)
    """
    where, vector = torch.tensor(rows, device=vector.device), vector.to(outputs.dtype)
    cotangents = vector.new_zeros(len(rows), *vector.shape)
    cotangents[torch.arange(len(rows), device=vector.device), where] = vector[where]
    return torch.autograd.grad(
        outputs,
        list(parameters),
        cotangents if batched else cotangents[0],
        retain_graph=True,
        allow_unused=True,
        is_grads_batched=batched,
    )


class _Within(nn.Module):
    """Lets ``functional_call`` swap a module's parameters under any function that uses the module."""

    def __init__(self, module: nn.Module, function: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, batch: Any) -> Tensor:
        return self.function(batch)


class WholeNetwork:
    """Computes per-sample gradients from all of a network, for any parameter.

    Where samples can be cut out of batches, each is run again by itself, all of them vectorised if
    ``torch.func.vmap`` can follow the network. Elsewhere the rows of the outputs are pulled back one by one,
    which takes as long as a backward of the whole batch for each of its samples.

    Args:
        module: the network.
        forward: function from a batch to the outputs ``(N, ...)`` of ``module``.
        slices: samples cut out of batches.
        magnitude: function of a gradient that is summed, such as the square.
        scale: of cotangents.
        max_bytes: a sixteenth of the bound on the per-sample gradients that are held at a time.
    """

    def __init__(
        self,
        module: nn.Module,
        forward: Callable[[Any], Tensor],
        slices: SampleSlices,
        magnitude: Magnitude,
        scale: CotangentScale,
        max_bytes: int,
    ) -> None:
        self.module, self.forward, self.slices = module, forward, slices
        self.magnitude, self.scale, self.max_bytes = magnitude, scale, max_bytes
        self._vmap_works = self._rows_batch = True
        self._rows_said = False

    def sums(
        self, parameters: dict[str, Tensor], batch: Any, outputs: Tensor, vectors: list[Tensor], samples: int
    ) -> dict[str, Tensor]:
        r"""Sums :math:`\sum_n \sum_k (J_n^\top v^{(k)}_n)^2` by parameter name.

        Args:
            parameters: by their name in the module.
            batch: of ``N`` samples.
            outputs: of the batch, with their autograd graph.
            vectors: cotangents, each of the shape of the outputs.
            samples: number of samples to sum over, from the first one.
        """
        apart = self.slices.split(batch, len(outputs)) if self.slices.right else None
        if apart is None:
            return self._by_rows(parameters, outputs, vectors, samples)
        if self._vmap_works:
            try:
                return self._by_vmap(parameters, *apart, torch.stack(vectors)[:, :samples], outputs.dtype)
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
        return self._by_loop(parameters, batch, outputs, vectors, samples)

    def _by_vmap(
        self,
        parameters: dict[str, Tensor],
        tensors: list[Tensor],
        rebuild: Callable[[list[Tensor]], Any],
        vectors: Tensor,
        dtype: torch.dtype,
    ) -> dict[str, Tensor]:
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
        samples = [t[: vectors.shape[1]] for t in tensors]
        of_all = vmap(magnitudes, in_dims=(0, 1), randomness="different", chunk_size=chunk)
        with WITHOUT_WARNING, PLAIN_ATTENTION, computed_weights_kept(self.module):
            sums, factor = self.scale.pull_back(lambda v: of_all(samples, v[0].to(dtype)), [vectors])
        # The magnitude of a product is the product of the magnitudes.
        factor = None if factor is None else self.magnitude(factor)
        return {name: unscaled(value.sum(0), factor) for name, value in sums.items()}

    def _by_loop(
        self, parameters: dict[str, Tensor], batch: Any, outputs: Tensor, vectors: list[Tensor], samples: int
    ) -> dict[str, Tensor]:
        totals, weights = _zeros(parameters), list(parameters.values())
        for i in range(samples):
            alone = self.slices.alone(batch, [i], outputs)
            if alone is None:  # this batch is not like those before it
                return self._by_rows(parameters, outputs, vectors, samples)
            for v in vectors:
                found = self._pulled(partial(row_gradients, alone, weights, rows=[0]), v[i : i + 1])
                for total, g in zip(totals.values(), found, strict=True):
                    if g is not None:
                        total.add_(self.magnitude(_wide(g)))
        return totals

    def _by_rows(
        self, parameters: dict[str, Tensor], outputs: Tensor, vectors: list[Tensor], samples: int
    ) -> dict[str, Tensor]:
        if samples > ROWS_AT_A_TIME and not self._rows_said:
            self._rows_said = True
            warnings.warn(
                f"The samples of a batch of {type(self.module).__name__} cannot be run one by one (they "
                f"influence each other, or the batch cannot be cut into them); the per-sample gradients of "
                f"{len(parameters)} parameters take a backward of the batch for each, which is slow. Use "
                f"fewer `samples`, or smaller batches, if it takes too long.",
                stacklevel=2,
            )
        totals, weights = _zeros(parameters), list(parameters.values())
        size = sum(p.numel() for p in weights) * 4
        step = max(1, min(ROWS_AT_A_TIME, samples, 16 * self.max_bytes // size))
        for v in vectors:
            for start in range(0, samples, step):
                rows = range(start, min(start + step, samples))
                found = self._pulled(partial(self._of_rows, outputs, weights, rows=rows), v)
                for total, g in zip(totals.values(), found, strict=True):
                    if g is not None:
                        add_magnitudes(_wide(g), total, self.magnitude)
        return totals

    def _pulled(
        self, function: Callable[[Tensor], Sequence[Tensor | None]], vector: Tensor
    ) -> list[Tensor | None]:
        found, factor = self.scale.pull_back(lambda scaled: function(scaled[0]), [vector])
        return [None if g is None else unscaled(g, factor) for g in found]

    def _of_rows(self, outputs: Tensor, weights: list[Tensor], v: Tensor, rows: range) -> list[Tensor | None]:
        """Gradients ``(rows, *shape)`` of each weight; ``None`` where it has no influence."""
        if self._rows_batch:
            with WITHOUT_WARNING:
                try:
                    return list(row_gradients(outputs, weights, v, rows, batched=True))
                except Exception as error:  # one by one needs no backward that can be batched
                    logger.debug("rows are pulled back one by one: %s", error)
                    self._rows_batch = False
        each = zip(*(row_gradients(outputs, weights, v, [row]) for row in rows), strict=True)
        return [None if of_one[0] is None else torch.stack(of_one) for of_one in each]


def _zeros(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: torch.zeros_like(p, dtype=wide_dtype(p)) for n, p in parameters.items()}
