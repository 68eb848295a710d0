"""What the units of a network do in training: their mean, magnitude, and how often they are active."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from cl_callbacks.rules.renewal.units import Units
from cl_callbacks.training.quiet import leaves_no_trace

Measure = Literal["mean", "magnitude", "active"]
"""Mean of each input of a reader; mean magnitude of each unit; share of samples in which it is not 0."""


class Heard(NamedTuple):
    """Averages over the units of a layer, as those that read them hear them.

    Attributes:
        units: ``(units,)``, over all readers, by measure.
        means: ``(inputs,)``, by the name of the weight that reads them; where several read a residual stream
            each hears something else.
    """

    units: Mapping[Measure, Tensor]
    means: Mapping[str, Tensor]

    def to(self, device: torch.device) -> Heard:
        """The same on another device."""
        units = {measure: t.to(device) for measure, t in self.units.items()}
        return Heard(units, {name: t.to(device) for name, t in self.means.items()})


class Activity:
    """Averages over what the readers of units get as inputs, while it is listening.

    Args:
        module: with the units.
        units: of it.
        measures: what is to be averaged.

    Example:
        >>> from cl_callbacks.rules.renewal.units import find_units
        >>> net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> units, _ = find_units(net, lambda: net(torch.ones(1, 1)))
        >>> activity = Activity(net, units, ["magnitude"])
        >>> activity.listening = True
        >>> _ = net(torch.ones(4, 1))
        >>> activity.take()["0"].units["magnitude"].shape
        torch.Size([2])
        >>> activity.detach()
    """

    def __init__(self, module: nn.Module, units: Iterable[Units], measures: Iterable[Measure]) -> None:
        self.listening = False
        self.samples = 0
        """Number of samples since the last :meth:`take`, in this process."""
        self._measures, self._units, self._module = tuple(measures), tuple(units), module
        self._sums: dict[tuple[Measure, str], Tensor] = {}  # by layer, and means by reader
        self._calls: dict[str, int] = {}  # of layers' readers together, and of each
        self._handles = [
            module.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
                self._hearing(own, name)
            )
            for own in self._units
            for name in own.outgoing
        ]
        self._first: nn.Module | None = None  # the reader by whose calls samples are counted

    def take(self, average: Callable[[list[Tensor]], None] | None = None) -> Mapping[str, Heard]:
        """The averages since the last time, by layer; those of layers that have run.

        Args:
            average: over several processes, in place; in each of them other layers may have run, and what
                has run in none of them is 0.
        """
        if average is None:
            means = {key: total / self._calls[key[1]] for key, total in self._sums.items()}
        else:
            means = self._over_processes(average)
        heard = [units for units in self._units if average is not None or units.layer in self._calls]
        self._sums, self._calls, self.samples, self._first = {}, {}, 0, None
        return {
            units.layer: Heard(
                {m: means[m, units.layer] for m in self._measures if m != "mean"},
                {name: means["mean", name] for name in units.outgoing if ("mean", name) in means},
            )
            for units in heard
        }

    def _over_processes(self, average: Callable[[list[Tensor]], None]) -> dict[tuple[Measure, str], Tensor]:
        """Averages over the calls in all processes, without waiting for the device."""
        sums: dict[tuple[Measure, str], Tensor] = {}
        calls: dict[tuple[Measure, str], Tensor] = {}
        for units in self._units:
            weight = self._module.get_parameter(units.incoming[0])
            wide = torch.promote_types(weight.dtype, torch.float32)
            for measure in self._measures:
                of_inputs = measure == "mean"
                size = units.number * (units.columns if of_inputs else 1)
                for name in units.outgoing if of_inputs else (units.layer,):
                    key = measure, name
                    nothing = torch.zeros(size, dtype=wide, device=weight.device)
                    sums[key] = self._sums.get(key, nothing).to(nothing)
                    calls[key] = nothing.new_full((1,), self._calls.get(name, 0))  # no copy from the host
        average([*sums.values(), *calls.values()])
        return {key: total / calls[key].clamp(min=1e-6) for key, total in sums.items()}

    def detach(self) -> None:
        """Stops for good."""
        for handle in self._handles:
            handle.remove()

    def _hearing(self, units: Units, name: str) -> Any:
        def hear(reader: nn.Module, args: tuple[Any, ...]) -> None:
            if self.listening and not leaves_no_trace():
                self._add(units, name, args[0].detach(), reader)

        return hear

    @torch.no_grad()
    def _add(self, units: Units, name: str, x: Tensor, reader: nn.Module) -> None:
        behind = 1 + len(getattr(reader, "kernel_size", ()))  # dimensions from that of the inputs on
        x = x if x.ndim > behind else x[None]  # one sample without a dimension for samples
        channel = x.ndim - behind
        if not x.numel():  # an expert to which no sample has come
            return
        if self._first in (None, reader):
            self._first = reader
            self.samples += len(x)
        others = [d for d in range(x.ndim) if d != channel]
        wide = torch.promote_types(x.dtype, torch.float32)
        for measure in self._measures:
            if measure == "mean":
                found = x.mean(others, dtype=wide)
            elif measure == "magnitude":
                found = _by_unit(x.abs().mean(others, dtype=wide), units)
            else:
                found = _active(x, channel, units)
            found = found.nan_to_num(0.0, 0.0, 0.0)  # a lost batch is not to be remembered for ever
            key = measure, name if measure == "mean" else units.layer
            total = self._sums.get(key)
            self._sums[key] = found if total is None else total.add_(found.to(total.device))
        for heard in (name, units.layer):
            self._calls[heard] = self._calls.get(heard, 0) + 1


def _by_unit(by_column: Tensor, units: Units) -> Tensor:
    return by_column.view(units.number, -1).mean(1)


def _active(x: Tensor, channel: int, units: Units) -> Tensor:
    """Share of samples in which a unit is not 0 somewhere, such as at any position of a channel."""
    active = x.ne(0).movedim(channel, 1).flatten(2) if x.ndim > 2 else x.ne(0)[..., None]
    return active.reshape(len(x), units.number, -1).any(2).mean(0, dtype=torch.float32)
