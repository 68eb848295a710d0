"""What the synapses of one rule are like, layer by layer and in all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cl_callbacks.rules.synaptic_callback import SynapticCallback
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.tensors.shards import group_of
from cl_callbacks.tensors.subsample import every_nth, quantiles_of, stride_for

QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}
SAMPLES = 16_384
"""At most so many synapses are looked at for quantiles, of a layer and of a network."""
ALL = "all"
RESERVED = {ALL, "mean", *QUANTILES}

Statistics = dict[str, dict[str, dict[str, float]]]
"""By measure and layer, or ``"all"``, the statistics by name."""


class Entry(NamedTuple):
    """Where a number belongs, and how many synapses it is a sum over, if it is one."""

    measure: str
    layer: str
    statistic: str
    synapses: int = 1


class Survey:
    """Statistics of one rule's measures, as tensors that nobody has waited for yet.

    The measures of one layer exist at a time. Where parameters are sharded, all processes have to make the
    same surveys.

    Args:
        rule: whose synapses are looked at.
        rates: learning rate by ``id`` of the parameter; 0 for one that no optimizer moves.
        frozen_below: plasticity below which a synapse counts as frozen.
        by_layer: whether to take quantiles of each layer too.

    Attributes:
        entries: what the numbers are.
        samples: of each measure, some synapses of all layers.
    """

    def __init__(
        self, rule: SynapticCallback, rates: Mapping[int, float], frozen_below: float, by_layer: bool
    ) -> None:
        view = rule.synapses.view
        self._rule, self._rates, self._frozen_below, self._by_layer = rule, rates, frozen_below, by_layer
        self._group = group_of(view.sources)
        self._sums: list[tuple[Entry, Tensor]] = []
        self._quantiles: list[tuple[Entry, Tensor]] = []
        taken: dict[str, list[Tensor]] = {}
        layers = _layers(view)
        stride, first = stride_for(sum(map(_size, layers.values())), SAMPLES), 0
        for layer, part in layers.items():
            first = self._see(layer, part, taken, stride, first)
        self.samples = {m: self._quantiles_of(_joined(parts), m, ALL) for m, parts in taken.items()}
        self.entries = [entry for entry, _ in (*self._sums, *self._quantiles)]
        self._totals = [view.total(_stacked([value for _, value in self._sums]))] if self._sums else []

    def numbers(self) -> list[Tensor]:
        """One for each of the entries, in a few tensors."""
        return [*self._totals, *(value for _, value in self._quantiles)]

    def _see(
        self, layer: str, part: SynapseView, taken: dict[str, list[Tensor]], stride: int, first: int
    ) -> int:
        """Sums and quantiles of a layer; ``taken`` grows by its samples, whose next index is returned."""
        size, following = _size(part), first
        rates = [self._rates.get(id(source), 0.0) for source in part.sources]
        for measure, values in self._rule.measures(part, rates).items():
            self._sums.append((Entry(measure, layer, "mean", size), _sum(values)))
            if measure == "plasticity":
                frozen = _sum([value < self._frozen_below for value in values])
                self._sums.append((Entry(measure, layer, "frozen_fraction", size), frozen))
            found, following = every_nth(values, stride, first)
            # A copy, or a slice would keep all of the values.
            taken.setdefault(measure, []).append(_joined(found))
            if self._by_layer:
                own = stride_for(size, SAMPLES)
                self._quantiles_of(_joined(every_nth(values, own)[0]), measure, layer)
        return following

    def _quantiles_of(self, samples: Tensor, measure: str, layer: str) -> Tensor:
        """Notes the quantiles of the samples of all processes, and returns these."""
        if self._group is not None:
            samples = _gathered(samples, self._group)
        found = quantiles_of(samples, QUANTILES.values())
        self._quantiles += [(Entry(measure, layer, q), found[i]) for i, q in enumerate(QUANTILES)]
        return samples


def statistics(entries: Sequence[Entry], numbers: Sequence[float]) -> Statistics:
    """The numbers of a survey where they belong; sums become means, of the layers and of all.

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
        if statistic not in QUANTILES:
            totals.setdefault((measure, statistic), []).append((number, synapses))
    for (measure, statistic), parts in totals.items():
        sums, sizes = zip(*parts, strict=True)
        found[measure][ALL][statistic] = sum(sums) / sum(sizes)
    return found


def read(
    surveys: Mapping[str, Survey], with_samples: bool
) -> tuple[dict[str, Statistics], dict[str, dict[str, np.ndarray]]]:
    """Statistics of each survey, and samples of each of its measures, all read at once."""
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
    """Tensors as flat arrays, waiting once for each device that they are on.

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
    """The synapses of each module by its name; a parameter of the outermost module is its own layer."""
    sources: dict[str, list[Tensor]] = {}
    for name, source in zip(view.names, view.sources, strict=True):
        layer = name.rpartition(".")[0] or name
        if source.numel():  # no module's name ends in a dot
            sources.setdefault(f"{layer}." if layer in RESERVED else layer, []).append(source)
    return {layer: view.restrict_to(found) for layer, found in sources.items()}


def _size(part: SynapseView) -> int:
    return sum(source.numel() for source in part.sources)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _stacked(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([value.to(values[0].device) for value in values])


def _sum(values: Sequence[Tensor]) -> Tensor:
    return _stacked([value.sum(dtype=_wide(value)) for value in values]).sum()


def _joined(samples: Sequence[Tensor]) -> Tensor:
    return torch.cat([sample.to(samples[0].device, _wide(sample)) for sample in samples])


def _gathered(samples: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Those of all processes; NaN where one has fewer than another."""
    # Each process begins at the start of its own part, and so may have one more than its share.
    padded = torch.nn.functional.pad(samples, (0, SAMPLES + 1 - len(samples)), value=torch.nan)
    everyone = [torch.empty_like(padded) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, padded, group=group)
    return torch.cat(everyone)
