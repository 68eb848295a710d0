"""Kronecker-factored curvatures of a network's layers, accumulated over tasks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cl_callbacks.functional.kronecker import (
    Eigen,
    Factors,
    curvature_bound,
    decompose,
    kronecker_diagonal,
    kronecker_pull,
    nearest_sum,
    paired,
    relax_kronecker,
)
from cl_callbacks.gradients.kronecker_factors import Factored, bias_name, has_factors
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.tensors.blocks import spread
from cl_callbacks.tensors.devices import stacked

Accumulate = Literal["list", "nearest"]


def factored_layers(module: nn.Module, synapses: SynapseView) -> dict[str, Factored]:
    """Layers whose curvature can be factored, by the name of their weight.

    Their weight is among the synapses and is shared with no other module.
    """
    owners: dict[int, int] = {}
    for inner in module.modules():
        for p in inner.parameters(recurse=False):
            owners[id(p)] = owners.get(id(p), 0) + 1
    names = {id(p): name for name, p in zip(synapses.names, synapses.parameters, strict=True)}
    return {
        names[id(inner.weight)]: inner
        for inner in module.modules()
        if has_factors(inner) and owners.get(id(inner.weight)) == 1 and id(inner.weight) in names
    }


class KroneckerMemory:
    """Kronecker factors of each layer, and the quadratic penalty that they define.

    A layer's weights and bias form one matrix, with the bias as last column. If one of them is not among the
    synapses, its distance from the anchor is taken as 0.

    Args:
        accumulate: ``"list"`` keeps the factors of every task, ``"nearest"`` one pair nearest to their sum.
    """

    def __init__(self, accumulate: Accumulate) -> None:
        self.accumulate = accumulate
        self.factors: dict[str, list[Factors]] = {}
        self._eigen: dict[str, Eigen] = {}
        self._bounds: dict[str, Tensor] = {}

    def place(self, synapses: SynapseView, known: Collection[str]) -> None:
        """Moves the factors to the storage devices of the weights' state, and adapts their sizes.

        For a layer that has grown or got a bias they are padded with zeros. Layers that the model no longer
        has are dropped.

        Args:
            synapses: the selected synapses.
            known: names of all parameters that have state, selected or not.
        """
        weights = dict(zip(synapses.names, synapses.parameters, strict=True))
        self.factors = {name: terms for name, terms in self.factors.items() if name in known}
        for name, terms in self.factors.items():
            if name in weights:
                placed = [
                    Factors(*(synapses.store(t, weights[name]) for t in term))
                    for term in (_grown(term, weights[name], bias_name(name) in weights) for term in terms)
                ]
                if any(
                    a is not b
                    for new, old in zip(placed, terms, strict=True)
                    for a, b in zip(new, old, strict=True)
                ):
                    self.factors[name] = placed
                    self._eigen.pop(name, None)
                    self._bounds.pop(name, None)

    def merge(self, new: Mapping[str, Factors], decay: float) -> None:
        """Adds a task's factors to those of the older tasks, multiplied by ``decay``."""
        merged = {}
        for name in {**self.factors, **new}:
            terms = [Factors(a, g * decay) for a, g in self.factors.get(name, [])]
            if name in new:
                device = new[name].inputs.device  # offloaded factors go back with the next `place`
                terms = [Factors(a.to(device), g.to(device)) for a, g in terms] + [new[name]]
            nearest = self.accumulate == "nearest" and len(terms) > 1
            merged[name] = [nearest_sum(terms)] if nearest else terms
        self.factors = merged  # at the end, so that an exception leaves the old ones
        self._eigen.clear()
        self._bounds.clear()

    def pull(
        self,
        synapses: SynapseView,
        names: list[str],
        gradients: list[Tensor],
        stiffness: float,
        max_curvature: float | None = None,
    ) -> None:
        """Adds the gradient of the penalty to the gradients of the named parameters, in place.

        A layer whose curvature may exceed ``max_curvature`` is pulled as if it were scaled down to that.
        """
        target = dict(zip(names, gradients, strict=True))
        for name, change in self._changes(synapses, names).items():
            terms = self._lent(synapses, name, change)
            pull = stiffness * kronecker_pull(change, terms)
            if max_curvature is not None:
                if name not in self._bounds:
                    self._bounds[name] = curvature_bound(terms)
                pull *= (max_curvature / self._bounds[name]).clamp(max=1.0).nan_to_num(1.0).to(pull)
            _add(target, name, pull)

    def relax(self, synapses: SynapseView, names: list[str], steps: list[float]) -> None:
        """Takes the proximal step of the penalty, in place; needs one pair of factors per layer."""
        target = dict(zip(synapses.names, synapses.parameters, strict=True))
        step = dict(zip(names, steps, strict=True))
        for name, change in self._changes(synapses, names).items():
            if name not in self._eigen:
                (pair,) = self._lent(synapses, name, change)
                self._eigen[name] = Eigen(*(synapses.store(t, change) for t in decompose(pair)))
            eigen = Eigen(*synapses.load_once(self._eigen[name], change))
            stepping = {n: step[n] for n in (name, bias_name(name)) if n in step}
            (rate, *others) = set(stepping.values())
            if others:
                raise ValueError(
                    f"the proximal step of a layer needs one learning rate, and {name} and its bias have "
                    f"{sorted(stepping.values())} (times the strength): use one, or proximal=False"
                )
            relaxed = relax_kronecker(change, eigen, rate)
            _add({n: target[n] for n in stepping}, name, relaxed - change)

    def penalty(self, synapses: SynapseView, stiffness: float) -> Tensor:
        """Current value of the penalty, a scalar."""
        changes = self._changes(synapses, synapses.names)
        parts = [
            (kronecker_pull(change, self._lent(synapses, name, change)) * change).sum()
            for name, change in changes.items()
        ]
        return 0.5 * stiffness * stacked(parts).sum() if parts else torch.zeros(())

    def add_diagonal(self, synapses: SynapseView, importance: list[Tensor]) -> None:
        """Adds the diagonal of the curvature to the importance of the synapses, in place."""
        target = dict(zip(synapses.names, importance, strict=True))
        for name in self.factors:
            own = [target[n] for n in (name, bias_name(name)) if n in target]
            if own:
                _add(target, name, kronecker_diagonal(self._lent(synapses, name, own[0])))

    def forget(self, name: str, weight: Tensor, dim: int, index: Tensor) -> None:
        """Takes some rows (``dim`` 0) or columns (1) of a weight out of the curvature of its layer."""
        for term in self.factors.get(name, ()):
            factor = term.outputs if dim == 0 else term.inputs
            at = index.to(factor.device)
            if dim == 1:  # of a convolution, all positions of its kernel
                at = spread(at, weight.shape[2:].numel())
            factor.index_fill_(0, at, 0).index_fill_(1, at, 0)
        self._eigen.pop(name, None)
        self._bounds.pop(name, None)

    def state_dict(self) -> dict[str, Any]:
        """Lists of tensors by the name of the weight: input factor, output factor, input factor, …."""
        return {name: [factor for term in terms for factor in term] for name, terms in self.factors.items()}

    def load_state_dict(self, state: Mapping[str, list[Tensor]]) -> None:
        """Copies saved factors."""
        self.factors = {name: paired([t.detach().clone() for t in flat]) for name, flat in state.items()}
        self._eigen, self._bounds = {}, {}

    def _lent(self, synapses: SynapseView, name: str, beside: Tensor) -> list[Factors]:
        """Loads the factors of one layer to the device of its parameters, which another tensor tells."""
        return [Factors(*synapses.load_once(term, beside)) for term in self.factors[name]]

    def _changes(self, synapses: SynapseView, names: list[str]) -> dict[str, Tensor]:
        """Weights minus anchor of each layer with a named parameter, as matrices of shape ``(O, I)``."""
        at = dict(zip(synapses.names, synapses.parameters, strict=True))
        anchors = dict(zip(synapses.names, synapses["anchor"], strict=True))

        def part(name: str, shape: tuple[int, int], beside: Tensor, dtype: torch.dtype) -> Tensor:
            """Columns of a weight or a bias; zeros for one that is not among the synapses."""
            if name not in at:
                return beside.new_zeros(shape, dtype=dtype)
            # Copies where the weight is not contiguous in memory, as with channels_last.
            return (at[name].detach() - anchors[name]).to(dtype).reshape(shape)

        found, stepping = {}, set(names)
        for name, terms in self.factors.items():
            if not {name, bias_name(name)} & stepping:
                continue
            inputs, outputs = terms[0]
            rows, columns = len(outputs), len(inputs)
            own = next(at[n] for n in (name, bias_name(name)) if n in at)
            # A weight that is not among the synapses is needed for its bias, the last column.
            width = own[0].numel() if name in at else columns - 1
            weight = part(name, (rows, width), own, inputs.dtype)
            bias = part(bias_name(name), (rows, columns - width), own, inputs.dtype)
            found[name] = torch.cat([weight, bias], 1)
        return found


def _add(target: Mapping[str, Tensor], name: str, change: Tensor) -> None:
    """Adds a matrix ``(O, I)`` to a layer's weight and bias, if these are in ``target``."""
    if name in target:
        weight = target[name]
        weight += change[:, : weight[0].numel()].reshape(weight.shape)
    if bias_name(name) in target:
        bias = target[bias_name(name)]
        bias += change[:, -1]


def _grown(term: Factors, weight: Tensor, has_bias: bool) -> Factors:
    inputs, outputs = term
    rows = len(weight) - len(outputs)
    columns = max(0, weight[0].numel() + has_bias - len(inputs))
    if rows or columns:
        return Factors(*(nn.functional.pad(t, (0, n, 0, n)) for t, n in ((inputs, columns), (outputs, rows))))
    return term
