"""The weights around the units of a layer, and what they say of each unit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from cl_callbacks.functional.units import held_magnitude, incoming_magnitude, outgoing_magnitude
from cl_callbacks.rules.renewal.units import Units
from cl_callbacks.rules.synaptic_callback import SynapticCallback
from cl_callbacks.tensors.shards import first_row, group_of, held, is_sharded, is_sharded_by_rows, total


class UnitWeights:
    """The weights that lead into the units of a layer, and those that read them.

    Where they are sharded by rows, each process adds up its own rows, and then all processes the sums: all
    have to call the methods.

    Args:
        module: the network.
        units: of one of its layers.

    Attributes:
        device: of the weights that lead into the units; readers may be on another one.
    """

    def __init__(self, module: LightningModule, units: Units) -> None:
        self._number = units.number
        weights = [name for name in units.incoming if name.endswith(".weight")]
        self._incoming: Sequence[Tensor] = [module.get_parameter(name).detach() for name in weights]
        self._readers: Sequence[Tensor] = [module.get_parameter(name) for name in units.outgoing]
        self._around: Sequence[Tensor] = [module.get_parameter(name) for name in units.incoming]
        self.device = self._incoming[0].device

    @property
    def have_whole_rows(self) -> bool:
        """Whether each of them is whole or sharded by rows."""
        every = (*self._around, *self._readers)
        return all(is_sharded_by_rows(p) for p in every if is_sharded(p))

    def outgoing_magnitude(self) -> Tensor:
        """See :func:`~cl_callbacks.functional.outgoing_magnitude`; ``(units,)``."""
        return self._over_shards(outgoing_magnitude(self._outgoing, self._number))

    def incoming_magnitude(self) -> Tensor:
        """See :func:`~cl_callbacks.functional.incoming_magnitude`; ``(units,)``."""
        by_row = torch.zeros(len(self._incoming[0]), dtype=self._incoming[0].dtype, device=self.device)
        for weight in self._incoming:
            own = held(weight).to(self.device)
            by_row.narrow(0, first_row(weight), len(own)).add_(own.abs().flatten(1).sum(1))
        return self._over_shards(incoming_magnitude(by_row, self._number))

    def held_magnitude(self, rule: SynapticCallback) -> Tensor:
        """How firmly a rule holds the readers: see :func:`~cl_callbacks.functional.held_magnitude`."""
        with rule.synapses.on_device():
            view = rule.synapses.view.restrict_to(self._readers)
            plasticity = rule.plasticity(view, [1.0] * len(view)) if len(view) else None
        known = dict(zip(view.sources, plasticity or [], strict=True))
        each = [
            known.get(p, torch.ones_like(own)).to(own)
            for p, own in zip(self._readers, self._outgoing, strict=True)
        ]
        return self._over_shards(held_magnitude(self._outgoing, each, self._number))

    @property
    def _outgoing(self) -> list[Tensor]:
        return [held(p.detach()).to(self.device) for p in self._readers]

    def _over_shards(self, value: Tensor) -> Tensor:
        """Sum over the processes; where one of the network's weights is sharded, all are."""
        return total(value, group_of(self._readers))
