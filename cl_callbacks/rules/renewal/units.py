"""Which weights lead into each unit of a network, and which read it: found by running the network once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cl_callbacks.rules.renewal.unit_trace import UnitTrace


@dataclass(frozen=True)
class Units:
    """Units of a network: the outputs of a layer, each of them a number or a channel.

    Where outputs of several layers are added up or multiplied one by one, as in a residual stream or a gated
    layer, these layers have their units in common.

    Attributes:
        layer: name of the layer; of several, that of the first.
        number: of units.
        incoming: names of the parameters whose rows (of the first dimension) lead into each unit: weights and
            biases of the layers.
        norms: names of the norms behind them, such as BatchNorm and LayerNorm, whose parameters and
            statistics have a row for each unit.
        outgoing: names of the weights whose columns (of the second dimension) read the units.
        rows: number of rows of each unit, which lie side by side: those of a head of attention, else 1.
        columns: number of columns of each unit, side by side too: those of a head, or the positions of a
            channel that was flattened, else 1.
    """

    layer: str
    number: int
    incoming: tuple[str, ...]
    norms: tuple[str, ...]
    outgoing: tuple[str, ...]
    rows: int = 1
    columns: int = 1

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers whose outputs they are."""
        suffix = ".weight"
        return tuple(name.removesuffix(suffix) for name in self.incoming if name.endswith(suffix))


def find_units(module: nn.Module, run: Callable[[], Any]) -> tuple[list[Units], dict[str, str]]:
    """Finds the units of linear and convolutional layers that only other such layers read.

    From a unit to its readers there may be activations, dropout, norms, pooling, and flattening, and
    convolutions of each channel by itself. Units that are added or multiplied one by one are one. Where a
    layer gives the values of attention, each head is a unit. A unit on which the loss depends in another way
    too is left out, since nobody could tell by which weights: that of an output, of a query or key, of a
    residual stream to which an embedding is added, or one that is concatenated with others.

    Args:
        module: whose layers are looked at.
        run: runs the module on a batch, and returns the loss: what that does not depend on, such as what is
            only logged, is no reader. Layers that it does not run are not found.

    Returns:
        The units of each layer, in order; and why others were left out, by layer.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> units, left_out = find_units(net, lambda: net(torch.ones(5, 4)).sum())
        >>> units[0].incoming, units[0].outgoing
        (('0.weight', '0.bias'), ('2.weight',))
        >>> left_out
        {'2': 'read by sum'}
    """
    with UnitTrace(module) as trace, torch.no_grad():
        result = run()
    trace.end(result)
    found, left_out = [], dict(trace.not_followed)
    for source in dict.fromkeys(trace.sources.values()):
        reason = source.obstacle or trace.obstacle(source)
        if reason:
            left_out.update(dict.fromkeys(source.layers, reason))
            continue
        incoming = tuple(trace.parameters_of(source))
        columns = next(iter(source.readers.values()))
        names = (source.layers[0], source.number, incoming, tuple(source.norms), tuple(source.readers))
        found.append(Units(*names, source.rows, columns))
    return found, left_out
