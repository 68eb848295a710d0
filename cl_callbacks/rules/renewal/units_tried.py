"""Tries whether units are read by nothing but what was found to read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cl_callbacks.rules.renewal.units import Units
from cl_callbacks.tensors.containers import flat_tensors
from cl_callbacks.tensors.shards import held


def read_elsewhere(
    module: nn.Module,
    found: Sequence[Units],
    run: Callable[[], Any],
    in_any_process: Callable[[bool], bool] = bool,
) -> list[str]:
    """Layers whose units change what the module gives although the weights that read them are 0.

    A function that torch cannot follow may read them, such as one of numpy, or one with its own derivative.

    Args:
        module: with the units; its weights are changed for a while.
        found: the units.
        run: runs the module, with the same random numbers each time, and returns what to compare.
        in_any_process: whether something was found in any of the processes, all of which call it.

    Example:
        >>> from cl_callbacks.rules.renewal.units import find_units
        >>> class Penalised(nn.Sequential):
        ...     def forward(self, x):
        ...         return super().forward(x) + float(self[0](x).detach().numpy().sum())
        >>> net = Penalised(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> run = lambda: net(torch.ones(1, 2))
        >>> units = [Units("0", 2, ("0.weight", "0.bias"), (), ("1.weight",))]
        >>> read_elsewhere(net, units, run)
        ['0']
    """

    def matters(moved: Sequence[Units]) -> bool:
        return in_any_process(_differs(module, found, moved, run))

    if not found or not matters(found):
        return []
    return [units.layer for units in found if matters([units])]


def _differs(module: nn.Module, cut: Sequence[Units], moved: Sequence[Units], run: Callable[[], Any]) -> bool:
    """Whether something changes if units do, with all outgoing weights at 0."""
    outgoing = [held(module.get_parameter(name)) for units in cut for name in units.outgoing]
    layers = [module.get_submodule(name) for units in moved for name in units.layers]
    with torch.no_grad(), _restored(outgoing):
        torch._foreach_zero_(outgoing)
        before = [t.clone() for t in flat_tensors(run())]
        handles = [layer.register_forward_hook(lambda _, args, out: out + 0.1) for layer in layers]
        try:
            after = flat_tensors(run())
        finally:
            for handle in handles:
                handle.remove()
        return any(not torch.equal(a, b) and not _both_nan(a, b) for a, b in zip(before, after, strict=True))


def _both_nan(a: Tensor, b: Tensor) -> bool:
    return bool((a.isnan() == b.isnan()).all() and torch.equal(a.nan_to_num(), b.nan_to_num()))


@contextmanager
def _restored(parameters: list[Tensor]) -> Iterator[None]:
    kept = [p.detach().clone() for p in parameters]
    try:
        yield
    finally:
        torch._foreach_copy_(parameters, kept)
