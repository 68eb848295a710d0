r"""Squared per-sample gradients of a whole network at about the cost of a batch.

The result is :math:`\sum_n \sum_k (J_n^\top v^{(k)}_n)^2` for cotangents :math:`v` on the outputs: the sum,
over samples, of squared gradients (or of their absolute values). A sample is a row of the outputs, and its
gradient that of this row in a forward of its whole batch. One backward to the *outputs of the modules*
gives every module its cotangents, without a weight gradient and without touching ``.grad``. These give the
gradients

1. of common layers in closed form (:mod:`~cl_callbacks.gradients.layer_gradients`),
   and of packed self-attention (:mod:`~cl_callbacks.gradients.attention_gradients`),
2. of other modules by vmap of the module alone (:mod:`~cl_callbacks.gradients.module_gradients`),
3. of parameters that are used outside their module by vmap of the whole network
   (:mod:`~cl_callbacks.gradients.network_gradients`),
4. where vmap does not support the network, by a loop over samples,
5. and where samples cannot be cut out of a batch, by a backward for each row of its outputs.

For which parameters 1 and 2 are valid, and whether samples can be cut out, is not assumed but checked: when a
parameter is first used, the gradients of a few samples are compared with those that autograd gives.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cl_callbacks.gradients.attention_gradients import (
    ATTENTION_WEIGHTS,
    Inputs,
    attention_gradients,
    is_self_attention,
)
from cl_callbacks.gradients.cotangent_scale import CotangentScale, unscaled
from cl_callbacks.gradients.graph import graph_nodes
from cl_callbacks.gradients.layer_gradients import Gradients, has_rule, known_weights, layer_gradients
from cl_callbacks.gradients.module_gradients import ModuleCall, Pulled, batch_dimension
from cl_callbacks.gradients.network_gradients import WholeNetwork, row_gradients
from cl_callbacks.gradients.precision import cotangent_dtypes, rounding, wide_dtype, widened
from cl_callbacks.gradients.recorded_calls import Pass, RecordedCall, finite_pass, output_cotangents
from cl_callbacks.gradients.sample_gradients import ClosedForm, Magnitude, OfCall, PerSample, add_in_chunks
from cl_callbacks.gradients.sample_slices import SampleSlices, alike
from cl_callbacks.gradients.shared_tensors import calls_by_sample
from cl_callbacks.guards.once import first_time

logger = logging.getLogger(__name__)

Forward = Callable[[Any], tuple[Tensor, Tensor | None]]
Cotangents = Callable[[Tensor, Tensor | None], Iterable[Tensor]]


def _own(module: nn.Module, called: set[int]) -> dict[str, Tensor]:
    """Parameters that a call of the module uses itself, by name.

    These are its own, and those of submodules that were never called, as attention's output projection. A
    module with submodules that were called has none here: its vmap would run them all again, which that of
    the whole network does once for all.
    """
    found: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
    if not has_rule(module):
        for path, inner in module.named_modules():
            if inner is not module and id(inner) in called:
                return {}
            for name, p in inner.named_parameters(path, recurse=False):
                found[name] = p
    return found


def _in_closed_form(
    call: ClosedForm, known: Collection[str], weights: Mapping[str, Tensor]
) -> dict[str, PerSample]:
    """The gradients of some weights; a parameter that the closed form does not know has none.

    Pruning, weight normalisation and users put more parameters on a layer than its class has.
    """
    return {name: OfCall(call, name, p.shape) for name, p in weights.items() if name in known}


def _of_layer(
    layer: nn.Module, x: Tensor, delta: Tensor, factor: Tensor | None, start: int, stop: int
) -> Gradients:
    return layer_gradients(layer, x[start:stop], unscaled(delta[start:stop], factor))


def _of_attention(
    attention: nn.MultiheadAttention, inputs: Inputs, delta: Tensor, factor: Tensor | None, *part: int
) -> Gradients:
    return attention_gradients(attention, inputs, unscaled(delta, factor), *part)


class PerSampleGradients:
    """Sums of squared (or absolute) per-sample gradients, batch after batch.

    The forward may run in half precision, or under ``torch.autocast`` within it. Cotangents and activations
    are taken to float32 before they are multiplied, and cotangents of float16 are scaled meanwhile.

    Args:
        module: the network, in evaluation mode.
        parameters: the parameters to differentiate, by their name in ``module``.
        forward: function from a batch to ``(outputs, labels)``; outputs ``(N, ...)``, one row per sample.
        magnitude: what is summed: ``torch.Tensor.square_``, or ``torch.Tensor.abs_``.
        max_bytes: bound on the per-sample gradients of one parameter that are held at a time; fastest
            where they fit into a processor's cache.

    Attributes:
        fallback: names of parameters found so far to need the whole network, points 3 to 5 above.
        rows: number of rows of the latest batch that were to be measured, with those that are not finite.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> per_sample = PerSampleGradients(
        ...     net, dict(net.named_parameters()), lambda x: (net(x), None))
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> per_sample.sums(x, lambda outputs, labels: [torch.ones_like(outputs)])
        ([tensor([[5.]])], 2)
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: Mapping[str, Tensor],
        forward: Forward,
        *,
        magnitude: Magnitude = Tensor.square_,
        max_bytes: int = 1 << 22,
    ) -> None:
        self.module, self.forward = module, forward
        self.magnitude, self.max_bytes = magnitude, max_bytes
        self.parameters = dict(parameters)
        self.fallback: set[str] = set()
        self._checked: set[str] = set()
        self._batches = 0
        self._owners = [m for m in module.modules() if next(m.parameters(recurse=False), None) is not None]
        self._names = {id(p): name for name, p in self.parameters.items()}
        self._only_as_it_ran: set[nn.Module] = set()
        self._without_vmap: set[nn.Module] = set()
        self._slices = SampleSlices(lambda batch: forward(batch)[0])
        self._scale = CotangentScale()
        self._network = WholeNetwork(
            module, lambda b: forward(b)[0], self._slices, magnitude, self._scale, max_bytes
        )
        self._tried_twice = False
        self.rows = 0

    def sums(
        self,
        batch: Any,
        cotangents: Cotangents,
        totals: list[Tensor] | None = None,
        most: int | None = None,
    ) -> tuple[list[Tensor], int]:
        """Sums over the batch's samples and cotangents, and the number of samples.

        Samples whose outputs are not finite are left out; the whole batch, if they cannot be cut out of it.

        Args:
            batch: a batch, on the module's device.
            cotangents: function from outputs, in at least float32, and labels to tensors of their shape.
            totals: sums over earlier batches, as :meth:`zeros` and this method return them, to which this
                batch's are added, in place: no tensors of the model's size are allocated for each batch.
            most: number of samples to sum over, from the first one; default: all of the batch.

        Returns:
            One tensor per parameter, at least float32, in the order of ``parameters``; the number.
        """
        totals = self.zeros() if totals is None else totals
        passed = self.run(batch, most)
        outputs, calls, samples = passed.outputs, passed.calls, passed.samples
        if not samples:
            return totals, 0
        so_far = dict(zip(self.parameters, totals, strict=True))
        vectors = []
        for vector in cotangents(widened(outputs), passed.labels):
            if samples < len(vector):
                vector = torch.cat([vector[:samples], torch.zeros_like(vector[samples:])])
            parts = self.parts(outputs, calls, vector)
            for name in list(parts):
                # Removed one by one, so that the gradients of only one module are held at a time.
                uses = parts.pop(name)
                if name not in self.fallback:
                    self._add(uses, so_far[name])
            if self.fallback:
                vectors.append(vector)
        if vectors:
            rest = {name: p for name, p in self.parameters.items() if name in self.fallback}
            for name, total in self._network.sums(rest, passed.batch, outputs, vectors, samples).items():
                so_far[name] += total
        return totals, samples

    def zeros(self) -> list[Tensor]:
        """Zeros of the shape of each parameter, at least float32, to which :meth:`sums` adds."""
        return [torch.zeros_like(p, dtype=wide_dtype(p)) for p in self.parameters.values()]

    def _add(self, uses: list[PerSample], total: Tensor) -> None:
        if len(uses) == 1:
            uses[0].add_to(total, self.magnitude, self.max_bytes)
        else:
            add_in_chunks(uses, total, self.magnitude, self.max_bytes)

    # -- modules -----------------------------------------------------------------------------------

    def run(self, batch: Any, most: int | None = None) -> Pass:
        """Runs the samples with finite outputs, and updates ``fallback`` for the parameters they use."""
        passed = finite_pass(self._owners, self.forward, self._slices, batch, most)
        self.rows = passed.rows
        if not len(passed.outputs):
            return passed
        self._scale.active = torch.float16 in cotangent_dtypes(passed.outputs)
        called = {id(call.module) for call in passed.calls}
        owned = {id(p) for call in passed.calls for p in _own(call.module, called).values()}
        used = (self.parameters[name] for name in self._used_by(passed.outputs) - self.fallback)
        plain = [p for p in used if isinstance(p, nn.Parameter) and id(p) not in owned]
        calls = calls_by_sample(passed.outputs, passed.calls, plain)
        self._check(passed.batch, passed.outputs, calls)
        return passed._replace(calls=calls)

    def parts(self, outputs: Tensor, calls: list[RecordedCall], vector: Tensor) -> dict[str, list[PerSample]]:
        """Per-sample gradients of every use of every parameter by the module that owns it.

        They are not valid for parameters in ``fallback``.
        """
        parts: dict[str, list[PerSample]] = {}
        called = {id(call.module) for call in calls}
        of_calls, factor = self._scale.pull_back(lambda v: output_cotangents(outputs, calls, v[0]), [vector])
        for call, deltas in zip(calls, of_calls, strict=True):
            weights = {name: p for name, p in _own(call.module, called).items() if id(p) in self._names}
            if weights and any(delta is not None for delta in deltas):
                found_parts = self._of_call(call, weights, deltas, len(outputs), factor)
                for name, p in weights.items():
                    if name in found_parts:
                        parts.setdefault(self._names[id(p)], []).append(found_parts[name])
                    else:  # this use cannot be separated by sample, even if earlier ones could
                        self.fallback.add(self._names[id(p)])
        return parts

    def _of_call(
        self,
        call: RecordedCall,
        weights: dict[str, Tensor],
        deltas: list[Tensor | None],
        samples: int,
        factor: Tensor | None,
    ) -> Mapping[str, PerSample]:
        args, kwargs = call.inputs
        first = deltas[0]
        if has_rule(call.module) and len(args) == 1 and not kwargs:
            # A call whose first dimension does not count the samples cannot be separated by sample.
            if first is None or not args[0].shape[:1] == first.shape[:1] == (samples,):
                return {}
            closed = ClosedForm(partial(_of_layer, call.module, args[0], first, factor), samples)
            return _in_closed_form(closed, known_weights(call.module), weights)
        dimensions = [batch_dimension(call.module, d, samples) for d in deltas if d is not None]
        if None in dimensions or call.module in self._without_vmap:
            return {}
        if first is not None and is_self_attention(call.module, call.inputs, deltas):
            closed = ClosedForm(partial(_of_attention, call.module, call.inputs, first, factor), samples)
            return _in_closed_form(closed, ATTENTION_WEIGHTS, weights)
        pulled = ModuleCall(call, weights, deltas, samples, self._scale, factor)
        pulled.full = pulled.full and call.module not in self._only_as_it_ran
        return {name: Pulled(pulled, name) for name in weights}

    def _check(self, batch: Any, outputs: Tensor, calls: list[RecordedCall]) -> None:
        """Checks the per-sample gradients of the parameters that this batch uses against autograd.

        Parameters that no batch has used before are checked on three samples; and all again, on one sample,
        in batches 4, 16, 64, …, because the forward of a model may depend on its data.
        """
        self._batches += 1
        used = self._used_by(outputs)
        names, samples = used - self._checked, {0, len(outputs) // 2, len(outputs) - 1}
        if not names and math.log(self._batches, 4).is_integer():
            names, samples = used - self.fallback, {self._batches % len(outputs)}
        if not names:
            return
        self._checked |= names
        # A random cotangent, drawn without the global generator, is orthogonal to no error.
        generator = torch.Generator(outputs.device).manual_seed(0)
        dtype = wide_dtype(outputs)
        vector = torch.randn(outputs.shape, generator=generator, device=outputs.device, dtype=dtype)
        parts = self.parts(outputs, calls, vector)
        weights, coarse = [self.parameters[name] for name in names], rounding(outputs)
        for i in samples:
            truth = self._gradient_of(i, batch, outputs, vector, weights)
            same = _Same(truth, coarse)
            for name, expected in zip(names, truth, strict=True):
                found = self._row(i, parts.get(name, []))
                if found is None or not same(found, expected):
                    self.fallback.add(name)

    def _gradient_of(
        self, i: int, batch: Any, outputs: Tensor, vector: Tensor, weights: list[Tensor]
    ) -> Sequence[Tensor | None]:
        """Gradient of row ``i``: from its sample alone, where that has been seen to be the same."""
        # The only sample of a batch does not tell what of it would have to be cut out of a larger one.
        alone = self._slices.alone(batch, [i], outputs) if len(outputs) > 1 else None
        if alone is not None:
            found = self._row_of(alone, 0, vector[i : i + 1], weights)
            if self._slices.right:
                return found
        truth = self._row_of(outputs, i, vector, weights)
        if alone is not None:
            self._slices.right = all(map(_Same(truth, rounding(outputs)), found, truth))
        elif not self._tried_twice:
            self._try_twice(batch, outputs)
        return truth

    def _row_of(self, outputs: Tensor, i: int, vector: Tensor, weights: list[Tensor]) -> list[Tensor | None]:
        found, factor = self._scale.pull_back(lambda v: row_gradients(outputs, weights, v[0], [i]), [vector])
        return [None if g is None else unscaled(g, factor) for g in found]

    def _try_twice(self, batch: Any, outputs: Tensor) -> None:
        """Warns once of outputs that are random."""
        self._tried_twice = True
        random = not alike(self.forward(batch)[0], outputs)
        if random and first_time(self.module, "random outputs"):
            warnings.warn(
                f"The forward of {type(self.module).__name__} is random in evaluation mode: the same batch "
                f"gave other outputs the second time. Each sample is measured once, with the noise of that "
                f"one forward. If it was not meant to be random there, look for dropout that does not follow "
                f"`self.training`, or latent variables that are drawn.",
                stacklevel=2,
            )

    def _used_by(self, outputs: Tensor) -> set[str]:
        """Names of the parameters that the outputs depend on."""
        # Nodes that accumulate into .grad have the parameter as `variable`.
        used = (getattr(node, "variable", None) for node in graph_nodes(outputs))
        return {self._names[id(p)] for p in used if p is not None and id(p) in self._names}

    def _row(self, i: int, parts: list[PerSample]) -> Tensor | None:
        """Gradient of sample ``i``, summed over all uses; ``None`` if there is none or vmap fails."""
        total = None
        for part in parts:
            try:
                row = part.rows(i, i + 1)[0]
            except Exception as error:
                if not isinstance(part, Pulled):
                    raise
                module = part.call.module
                logger.debug("vmap cannot follow %s: %s", type(module).__name__, error)
                if part.call.full:
                    part.call.full = False
                    self._only_as_it_ran.add(module)
                    return self._row(i, parts)
                self._without_vmap.add(module)
                return None
            total = row if total is None else total.add_(row)
        return total


def _size(gradient: Tensor | None) -> float:
    return 0.0 if gradient is None else float(gradient.norm())


class _Same:
    """Whether gradients, ``None`` being 0, differ by far less than any term and more than by rounding.

    Args:
        truth: gradients of all parameters; what is smaller by far is only rounding error, as of the bias of
            an attention's keys, which cancels in the softmax, and has no direction to compare.
        rounding: relative size of the rounding.
    """

    def __init__(self, truth: Sequence[Tensor | None], rounding: float) -> None:
        self.relative = max(1e-2, 16 * rounding)
        self.nothing = max(1e-6, rounding / 4) * max(map(_size, truth), default=0.0)

    def __call__(self, found: Tensor | None, expected: Tensor | None) -> bool:
        if found is None or expected is None:
            difference = _size(expected if found is None else found)
        else:
            difference = _size(found - expected)
        return not difference > self.relative * _size(expected) + self.nothing
