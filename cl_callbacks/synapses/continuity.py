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
    """The weights with which a task ended and began; the latter are those at the end if they are unknown."""

    end: _Sample
    start: _Sample


class Continuity:
    r"""Compares the weights with which a task begins with those with which the last one ended.

    With a tensor's weights :math:`e` at the end of the last task, :math:`s` at its start, and :math:`b` when
    the next one begins, it was begun anew if

    .. math:: \cos(b, e) < \max(0.2, 2/\sqrt n) \quad\text{and}\quad \|b - e\| \ge \|s - e\|,

    where the cosine of zeros is 0, and :math:`n` elements of the tensor are compared, at most 1024. Both are
    true of weights that were drawn again or set to 0. The best checkpoint of a task is on the way from
    :math:`s` to :math:`e`, and so is nearer to :math:`e`; a move to another device or another Trainer changes
    nothing.

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
        self._ended |= {name: _Ended(end, self._began.get(name, end)) for name, end in ends.items()}
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
            then = {name: _Ended(a, a) for name, a in _samples(view.names, anchors).items()} | then
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


def _is_anew(now: _Sample, end: _Sample, start: _Sample) -> bool:
    if now.shape != end.shape:  # as of a head that has grown
        return False
    b, e, s = (sample.values.to("cpu") for sample in (now, end, start))
    size, elements = b.norm() * e.norm(), len(b)
    if not e.any() or (start.shape == end.shape and (b - e).norm() < 0.999 * (s - e).norm()):
        return False
    unlike = elements >= FEWEST and b @ e < max(0.2, 2 / math.sqrt(elements)) * size
    return not b.any() or bool(unlike)
