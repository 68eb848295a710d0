"""Statistics over the synapses of one rule, by layer and over all layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cl_callbacks.rules.rule_scale import measure_of
from cl_callbacks.rules.synaptic_callback import SynapticCallback
from cl_callbacks.synapses.pull_scale import by_layer, ratio, ratios
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.tensors.devices import stacked
from cl_callbacks.tensors.shards import group_of
from cl_callbacks.tensors.subsample import every_nth, quantiles_of, stride_for

QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}
SAMPLES = 16_384
"""Maximum number of synapses that quantiles are estimated from, per layer and for the whole network."""
ALL = "all"
RATIO = "ratio"
RESERVED = {ALL, "mean", *QUANTILES}

Statistics = dict[str, dict[str, dict[str, float]]]
"""``{measure: {layer or "all": {statistic: number}}}``"""


class Entry(NamedTuple):
    """Place of a number in the statistics; ``synapses`` is the count behind a sum, and 1 for others."""

    measure: str
    layer: str
    statistic: str
    synapses: int = 1


class Survey:
    """Statistics of one rule's measures, as tensors on the device, without waiting for it.

    The measures of only one layer at a time are in memory. Where parameters are sharded, all processes have
    to make the same surveys.

    Args:
        rule: the rule to survey.
        rates: learning rate by ``id`` of the parameter; 0 for one that is in no optimizer.
        frozen_below: plasticity below which a synapse counts as frozen.
        by_layer: whether to compute quantiles of each layer too.

    Attributes:
        entries: the place of each of the :meth:`numbers`, in order.
        samples: values of each measure at every n-th synapse of the network, at most 16,384.
    """

    def __init__(
        self, rule: SynapticCallback, rates: Mapping[int, float], frozen_below: float, by_layer: bool
    ) -> None:
        view = rule.synapses.view
        self._rule, self._rates, self._frozen_below, self._by_layer = rule, rates, frozen_below, by_layer
        self._group = group_of(view.sources)
        self._sums: list[tuple[Entry, Tensor]] = []
        self._found: list[tuple[Entry, Tensor]] = []  # quantiles and ratios, over all processes already
        taken: dict[str, list[Tensor]] = {}
        layers = _layers(view)
        stride, first = stride_for(sum(map(_size, layers.values())), SAMPLES), 0
        for layer, part in layers.items():
            first = self._see(layer, part, taken, stride, first)
        self.samples = {m: self._quantiles_of(_joined(parts), m, ALL) for m, parts in taken.items()}
        self._see_ratios(layers)
        self.entries = [entry for entry, _ in (*self._sums, *self._found)]
        self._totals = [view.total(stacked([value for _, value in self._sums]))] if self._sums else []

    def numbers(self) -> list[Tensor]:
        """Tensors whose concatenated elements belong to ``entries``, in order."""
        return [*self._totals, *(value for _, value in self._found)]

    def _see(
        self, layer: str, part: SynapseView, taken: dict[str, list[Tensor]], stride: int, first: int
    ) -> int:
        """Adds sums, quantiles and samples (to ``taken``) of a layer; returns the next sample's index."""
        size, following = _size(part), first
        rates = [self._rates.get(id(source), 0.0) for source in part.sources]
        for measure, values in self._rule.measures(part, rates).items():
            self._sums.append((Entry(measure, layer, "mean", size), _sum(values)))
            if measure == "plasticity":
                frozen = _sum([value < self._frozen_below for value in values])
                self._sums.append((Entry(measure, layer, "frozen_fraction", size), frozen))
            found, following = every_nth(values, stride, first)
            # A copy, since a slice would keep all of the values in memory.
            taken.setdefault(measure, []).append(_joined(found))
            if self._by_layer:
                own = stride_for(size, SAMPLES)
                self._quantiles_of(_joined(every_nth(values, own)[0]), measure, layer)
        return following

    def _see_ratios(self, layers: Mapping[str, SynapseView]) -> None:
        """Adds the latest measured ratio of the rule's effect, of each layer and of all."""
        scale, view, measure = self._rule.rule_scale, self._rule.synapses.view, measure_of(self._rule)
        if scale.latest:
            layer_of = {name: layer for layer, part in layers.items() for name in part.names}
            squares = by_layer(scale.latest, layer_of)
            found = ratios(list(squares.values()), view)
            self._found.append((Entry(measure, ALL, RATIO), ratio(scale.latest, view)))
            self._found += [(Entry(measure, layer, RATIO), found[i]) for i, layer in enumerate(squares)]

    def _quantiles_of(self, samples: Tensor, measure: str, layer: str) -> Tensor:
        """Adds the quantiles over the samples of all processes, and returns these samples."""
        if self._group is not None:
            samples = _gathered(samples, self._group)
        found = quantiles_of(samples, QUANTILES.values())
        self._found += [(Entry(measure, layer, q), found[i]) for i, q in enumerate(QUANTILES)]
        return samples


