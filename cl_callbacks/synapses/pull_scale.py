"""How far rules change the gradient and the update, beside the gradient and the update themselves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cl_callbacks.synapses.step import Rule
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.tensors.blocks import Rows, rows_of
from cl_callbacks.tensors.devices import stacked
from cl_callbacks.tensors.shards import held


class Change(NamedTuple):
    """What a rule has changed in one block of a step.

    ``squares`` is of shape ``(2, len(names))``: squared norms of the change, and of what was changed.
    """

    names: list[str]
    squares: Tensor


class PullScale:
    """Measures what rules change in the steps of one batch, by comparing before and after.

    Each pull is compared with the task's gradient before any pull, each rewrite with the update before any
    rewrite (after that of a rule that owns the update). Training is the same, bit for bit, as without; it
    takes copies of the gradients of one block, or of all weights where a rule rewrites.

    Args:
        pulling: rules of which the pulls are measured.
        rewriting: rules of which the rewrites are measured.

    Example:
        >>> from types import SimpleNamespace
        >>> from cl_callbacks.synapses.state import Synapses
        >>> weight, synapses = torch.nn.Parameter(torch.ones(2)), Synapses({})
        >>> view = synapses.place({"weight": weight}, ["weight"])
        >>> rule, gradient = SimpleNamespace(synapses=synapses), torch.tensor([3.0, 4.0])
        >>> scale = PullScale([rule], [])
        >>> scale.before_pulls(view.part, {weight: gradient})
        >>> _ = gradient.add_(torch.tensor([0.0, 0.5]))
        >>> scale.pulled(rule, view, [gradient])
        >>> ratio(scale.changes_of(rule), view)
        tensor(0.1000)
    """

    def __init__(self, pulling: Iterable[Rule], rewriting: Iterable[Rule]) -> None:
        self._pulling, self._rewriting = set(map(id, pulling)), set(map(id, rewriting))
        self._changes: dict[int, list[Change]] = defaultdict(list)
        self._weights_before: dict[int, dict[Tensor, Tensor]] = {}  # by block
        self._latest: dict[Tensor, Tensor] = {}
        self._squares: dict[Tensor, Tensor] = {}  # of what is being changed

    def changes_of(self, rule: Rule) -> list[Change]:
        """What a rule has changed in the steps so far; empty if it was not called or is not measured."""
        return self._changes.get(id(rule), [])

    def before_pulls(self, part: Mapping[Tensor, Rows], gradients: Mapping[Tensor, Tensor]) -> None:
        """Copies the task's gradients of one block of parameters, and the weights if they are needed."""
        if self._pulling:
            self._open(gradients, list(gradients.values()))
        if self._rewriting:
            self._weights_before[id(part)] = {p: w.clone() for p, w in _weights(part).items()}

    def pulled(self, rule: Rule, view: SynapseView, gradients: Sequence[Tensor]) -> None:
        """Measures the pull that a rule has just added to the gradients of a view of the block."""
        if id(rule) in self._pulling:
            self._close(rule, view, gradients)

    def before_rewrites(self, part: Mapping[Tensor, Rows]) -> None:
        """Copies the weights of one block; may be repeated in the same step."""
        before = self._weights_before.pop(id(part), None)
        if before is not None:
            weights = _weights(part)
            self._open(weights, torch._foreach_sub(list(weights.values()), list(before.values())))

    def rewritten(self, rule: Rule, view: SynapseView) -> None:
        """Measures how a rule has just changed the weights of a view of the block."""
        if id(rule) in self._rewriting:
            self._close(rule, view, view.parameters)

    def _open(self, tensors: Mapping[Tensor, Tensor], changed: Sequence[Tensor]) -> None:
        self._latest = {p: t.clone() for p, t in tensors.items()}
        self._squares = dict(zip(tensors, _squared_norms(changed), strict=True))

    def _close(self, rule: Rule, view: SynapseView, now: Sequence[Tensor]) -> None:
        latest = [self._latest[p] for p in view.sources]
        change = stacked(_squared_norms(torch._foreach_sub(list(now), latest)))
        of = stacked([self._squares[p] for p in view.sources])
        self._changes[id(rule)].append(Change(view.names, torch.stack([change, of.to(change)])))
        torch._foreach_copy_(latest, list(now))


def ratio(changes: Sequence[Change], view: SynapseView) -> Tensor:
    """Norm of what was changed over the norm of what it was changed in, a scalar; 0 where it is not known.

    A collective where the parameters of the ``view`` are sharded.

    Example:
        >>> view = SynapseView([], {}, [], [])
        >>> ratio([Change(["a", "b"], torch.tensor([[4.0, 5.0], [16.0, 20.0]]))], view)
        tensor(0.5000)
    """
    return ratios([stacked([change.squares.sum(1) for change in changes]).sum(0)], view)[0]


def ratios(squares: Sequence[Tensor], view: SynapseView) -> Tensor:
    """Like :func:`ratio`, of several sums of squares, each of shape ``(2,)``: of each layer, for example.

    Example:
        >>> ratios([torch.tensor([4.0, 16.0]), torch.tensor([torch.nan, 1.0])], SynapseView([], {}, [], []))
        tensor([0.5000, 0.0000])
    """
    change, of = view.total(stacked(squares)).unbind(1)
    return (change / of).sqrt().nan_to_num(0.0, torch.inf)


def by_layer(changes: Sequence[Change], layer_of: Mapping[str, str]) -> dict[str, Tensor]:
    """Sums of the squares of each layer, in the order of the changes.

    Args:
        changes: of one rule.
        layer_of: name of the layer by that of the parameter.

    Example:
        >>> by_layer([Change(["a.weight", "a.bias"], torch.ones(2, 2))], {"a.weight": "a", "a.bias": "a"})
        {'a': tensor([2., 2.])}
    """
    found: dict[str, list[Tensor]] = defaultdict(list)
    for change in changes:
        for name, squares in zip(change.names, change.squares.unbind(1), strict=True):
            if name in layer_of:
                found[layer_of[name]].append(squares)
    return {layer: stacked(squares).sum(0) for layer, squares in found.items()}


def _weights(part: Mapping[Tensor, Rows]) -> dict[Tensor, Tensor]:
    return {p: rows_of(held(p), rows) for p, rows in part.items()}


def _squared_norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Squared norms, summed in single precision or in that of the widest tensor."""
    wide = torch.float64 if any(t.dtype is torch.float64 for t in tensors) else torch.float32
    norms = list(torch._foreach_norm(list(tensors), 2, wide))
    return list(torch._foreach_mul(norms, norms))
