r"""Squared per-sample gradients of a whole network at about the price of a batch.

Wanted is :math:`\sum_n \sum_k (J_n^\top v^{(k)}_n)^2` for cotangents :math:`v` on the outputs: the sum,
over samples, of squared gradients. One backward to the *outputs of the layers* gives every layer its
cotangents, from which :mod:`~cl_callbacks.functional.layer_gradients` forms the squares; no weight
gradient and no ``.grad`` is touched. Parameters that no layer rule explains (attention's packed
projections, recurrent layers, weights used outside their layer) go through ``torch.func.vmap``, and
where vmap cannot follow the model, through a loop over samples.

Which parameters the layer rules explain is not guessed but measured: on the first batch the first
sample's gradients are compared with what autograd finds for that sample alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from cl_callbacks.functional.batches import finite_samples, split_samples, take_samples
from cl_callbacks.functional.layer_gradients import (
    PerSample,
    chunked_square_sum,
    has_rule,
    layer_gradients,
)

Forward = Callable[[Any], tuple[Tensor, Tensor | None]]
Cotangents = Callable[[Tensor, Tensor | None], Iterable[Tensor]]


class _Call(NamedTuple):
    layer: nn.Module
    inputs: Tensor
    edge: GradientEdge  # the output as it was then: in-place activations may overwrite the tensor


class _Within(nn.Module):
    """Lets ``functional_call`` swap a module's parameters under any function that uses the module."""

    def __init__(self, module: nn.Module, function: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, batch: Any) -> Tensor:
        return self.function(batch)


def _wide(parameter: Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)


