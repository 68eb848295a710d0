"""Notices weights that were begun anew between tasks, under the names of those that were learned."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.tensors.shards import held

ELEMENTS = 1024
"""Largest number of elements of a tensor that are compared."""
FEWEST = 16
"""Number of elements below which chance may make any two tensors alike or unlike."""


class _Sample(NamedTuple):
    shape: torch.Size
    values: Tensor


class _Ended(NamedTuple):
    """The weights with which a task ended, and those with which it began if these are known."""

    end: _Sample
    start: _Sample | None


class Continuity:
    r"""Compares the weights with which a task begins with those with which the last one ended.

    With a tensor's weights :math:`e` at the end of the last task, :math:`s` at its start, and :math:`b` when
    the next one begins, it was begun anew if :math:`b = s \ne e`, or :math:`b = 0 \ne e`, or

    .. math:: \cos(b, e) < \max(0.2, 2/\sqrt n), \quad \|b - e\| \ge \|s - e\|
              \quad\text{and}\quad \|b - s\| \ge 0.7\,\|s\|,

    where :math:`s \ne 0` and :math:`n` elements are compared, at most 1024. This is true of weights that were
    drawn or set to 0 again. The best checkpoint of a task is on the way from :math:`s` to :math:`e`, where at
    least one of the three does not hold; a move to another device or another Trainer changes nothing.

    Args:
        restored: whether the rule's state is from a checkpoint or a file, so that the end of the last task
            is not known here.

    Example:
        >>> from cl_callbacks.synapses.state import Synapses
        >>> layer = torch.nn.Linear(64, 64)
        >>> view, continuity = Synapses({}).place({"weight": layer.weight}, ["weight"]), Continuity()
        >>> continuity.end(view)
        >>> layer.reset_parameters()
        >>> continuity.begin(view)
        ['weight']
    """

    def __init__(self, restored: bool = False) -> None:
        self.restored = restored
        self._began: dict[str, _Sample] = {}
        self._ended: dict[str, _Ended] = {}
        self._said: set[str] = set()

    def end(self, view: SynapseView) -> None:
        """Keeps the weights with which a task ends."""
        ends = _samples(view.names, view.sources)
        # In a new dict: a copy of this object from before the end of a task keeps its own.
        self._ended = self._ended | {n: _Ended(end, self._began.get(n)) for n, end in ends.items()}
        self._began = {}

    def begin(self, view: SynapseView, anchors: Iterable[Tensor] = ()) -> list[str]:
        """Names of the weights that were begun anew since the last task; each is returned once.

        Waits for the device: call it once in a task.

        Args:
            view: of the weights with which a task begins.
            anchors: to which the rule pulls them, if it does, aligned with the view: what the weights are
                compared with if the end of the last task is not known.
        """
        then = self._ended
        if self.restored:
            then = {name: _Ended(a, None) for name, a in _samples(view.names, anchors).items()} | then
        self._began = _samples(view.names, view.sources)
        new = [
            name
            for name, now in self._began.items()
            if name in then and name not in self._said and _is_anew(now, *then[name])
        ]
        self._said.update(new)
        return new


def _samples(names: Iterable[str], tensors: Iterable[Tensor]) -> dict[str, _Sample]:
    found = {}
    for name, tensor in zip(names, tensors, strict=False):
        flat = held(tensor.detach()).flatten()
        values = flat[:: max(1, math.ceil(len(flat) / ELEMENTS))]
        wide = torch.promote_types(flat.dtype, torch.float32)
        found[name] = _Sample(held(tensor).shape, values.to(wide, copy=True))
    return found


def _is_anew(now: _Sample, end: _Sample, start: _Sample | None) -> bool:
    if now.shape != end.shape:  # as of a head that has grown
        return False
    b, e = now.values.cpu().double(), end.values.cpu().double()
    if not e.any() or torch.equal(b, e):
        return False
    if not b.any():
        return True
    if start is not None and start.shape == end.shape:
        s = start.values.cpu().double()
        if torch.equal(b, s):
            return True
        if (b - e).norm() < (s - e).norm() or (b - s).norm() < 0.7 * s.norm():
            return False
        if not s.any():  # the first steps from 0 go anywhere
            return False
    alike = max(0.2, 2 / math.sqrt(len(b)))
    return len(b) >= FEWEST and bool(b @ e < alike * b.norm() * e.norm())
