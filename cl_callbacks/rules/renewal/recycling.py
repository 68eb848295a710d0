"""Replaces units by new ones: their weights, the optimizer's moments, and the state of every rule."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cl_callbacks.functional.units import bias_shift
from cl_callbacks.rules.renewal.units import Units
from cl_callbacks.rules.synaptic_callback import SynapticCallback
from cl_callbacks.tensors.blocks import spread
from cl_callbacks.tensors.lines import Lines
from cl_callbacks.tensors.random_numbers import numbered_generator
from cl_callbacks.tensors.shards import held


class Recycling:
    r"""Gives units new incoming weights, and outgoing ones of 0, so that they change nothing at first.

    Incoming weights are drawn from :math:`U(-1/\sqrt n, 1/\sqrt n)` for :math:`n` inputs, as torch
    initialises its layers, and biases are 0. Of a norm behind the units the parameters and statistics of
    a new one are set. The moments of the optimizers, tensors of the shape of a parameter, are 0 in the
    rows and columns of these weights; one number for all of a tensor, such as Adam's count of steps, stays.
    All rules forget these weights: their state becomes that of a new weight.

    Args:
        module: with the units.
        optimizers: which step its weights.
        rules: which have state for them.
        seed: of the random numbers, which are the same in all processes.
    """

    def __init__(
        self, module: nn.Module, optimizers: Iterable[Any], rules: Iterable[SynapticCallback], seed: int
    ) -> None:
        self._module, self._optimizers, self._rules, self._seed = module, list(optimizers), list(rules), seed

    @torch.no_grad()
    def renew(
        self,
        units: Units,
        index: Tensor,
        number: int,
        means: Mapping[str, Tensor],
        trained: Container[str],
    ) -> None:
        """Replaces some units of a layer.

        Args:
            units: of the layer.
            index: which of them, ``(n,)``, on the device of the weights.
            number: of the random numbers: another one for each time.
            means: of the inputs of each reader with which its bias, if it has one, makes up for the units;
                by its name.
            trained: names of parameters, of which biases of readers and norms stay as they are if they are
                none of these.
        """
        rows, columns = Lines(0, spread(index, units.rows)), Lines(1, spread(index, units.columns))
        for name in units.incoming:
            weight = self._module.get_parameter(name)
            generator = numbered_generator(self._seed, number, torch.device("cpu"), hash_of(name))
            self._replace(weight, rows, _initial(weight, len(rows.index), generator))
        for norm in units.norms:
            self._renew_norm(norm, rows, trained)
        for name in units.outgoing:
            reader = self._module.get_parameter(name)
            layer = name.removesuffix(".weight")
            bias = getattr(self._module.get_submodule(layer), "bias", None)
            if bias is not None and name in means and f"{layer}.bias" in trained:
                weights = held(reader)
                shift = bias_shift(weights, means[name].to(weights), columns.index.to(weights.device))
                held(bias).add_(shift.to(bias.dtype))
            self._replace(reader, columns, None)

    def _renew_norm(self, name: str, rows: Lines, trained: Container[str]) -> None:
        norm: Any = self._module.get_submodule(name)
        for key, value in (("running_mean", 0.0), ("running_var", 1.0)):
            if getattr(norm, key, None) is not None:
                rows.fill_(getattr(norm, key), value)
        for key, value in (("weight", 1.0), ("bias", 0.0)):
            parameter = getattr(norm, key, None)
            if parameter is not None and f"{name}.{key}" in trained:
                self._replace(parameter, rows, torch.full((len(rows.index),), value))

    def _replace(self, parameter: Tensor, lines: Lines, new: Tensor | None) -> None:
        if new is None:
            lines.fill_(parameter, 0.0)
        else:
            lines.set_(parameter, new)
        for optimizer in self._optimizers:
            for moment in optimizer.state.get(parameter, {}).values():
                if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                    lines.fill_(moment, 0.0)
        for rule in self._rules:
            rule.forget_synapses(parameter, lines.dim, lines.index.to(parameter.device))


def _initial(parameter: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    shape = rows, *parameter.shape[1:]
    if parameter.ndim == 1:  # a bias
        return torch.zeros(shape)
    bound = 1 / math.sqrt(parameter.shape[1:].numel())
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def hash_of(name: str) -> int:
    """A number for a name, the same in every process."""
    return int.from_bytes(name.encode(), "big") % (2**31 - 1)