class PerSampleGradients:
    """Sums of squared per-sample gradients, batch after batch.

    Args:
        module: the network; its samples must not influence each other (evaluation mode).
        parameters: the parameters asked for, by their name in ``module``.
        forward: what gives ``(outputs, labels)`` of a batch; outputs ``(N, ...)``, one row a sample.
        max_bytes: bound on the per-sample gradients of one parameter that are held at a time.

    Attributes:
        fallback: names of parameters that no layer rule explains (known after the first batch).

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> per_sample = PerSampleGradients(
        ...     net, dict(net.named_parameters()), lambda x: (net(x), None))
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> per_sample.square_sums(x, lambda outputs, labels: [torch.ones_like(outputs)])
        ([tensor([[5.]])], 2)
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: Mapping[str, Tensor],
        forward: Forward,
        *,
        max_bytes: int = 1 << 22,
    ) -> None:
        self.module, self.forward, self.max_bytes = module, forward, max_bytes
        self.parameters = dict(parameters)
        self.fallback: list[str] | None = None
        self._names = {id(p): name for name, p in self.parameters.items()}
        self._vmap_works = True

    def square_sums(self, batch: Any, cotangents: Cotangents) -> tuple[list[Tensor], int]:
        """Sum over the batch's samples and cotangents, and the number of samples in it.

        A sample whose outputs are not finite is left out.

        Args:
            batch: a batch, on the module's device.
            cotangents: from outputs and labels to tensors of the shape of the outputs.

        Returns:
            One tensor per parameter, at least float32, in the order of ``parameters``; the count.
        """
        outputs, labels, calls = self._run(batch)
        finite = finite_samples(outputs)
        if not finite.all():
            batch = take_samples(batch, finite.nonzero().squeeze(1))
            if not finite.any():
                return self._zeros(), 0
            outputs, labels, calls = self._run(batch)
        vectors = list(cotangents(outputs.detach(), labels))
        if self.fallback is None:
            self.fallback = self._unexplained(batch, outputs, calls)
        totals = dict(zip(self.parameters, self._zeros(), strict=True))
        for vector in vectors:
            for name, parts in self._parts(outputs, calls, vector).items():
                if name not in self.fallback:
                    totals[name] += self._square_sum(parts)
        for name, total in self._fallback_sums(batch, vectors).items():
            totals[name] += total
        return list(totals.values()), len(outputs)

    def _zeros(self) -> list[Tensor]:
        return [torch.zeros_like(p, dtype=_wide(p)) for p in self.parameters.values()]

    def _square_sum(self, parts: list[PerSample]) -> Tensor:
        if len(parts) == 1:
            return parts[0].square_sum(self.max_bytes)
        return chunked_square_sum(parts, self.max_bytes)

    # -- layers ------------------------------------------------------------------------------------

    def _run(self, batch: Any) -> tuple[Tensor, Tensor | None, list[_Call]]:
        with self._recorded() as calls:
            outputs, labels = self.forward(batch)
        n = outputs.shape[0]
        # A call whose first dimension is not the samples' cannot be told apart by sample.
        return outputs, labels, [c for c in calls if c.inputs.ndim and c.inputs.shape[0] == n]

    @contextmanager
    def _recorded(self) -> Iterator[list[_Call]]:
        calls: list[_Call] = []

        def record(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if args and output.requires_grad:
                calls.append(_Call(layer, args[0].detach(), get_gradient_edge(output)))

        wanted = [
            layer
            for layer in self.module.modules()
            if has_rule(layer) and any(id(p) in self._names for p in layer.parameters(False))
        ]
        handles = [layer.register_forward_hook(record) for layer in wanted]
        try:
            yield calls
        finally:
            for handle in handles:
                handle.remove()

    def _parts(self, outputs: Tensor, calls: list[_Call], vector: Tensor) -> dict[str, list[PerSample]]:
        """Per-sample gradients of every use of every parameter that a layer rule knows."""
        parts: dict[str, list[PerSample]] = {}
        edges = [call.edge for call in calls]
        if not edges:
            return parts
        deltas = torch.autograd.grad(outputs, edges, vector, retain_graph=True, allow_unused=True)
        for call, delta in zip(calls, deltas, strict=True):
            if delta is None or delta.shape[0] != outputs.shape[0]:
                continue
            gradients = layer_gradients(call.layer, call.inputs, delta)
            for own_name, parameter in call.layer.named_parameters(recurse=False):
                if id(parameter) in self._names:
                    parts.setdefault(self._names[id(parameter)], []).append(gradients[own_name])
        return parts

    def _unexplained(self, batch: Any, outputs: Tensor, calls: list[_Call]) -> list[str]:
        """Parameters whose first-sample gradient by layer rules is not that sample's gradient."""
        # A random cotangent, drawn apart from the user's random numbers, hides no direction.
        generator = torch.Generator(outputs.device).manual_seed(0)
        vector = torch.randn(outputs.shape, generator=generator, device=outputs.device, dtype=outputs.dtype)
        weights = list(self.parameters.values())
        in_batch = torch.autograd.grad(outputs, weights, vector, True, allow_unused=True)
        alone = self.forward(take_samples(batch, slice(0, 1)))[0]
        of_first = torch.autograd.grad(alone, weights, vector[:1], allow_unused=True)
        parts = self._parts(outputs, calls, vector)
        wrong = []
        for (name, p), used, expected in zip(self.parameters.items(), in_batch, of_first, strict=True):
            found = sum((part.rows(0, 1)[0] for part in parts.get(name, [])), torch.zeros_like(p))
            expected = torch.zeros_like(p) if expected is None else expected
            # Generous against rounding in the model's own dtype, far below any missing term.
            differs = (found - expected).norm() > 1e-2 * expected.norm()
            if differs or (used is not None and name not in parts):
                wrong.append(name)
        return wrong

    # -- everything else ---------------------------------------------------------------------------

    def _fallback_sums(self, batch: Any, vectors: list[Tensor]) -> dict[str, Tensor]:
        assert self.fallback is not None
        parameters = {name: self.parameters[name] for name in self.fallback}
        if not parameters:
            return {}
        if self._vmap_works:
            try:
                return self._by_vmap(parameters, batch, vectors)
            except Exception as error:  # whatever vmap cannot follow, the loop can, or raises again
                self._vmap_works = False
                warnings.warn(
                    f"torch.func.vmap cannot follow {type(self.module).__name__} "
                    f"({type(error).__name__}: {str(error).splitlines()[0]}); the per-sample gradients "
                    f"of {len(parameters)} parameters are computed one sample at a time, which is slow. "
                    f"`exclude` them, or use fewer `samples`, if it takes too long.",
                    stacklevel=2,
                )
        return self._by_loop(parameters, batch, vectors)

    def _by_vmap(self, parameters: dict[str, Tensor], batch: Any, vectors: list[Tensor]) -> dict[str, Tensor]:
        tensors, rebuild = split_samples(batch)
        within = _Within(self.module, lambda b: self.forward(b)[0])

        def squares(sample: list[Tensor], v: Tensor) -> dict[str, Tensor]:
            def outputs(weights: dict[str, Tensor]) -> Tensor:
                inner = {f"module.{name}": weight for name, weight in weights.items()}
                return functional_call(within, inner, (rebuild([t[None] for t in sample]),))

            pull_back = vjp(outputs, {n: p.detach() for n, p in parameters.items()})[1]
            gradients = [pull_back(v[k, None])[0] for k in range(len(vectors))]
            return {n: sum(g[n].to(_wide(p)) ** 2 for g in gradients) for n, p in parameters.items()}

        size = sum(p.numel() for p in parameters.values()) * 4 * len(vectors)
        chunk = max(1, 16 * self.max_bytes // size)
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
            warnings.filterwarnings("ignore", "There is a performance drop")
            sums = vmap(squares, in_dims=(0, 1), randomness="different", chunk_size=chunk)(
                tensors, torch.stack(vectors)
            )
        return {name: value.sum(0) for name, value in sums.items()}

    def _by_loop(self, parameters: dict[str, Tensor], batch: Any, vectors: list[Tensor]) -> dict[str, Tensor]:
        totals = {n: torch.zeros_like(p, dtype=_wide(p)) for n, p in parameters.items()}
        for i in range(len(vectors[0])):
            outputs, _ = self.forward(take_samples(batch, slice(i, i + 1)))
            for v in vectors:
                gradients = torch.autograd.grad(
                    outputs, list(parameters.values()), v[i : i + 1], True, allow_unused=True
                )
                for total, g in zip(totals.values(), gradients, strict=True):
                    if g is not None:
                        total.addcmul_(g, g)
        return totals
