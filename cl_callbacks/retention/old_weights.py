"""Puts a network between the weights that training has ended with and those of the last boundary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cl_callbacks.functional.averaging import draw_back_
from cl_callbacks.rules.averaging.batch_statistics import statistics
from cl_callbacks.synapses.view import SynapseView


class OldStatistics:
    """Running means and variances of normalising layers at the last boundary, and which were in use.

    Those of a layer that no task before has used, as in a head of its own, are not drawn back to their start.

    Args:
        wanted: whether statistics of a name, such as ``"net.1.running_mean"``, are kept.
    """

    def __init__(self, wanted: Callable[[str], bool]) -> None:
        self._wanted = wanted
        self._old: dict[str, Tensor] = {}
        self._used: dict[str, bool] = {}

    def begin(self, module: nn.Module) -> None:
        """Keeps the start of statistics that are new."""
        for name, present in statistics(module):
            if self._wanted(name) and name not in self._old:
                self._old[name], self._used[name] = present.clone(), False

    def keep(self, module: nn.Module) -> None:
        """Keeps the present statistics as those of a boundary."""
        for name, present in statistics(module):
            if self._wanted(name):
                same = name in self._old and torch.equal(self._old[name].to(present), present)
                self._used[name] = self._used.get(name, False) or not same
                self._old[name] = present.clone()

    def between(self, module: nn.Module) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The tensor, its present and its old value, of all that are drawn back."""
        used = [(name, present) for name, present in statistics(module) if self._used.get(name)]
        return [(present, present.clone(), self._old[name].to(present)) for name, present in used]

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers only."""
        return {"old": dict(self._old), "used": dict(self._used)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._old = {name: t.detach().clone() for name, t in state["old"].items()}
        self._used = dict(state["used"])


class OldWeights:
    """A network that can be put anywhere between its present weights and its old ones.

    Rows (of the first dimension) behind the last one in which a task before has trained a weight, with a
    ``total`` above 0, have no old value and stay: of a head that is new all, of one that has grown the new
    classes. Any other weight has one, if only the random number that the old tasks were scored with, as that
    of a unit that was silent in them.

    Args:
        module: the network.
        synapses: its weights, with the fields ``old`` and ``total``.
        old_statistics: those of its normalising layers.
    """

    def __init__(self, module: nn.Module, synapses: SynapseView, old_statistics: OldStatistics) -> None:
        self._synapses = synapses
        self._old, self._used = synapses["old"], [_used_rows(total) for total in synapses["total"]]
        self._present = [p.detach().clone() for p in synapses.parameters]
        self._statistics = old_statistics.between(module)

    @torch.no_grad()
    def put(self, share: float) -> None:
        """Puts the network at a share of the old weights, from 0 to 1; at 0 it is as it was, bit for bit."""
        parameters = self._synapses.parameters
        torch._foreach_copy_(parameters, self._present)
        if share:
            draw_back_(parameters, self._old, self._used, share)
        for tensor, present, old in self._statistics:
            tensor.copy_(torch.lerp(present, old, share))

    def moved(self) -> dict[Tensor, Tensor]:
        """By how much each weight is away from where it was, by parameter."""
        moved = torch._foreach_sub(self._synapses.parameters, self._present)
        return dict(zip(self._synapses.sources, moved, strict=True))


def _used_rows(total: Tensor) -> Tensor:
    """1 in the rows up to the last one that has anything but 0, and 0 behind it; of the same shape."""
    if not total.ndim or not total.numel():
        return total
    used = (total != 0).reshape(len(total), -1).any(dim=1)
    not_behind = used.flip(0).cumsum(0).flip(0) > 0
    return not_behind.to(total).reshape(-1, *[1] * (total.ndim - 1)).expand_as(total)
