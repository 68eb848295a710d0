"""Per-sample gradients of one module that has no closed form, by ``torch.func.vmap`` of that module.

A cross-attention, a recurrent layer or a custom norm is run again, sample by sample in one vectorised call,
from its recorded inputs and the cotangents of its outputs. The rest of the network is not run again. What ran
under autocast runs again without, in full precision, unless the module refuses that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from cl_callbacks.gradients.computed_weights import computed_weights_kept
from cl_callbacks.gradients.cotangent_scale import CotangentScale, unscaled
from cl_callbacks.gradients.precision import wide_dtype
from cl_callbacks.gradients.recorded_calls import RecordedCall
from cl_callbacks.gradients.sample_gradients import Magnitude, PerSample, add_magnitudes
from cl_callbacks.gradients.vectorised import PLAIN_ATTENTION, WITHOUT_WARNING
from cl_callbacks.tensors.containers import flat_tensors, map_tensors


def batch_dimension(module: nn.Module, tensor: Tensor, samples: int) -> int | None:
    """Dimension of a module's input or output that counts the samples; ``None`` if none does."""
    if isinstance(module, nn.RNNBase) and tensor.shape[0] != samples:
        dimension = 1  # hidden states, and sequences with time first
    else:
        dimension = 0 if getattr(module, "batch_first", True) else 1
    fits = tensor.ndim > dimension and tensor.shape[dimension] == samples
    return dimension if fits else None


class ModuleCall:
    """One call of a module, with its inputs and the cotangents of its outputs.

    Args:
        call: of the module; its samples must not influence each other.
        weights: the parameters to differentiate, by their name in the module.
        deltas: cotangents of its output tensors, in order; ``None`` for one without influence.
        samples: number of samples in the call.
        scale: of cotangents.
        factor: that takes the scale out of ``deltas``, or ``None``.

    Attributes:
        full: whether to run it without autocast.
    """

    def __init__(
        self,
        call: RecordedCall,
        weights: Mapping[str, Tensor],
        deltas: Sequence[Tensor | None],
        samples: int,
        scale: CotangentScale,
        factor: Tensor | None,
    ) -> None:
        self.module, self.inputs, self.precision = call.module, call.inputs, call.precision
        self.samples, self.scale, self.factor = samples, scale, factor
        self.full = call.precision.autocast is not None
        self.weights = {name: p.detach() for name, p in weights.items()}
        self.used = [i for i, delta in enumerate(deltas) if delta is not None]
        self.deltas = [delta for delta in deltas if delta is not None]
        self._last: tuple[tuple[int, int], dict[str, Tensor]] | None = None

    def values(self, start: int, stop: int) -> dict[str, Tensor]:
        """Gradients ``(stop - start, *shape)`` of samples for every weight; the last result is cached."""
        if self._last is None or self._last[0] != (start, stop):
            self._last = ((start, stop), self._pull_back(start, stop))
        return self._last[1]

    def _pull_back(self, start: int, stop: int) -> dict[str, Tensor]:
        seen = flat_tensors(self.inputs)
        dimensions = [batch_dimension(self.module, t, self.samples) for t in seen]
        out_dimensions = [batch_dimension(self.module, d, self.samples) for d in self.deltas]

        precision = self.precision.full() if self.full else self.precision

        def cut(tensor: Tensor, dimension: int | None) -> Tensor:
            part = tensor if dimension is None else tensor.narrow(dimension, start, stop - start)
            return part.to(wide_dtype(part)) if self.full and part.is_floating_point() else part

        def of_one(own: dict[str, Tensor], sample: list[Tensor], deltas: list[Tensor]) -> dict[str, Tensor]:
            alone = [t if d is None else t.unsqueeze(d) for t, d in zip(sample, dimensions, strict=True)]

            def run(weights: dict[str, Tensor]) -> list[Tensor]:
                remaining = iter(alone)
                args, kwargs = map_tensors(lambda _: next(remaining), self.inputs)
                with precision.again():
                    outputs = flat_tensors(functional_call(self.module, weights, tuple(args), kwargs))
                return [outputs[i] for i in self.used]

            pull_back = vjp(run, own)[1]
            each = zip(deltas, out_dimensions, strict=True)
            return pull_back([t if d is None else t.unsqueeze(d) for t, d in each])[0]

        weights, weight_dimension = self.weights, None
        if isinstance(self.module, nn.RNNBase):
            # Recurrent kernels add to their state in place, which vmap allows only if it is batched.
            weights = {n: w.expand(stop - start, *w.shape) for n, w in weights.items()}
            weight_dimension = 0
        in_dims = (weight_dimension, dimensions, out_dimensions)
        inputs = [cut(t, d) for t, d in zip(seen, dimensions, strict=True)]

        deltas = [cut(t, d) for t, d in zip(self.deltas, out_dimensions, strict=True)]

        def pull(scaled: list[Tensor]) -> dict[str, Tensor]:
            cotangents = [s.to(d.dtype) for s, d in zip(scaled, deltas, strict=True)]
            return vmap(of_one, in_dims=in_dims, randomness="different")(weights, inputs, cotangents)

        with WITHOUT_WARNING, PLAIN_ATTENTION, computed_weights_kept(self.module):
            found, factor = self.scale.pull_back(pull, [unscaled(d, self.factor) for d in deltas])
        return {name: unscaled(gradients, factor) for name, gradients in found.items()}


@dataclass
class Pulled(PerSample):
    """Gradients of one parameter of a :class:`ModuleCall`."""

    call: ModuleCall
    name: str

    def __post_init__(self) -> None:
        self.samples, self.shape = self.call.samples, self.call.weights[self.name].shape

    def rows(self, start: int, stop: int) -> Tensor:
        """See :class:`PerSample`."""
        rows = self.call.values(start, stop)[self.name]
        return rows.to(torch.promote_types(rows.dtype, torch.float32), copy=True)

    def add_to(self, total: Tensor, magnitude: Magnitude, max_bytes: int) -> None:
        """See :class:`PerSample`; uses the same chunks for all parameters of the call."""
        size = sum(p.numel() for p in self.call.weights.values()) * 4
        step = max(1, min(self.samples, 16 * max_bytes // size))
        for start in range(0, self.samples, step):
            add_magnitudes(self.rows(start, min(start + step, self.samples)), total, magnitude)
