"""The figures of the statistics of one rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cl_callbacks.observation.figures import importance_by_layer, plasticity_by_layer
from cl_callbacks.observation.survey import ALL, QUANTILES, Statistics

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _importance(measures: Statistics) -> Figure | None:
    if "importance" not in measures:
        return None
    layers = _layers_of(measures["importance"]).items()
    return importance_by_layer({layer: [found[name] for name in QUANTILES] for layer, found in layers})


def _plasticity(measures: Statistics) -> Figure | None:
    if "plasticity" not in measures:
        return None
    layers = _layers_of(measures["plasticity"]).items()
    frozen = {layer: found["frozen_fraction"] for layer, found in layers}
    return plasticity_by_layer(frozen, {layer: found["mean"] for layer, found in layers})


FIGURES = {"importance_by_layer": _importance, "plasticity_by_layer": _plasticity}
"""Functions that draw each figure, by its name; they return ``None`` for a rule without the measure."""


def _layers_of(found: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {layer: values for layer, values in found.items() if layer != ALL}
