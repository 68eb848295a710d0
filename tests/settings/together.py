"""Several rules on one Trainer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cl_callbacks import SynapticIntelligence
from tests.every_rule import MATRICES_ONLY, OWNING, PULLING, RECYCLING
from tests.settings.outcomes import Differs, Idle, Refused, Run, Setting
from tests.settings.training import alone, make, module, outcome, state, train


def beside_an_observer(rule: str | None) -> Run:
    return train(module(), make(rule), SynapticIntelligence(0.0, name="observer"))


def halves(rule: str | None) -> Run:
    if rule is None:
        return train(module(), None)
    end = r"\.weight" if rule in MATRICES_ONLY else ""
    first, second = (make(rule, parameters=rf"net\.{layer}{end}") for layer in (0, 2))
    model = module()
    train(model, first, second)
    return Run(outcome(model, None).weights, _union(state(first), state(second)))


def _union(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of the state of two halves: what each weight has is one of theirs, and penalties add up."""
    own = {"/offset", "/unit_of_importance"}
    for key in a.keys() & b.keys():
        assert key in own or torch.equal(a[key], b[key]), f"the halves disagree on {key}"
    both: dict[str, Any] = a | b
    return both | ({"/offset": a["/offset"] + b["/offset"]} if "/offset" in a else {})


MEASURING = [rule for rule in PULLING if not rule.startswith("l2")]
SETTINGS = [
    Setting(
        "beside another rule that observes",
        "alone",
        beside_an_observer,
        alone,
    ),
    Setting(
        "two of it, each on its own parameters",
        "one on all of them",
        halves,
        alone,
        exceptions={
            **dict.fromkeys(OWNING, Refused("only one of them", "each replaces the optimizer's update")),
            **dict.fromkeys(("shrink", "shrink steps"), Differs("each draws its own noise")),
            "er joined": Refused("train all weights", "joined samples are learned by all weights"),
            **dict.fromkeys(
                RECYCLING,
                Idle(
                    "can replace no units",
                    "what leads into a unit and what reads it are not with one of them",
                ),
            ),
            **dict.fromkeys(
                MEASURING, Differs("importance is relative to that of one instance's parameters")
            ),
        },
    ),
]
