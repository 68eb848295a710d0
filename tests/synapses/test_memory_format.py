"""Snapshots and state lie in memory as the weights do: operations on all of them are faster then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_callbacks import Step, SynapticCallback
from cl_callbacks.synapses.state import Fill
from cl_callbacks.tensors import blocks
from tests.settings.memory_layout import CONVOLUTIONS, images
from tests.settings.training import train


class Strides(SynapticCallback):
    """Notes how everything that a step has lies in memory."""

    fields: Mapping[str, Fill] = {"kept": "zeros", "start": "parameter"}
    needs = frozenset({"gradients", "pulled", "before", "updates"})
    local = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[bool]] = {}

    def rewrite(self, step: Step) -> None:
        self.compare(step, before=step.before)

    def observe(self, step: Step) -> None:
        self.compare(step, gradients=step.gradients, pulled=step.pulled, updates=step.updates)
        self.compare(step, kept=step.synapses["kept"], start=step.synapses["start"])

    def compare(self, step: Step, **found: list[Tensor]) -> None:
        for what, tensors in found.items():
            pairs = zip(tensors, step.synapses.parameters, strict=True)
            self.seen.setdefault(what, set()).update(t.stride() == p.stride() for t, p in pairs)


@pytest.mark.parametrize("layout", CONVOLUTIONS)
@pytest.mark.parametrize("elements", [2**17, 40])
def test_all_of_a_step_lies_as_the_weights_do(
    layout: torch.memory_format, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "ELEMENTS_ON_CPU", elements)
    rule: Any = Strides()
    train(images(layout, layout), rule, tasks=1, precision="64-true")
    assert rule.seen.keys() == {"before", "gradients", "pulled", "updates", "kept", "start"}
    assert set().union(*rule.seen.values()) == {True}
