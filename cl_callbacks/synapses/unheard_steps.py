"""Notices weights that change without a step of an optimizer that was heard."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from cl_callbacks.guards.few import few
from cl_callbacks.synapses.step import Rule
from cl_callbacks.tensors.devices import stacked
from cl_callbacks.tensors.shards import held


class UnheardSteps:
    """Compares the weights of rules with what they were before the first step, until each step was heard.

    It looks at the first time, the second, the fourth and so on: so an unheard step is found at once, and
    weights that never step cost little. Where others step, weights without a gradient are let be, since they
    may be changed on purpose, as a teacher's are by averaging.

    Args:
        rules: of which the weights are.

    Example:
        >>> from types import SimpleNamespace
        >>> from cl_callbacks.synapses.state import Synapses
        >>> synapses, weight = Synapses({}), torch.nn.Parameter(torch.ones(2))
        >>> _ = synapses.place({"weight": weight}, ["weight"])
        >>> unheard = UnheardSteps([SimpleNamespace(synapses=synapses)])
        >>> unheard.refuse(set())
        >>> weight.data -= 0.1
        >>> unheard.refuse(set())
        Traceback (most recent call last):
        ...
        lightning.fabric.utilities.exceptions.MisconfigurationException: SimpleNamespace cannot act ...
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        views = [rule.synapses.view for rule in rules]
        self._weights = {n: p for view in views for n, p in zip(view.names, view.sources, strict=True)}
        self._before = _checksums(self._weights)
        self._looks = 0

    def refuse(self, heard: Collection[int]) -> None:
        """Raises for weights that have changed; ``heard`` has the ``id()`` of those that stepped.

        Raises:
            MisconfigurationException: the rules cannot act on the steps of some weights.
        """
        self._looks += 1
        if not self._weights or self._looks & (self._looks - 1):
            return
        self._weights = {name: p for name, p in self._weights.items() if id(p) not in heard}
        suspect = {name: p for name, p in self._weights.items() if not heard or p.grad is not None}
        changed = [name for name, found in _checksums(suspect).items() if found != self._before[name]]
        if changed:
            raise MisconfigurationException(
                f"{' and '.join(type(rule).__name__ for rule in self._rules)} cannot act on steps that are "
                f"not heard: {few(changed)} changed, and no optimizer has stepped them. Let them be changed "
                f"by `step` of a torch.optim.Optimizer that calls `super().__init__(params, defaults)`, and "
                f"return it from `configure_optimizers`; or leave them out with exclude."
            )


def _checksums(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Sum of the bits of each tensor, read as integers: any change counts, also of weights that are NaN."""
    sums = [_bits(held(p.detach())).sum(dtype=torch.int64) for p in weights.values()]
    values = stacked(sums).tolist() if sums else []
    return dict(zip(weights, values, strict=True))


def _bits(tensor: Tensor) -> Tensor:
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.view(integers[tensor.element_size()])
