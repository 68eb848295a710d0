"""Every public rule under every setting of the Trainer, against a plain twin that does without it."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from tests.every_rule import RULES
from tests.settings import SETTINGS
from tests.settings.outcomes import Differs, Idle, Refused, Run, Setting, Within

CELLS = [
    pytest.param(
        rule,
        setting,
        id=f"{setting.title}-{rule}",
        marks=[pytest.mark.sweep] * setting.sweep + [pytest.mark.slow] * setting.slow,
    )
    for setting in SETTINGS
    for rule in RULES
]


@cache
def without_a_rule(title: str) -> Run:
    return next(setting for setting in SETTINGS if setting.title == title).run(None)


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest over all tensors, relative to each one's largest entry."""
    assert found.keys() == expected.keys()
    largest = 0.0
    for key, value in expected.items():
        assert found[key].shape == value.shape, key
        apart = (found[key].double() - value.double()).abs().max().item()
        largest = max(largest, apart and apart / value.abs().max().item())
    return largest


@pytest.mark.parametrize(("rule", "setting"), CELLS)
def test_the_outcome_is_as_declared(rule: str, setting: Setting) -> None:
    declared = setting.outcome_of(rule)
    if isinstance(declared, Refused):
        with pytest.raises((MisconfigurationException, ValueError, RuntimeError), match=declared.sentence):
            setting.run(rule)
        return
    if isinstance(declared, Idle):
        with pytest.warns(UserWarning, match=declared.sentence):
            found = setting.run(rule)
        assert distance(found.weights, without_a_rule(setting.title).weights) == 0
        return
    assert setting.twin is not None
    found, twin, free = setting.run(rule), setting.twin(rule), without_a_rule(setting.title)
    assert all(t.isfinite().all() for t in (found.weights | found.state).values())
    assert all(torch.finfo(t.dtype).bits >= 32 for t in found.state.values() if t.is_floating_point())
    shown = distance(found.weights, free.weights)
    apart = max(distance(found.weights, twin.weights), distance(found.state, twin.state))
    if isinstance(declared, Differs):
        assert shown > 0
        assert apart > 1e-6, "it does what its twin does: declare that"
    else:
        tolerance = declared.tolerance if isinstance(declared, Within) else 0.0
        assert apart <= tolerance
        assert shown > max(1e-4, 100 * tolerance)


def test_clipping_binds() -> None:
    """Or there would be nothing to see in its rows."""
    usual = without_a_rule(SETTINGS[0].title)
    clipped = [without_a_rule(setting.title) for setting in SETTINGS if "clip" in setting.title]
    assert len(clipped) == 2
    assert all(distance(run.weights, usual.weights) > 0.1 for run in clipped)
