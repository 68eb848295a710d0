"""Per-sample gradients of a network whose parameters are sharded over processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cl_callbacks.gradients.cotangent_scale import CotangentScale, unscaled
from cl_callbacks.gradients.per_sample import Cotangents, Forward
from cl_callbacks.gradients.precision import cotangent_dtypes, wide_dtype, widened
from cl_callbacks.gradients.sample_gradients import Magnitude
from cl_callbacks.gradients.sample_slices import SampleSlices
from cl_callbacks.tensors.batches import finite_samples
from cl_callbacks.tensors.shards import gradients_apart, group_of, held, of_first, total


class ShardedGradients:
    """Sums of squared (or absolute) per-sample gradients on this process's shards, batch after batch.

    A backward leaves each process its shard of the gradient, averaged over processes. If all of them run the
    same single sample, the average is that sample's own gradient: this takes one forward and backward per
    sample and cotangent, by all processes together, and no more memory than training. Where samples cannot be
    cut out of a batch, each of these is of the whole batch.

    The arguments are those of :class:`~cl_callbacks.gradients.per_sample.PerSampleGradients`; all parameters
    are sharded.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: Mapping[str, Tensor],
        forward: Forward,
        *,
        magnitude: Magnitude = Tensor.square_,
    ) -> None:
        self.module, self.forward, self.magnitude = module, forward, magnitude
        self.parameters = list(parameters.values())
        self._group = group_of(self.parameters)
        self._slices = SampleSlices(lambda batch: forward(batch)[0])
        self._scale = CotangentScale(self._group)
        self.rows = 0

    def zeros(self) -> list[Tensor]:
        """Zeros of the shape of this process's shard of each parameter, to which :meth:`sums` adds."""
        shards = [held(p.detach()) for p in self.parameters]
        return [torch.zeros_like(s, dtype=wide_dtype(s)) for s in shards]

    def sums(
        self,
        batch: Any,
        cotangents: Cotangents,
        totals: list[Tensor] | None = None,
        most: int | None = None,
    ) -> tuple[list[Tensor], int]:
        """Sums over samples and cotangents, and the number of samples; all processes pass the same batch.

        Otherwise like :meth:`~cl_callbacks.gradients.per_sample.PerSampleGradients.sums`, with tensors of the
        shapes of this process's shards, and cotangents of one sample at a time.
        """
        totals, used = self.zeros() if totals is None else totals, 0
        with gradients_apart(self.module):
            with torch.no_grad():
                outputs, _ = self.forward(batch)
                apart = self._can_cut(batch, outputs)
            self.rows = len(outputs) if most is None else min(most, len(outputs))
            for i in range(self.rows):
                sample = self._slices.take(batch, [i], len(outputs)) if apart else batch
                used += self._add(totals, sample, 0 if apart else i, cotangents)
        return totals, used

    def _can_cut(self, batch: Any, outputs: Tensor) -> bool:
        """Whether samples can be cut out of the batch: the same on all processes, or they would deadlock."""
        finite = finite_samples(outputs).nonzero().flatten().tolist()[:1]
        if not finite:
            return False
        missing = int(self._slices.alone(batch, finite, outputs) is None)
        if total(torch.tensor(missing, device=outputs.device), self._group):
            self._slices.right = False
        return self._slices.right is not False

    def _add(self, totals: list[Tensor], sample: Any, row: int, cotangents: Cotangents) -> int:
        outputs, labels = self.forward(sample)
        if total(outputs[row].isfinite().logical_not().sum(), self._group):
            return 0
        self._scale.active = torch.float16 in cotangent_dtypes(outputs)
        fresh: list[Tensor] = [outputs]

        def pull(vectors: list[Tensor]) -> list[Tensor | None]:
            # A backward frees the graph and the gathered weights.
            of_sample = fresh.pop() if fresh else self.forward(sample)[0]
            of_sample.backward(vectors[0].to(of_sample.dtype))
            found = [None if p.grad is None else held(p.grad) for p in self.parameters]
            self.module.zero_grad()
            return found

        for vector in list(cotangents(widened(outputs), labels)):
            of_row = torch.zeros_like(vector)
            of_row[row] = of_first(vector[row], self._group)  # labels may be drawn, and devices unlike
            found, factor = self._scale.pull_back(pull, [of_row])
            for so_far, gradient in zip(totals, found, strict=True):
                if gradient is not None:
                    so_far += self.magnitude(unscaled(gradient, factor).to(so_far.dtype, copy=True))
        return 1
