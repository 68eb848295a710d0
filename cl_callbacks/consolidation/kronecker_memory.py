"""Kronecker-factored curvatures of a network's layers, remembered over tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cl_callbacks.functional.kronecker import (
    Eigen,
    Factored,
    Factors,
    decompose,
    has_factors,
    kronecker_pull,
    nearest_sum,
    paired,
    relax_kronecker,
)
from cl_callbacks.synapses import SynapseView, plain_name

Accumulate = Literal["list", "nearest"]


def factored_layers(module: nn.Module, synapses: SynapseView) -> dict[str, Factored]:
    """The layers whose curvature can be factored, by the name of their weight.

    Their weight is among the synapses and belongs to no other module.
    """
    owners: dict[int, int] = {}
    for inner in module.modules():
        for p in inner.parameters(recurse=False):
            owners[id(p)] = owners.get(id(p), 0) + 1
    wanted = {id(p) for p in synapses.parameters}
    return {
        plain_name(f"{name}.weight" if name else "weight"): inner
        for name, inner in module.named_modules()
        if has_factors(inner) and id(inner.weight) in wanted and owners[id(inner.weight)] == 1
    }


class KroneckerMemory:
    """Factors of each layer, and the quadratic penalty that they make.

    A layer's weights and bias are one matrix, the bias its last column. A bias that is not among the
    synapses counts as resting at its anchor.

    Args:
        accumulate: keep the factors of every task, or one pair that is nearest to their sum.
    """

    def __init__(self, accumulate: Accumulate) -> None:
        self.accumulate = accumulate
        self.factors: dict[str, list[Factors]] = {}
        self._eigen: dict[str, Eigen] = {}

    def place(self, synapses: SynapseView) -> None:
        """Lays the factors out beside the weights; output factors of grown layers get zeros."""
        weights = dict(zip(synapses.names, synapses.parameters, strict=True))
        for name, terms in self.factors.items():
            if name in weights and (terms[0].outputs.device, len(terms[0].outputs)) != (
                weights[name].device,
                len(weights[name]),
            ):
                self.factors[name] = [_beside(term, weights[name]) for term in terms]
                self._eigen.pop(name, None)

    def remember(self, name: str, new: Factors, decay: float) -> None:
        """Takes a task's factors in; of the older tasks' the share ``decay`` is kept."""
        old = [Factors(a, g * decay) for a, g in self.factors.get(name, [])]
        terms = [*old, new]
        self.factors[name] = [nearest_sum(terms)] if self.accumulate == "nearest" and old else terms
        self._eigen.pop(name, None)

    def pull(
        self, synapses: SynapseView, names: list[str], gradients: list[Tensor], stiffness: float
    ) -> None:
        """Adds the gradient of the penalty to those of the named parameters, in place."""
        target = dict(zip(names, gradients, strict=True))
        for name, change in self._changes(synapses, names).items():
            _add(target, name, stiffness * kronecker_pull(change, self.factors[name]))

    def relax(self, synapses: SynapseView, names: list[str], steps: list[float]) -> None:
        """Takes the proximal step of the penalty, in place; for single pairs."""
        target = dict(zip(synapses.names, synapses.parameters, strict=True))
        step = dict(zip(names, steps, strict=True))
        for name, change in self._changes(synapses, names).items():
            if name not in self._eigen:
                (pair,) = self.factors[name]
                self._eigen[name] = decompose(pair)
            rate = step.get(name, step.get(_bias(name), 0.0))
            relaxed = relax_kronecker(change, self._eigen[name], rate)
            _add({n: target[n] for n in (name, _bias(name)) if n in step}, name, relaxed - change)

    def penalty(self, synapses: SynapseView, stiffness: float) -> Tensor:
        """The penalty, a scalar."""
        changes = self._changes(synapses, synapses.names)
        terms = [(kronecker_pull(d, self.factors[name]) * d).sum() for name, d in changes.items()]
        return 0.5 * stiffness * torch.stack(terms).sum() if terms else torch.zeros(())

    def state_dict(self) -> dict[str, Any]:
        """Lists of tensors by the name of the weight: input factor, output factor, input factor, …."""
        return {name: [factor for term in terms for factor in term] for name, terms in self.factors.items()}

    def load_state_dict(self, state: Mapping[str, list[Tensor]]) -> None:
        """Takes copies of saved factors."""
        self.factors = {name: paired([t.detach().clone() for t in flat]) for name, flat in state.items()}
        self._eigen = {}

    def _changes(self, synapses: SynapseView, names: list[str]) -> dict[str, Tensor]:
        """How far each layer that has one of the named parameters is from its anchor, as a matrix."""
        place = {name: i for i, name in enumerate(synapses.names)}
        wanted, found = set(names), {}
        for name, terms in self.factors.items():
            if name in place and (name in wanted or _bias(name) in wanted):
                dtype, columns = terms[0].inputs.dtype, len(terms[0].inputs)
                change = _difference(synapses, place[name]).flatten(1).to(dtype)
                if columns > change.shape[1]:
                    bias = place.get(_bias(name))
                    last = change.new_zeros(len(change)) if bias is None else _difference(synapses, bias)
                    change = torch.cat([change, last.to(dtype).unsqueeze(1)], 1)
                found[name] = change
        return found


def _bias(weight: str) -> str:
    return weight.removesuffix("weight") + "bias"


def _difference(synapses: SynapseView, i: int) -> Tensor:
    return synapses.parameters[i].detach() - synapses["anchor"][i]


def _add(target: Mapping[str, Tensor], name: str, change: Tensor) -> None:
    """Adds a matrix to a layer's weight and bias, as far as these are there."""
    if name in target:
        weight = target[name]
        weight += change[:, : weight[0].numel()].reshape(weight.shape)
    if _bias(name) in target:
        bias = target[_bias(name)]
        bias += change[:, -1]


def _beside(term: Factors, weight: Tensor) -> Factors:
    inputs, outputs = term.inputs.to(weight.device), term.outputs.to(weight.device)
    grown = len(weight) - len(outputs)
    return Factors(inputs, nn.functional.pad(outputs, (0, grown, 0, grown)))