def statistics(entries: Sequence[Entry], numbers: Sequence[float]) -> Statistics:
    """Arranges the numbers of a survey; sums become means of each layer and of all.

    Example:
        >>> entries = [Entry("distance", "a", "mean", 2), Entry("distance", "b", "mean", 1)]
        >>> statistics(entries, [3.0, 0.0])
        {'distance': {'all': {'mean': 1.0}, 'a': {'mean': 1.5}, 'b': {'mean': 0.0}}}
    """
    found: Statistics = {}
    totals: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for (measure, layer, statistic, synapses), number in zip(entries, numbers, strict=True):
        layers = found.setdefault(measure, {ALL: {}})
        layers.setdefault(layer, {})[statistic] = number / synapses
        if statistic not in QUANTILES and statistic != RATIO:
            totals.setdefault((measure, statistic), []).append((number, synapses))
    for (measure, statistic), parts in totals.items():
        sums, sizes = zip(*parts, strict=True)
        found[measure][ALL][statistic] = sum(sums) / sum(sizes)
    return found


def read(
    surveys: Mapping[str, Survey], with_samples: bool
) -> tuple[dict[str, Statistics], dict[str, dict[str, np.ndarray]]]:
    """Statistics of each survey, and samples of its measures, in one read from each device."""
    tensors = [
        tensor
        for survey in surveys.values()
        for tensor in (*survey.numbers(), *(survey.samples.values() if with_samples else ()))
    ]
    arrays = iter(read_together(tensors))
    found, samples = {}, {}
    for key, survey in surveys.items():
        numbers = [number for _ in survey.numbers() for number in next(arrays).tolist()]
        found[key] = statistics(survey.entries, numbers)
        samples[key] = {measure: next(arrays) for measure in survey.samples} if with_samples else {}
    return found, samples


def read_together(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Copies tensors to flat arrays with one transfer from each device.

    Example:
        >>> read_together([torch.ones(2), torch.zeros(1)])
        [array([1., 1.], dtype=float32), array([0.], dtype=float32)]
    """
    found: dict[int, np.ndarray] = {}
    for device in dict.fromkeys(tensor.device for tensor in tensors):
        here = [i for i, tensor in enumerate(tensors) if tensor.device == device]
        flat = torch.cat([tensors[i].flatten() for i in here]).cpu().numpy()
        ends = np.cumsum([tensors[i].numel() for i in here])
        found |= dict(zip(here, np.split(flat, ends[:-1]), strict=True))
    return [found[i] for i in range(len(tensors))]


def _layers(view: SynapseView) -> dict[str, SynapseView]:
    """Views of the synapses by name of their module; a parameter of the root module is its own layer."""
    sources: dict[str, list[Tensor]] = {}
    for name, source in zip(view.names, view.sources, strict=True):
        layer = name.rpartition(".")[0] or name
        if source.numel():  # a reserved name gets a dot, which ends no module's name
            sources.setdefault(f"{layer}." if layer in RESERVED else layer, []).append(source)
    return {layer: view.restrict_to(found) for layer, found in sources.items()}


def _size(part: SynapseView) -> int:
    return sum(source.numel() for source in part.sources)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _sum(values: Sequence[Tensor]) -> Tensor:
    return stacked([value.sum(dtype=_wide(value)) for value in values]).sum()


def _joined(samples: Sequence[Tensor]) -> Tensor:
    return torch.cat([sample.to(samples[0].device, _wide(sample)) for sample in samples])


def _gathered(samples: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Gathers the samples of all processes, padded with NaN to equal lengths."""
    # Each process samples from the start of its own shard, and so may have one more than SAMPLES.
    padded = torch.nn.functional.pad(samples, (0, SAMPLES + 1 - len(samples)), value=torch.nan)
    everyone = [torch.empty_like(padded) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, padded, group=group)
    return torch.cat(everyone)
