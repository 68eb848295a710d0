"""The step that trainings take, against one that can be read from top to bottom."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cl_callbacks.rules import synaptic_callback
from tests.every_rule import assert_same, every_rule, make, state
from tests.references.step import PlainStep
from tests.small import Net, fit_tasks, plain_net, weights


def trained(*rules: str, **options: Any) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    torch.manual_seed(0)
    model, made = Net(plain_net()), [make(rule) for rule in rules]
    fit_tasks(model, *made, max_epochs=2, **options)
    return weights(model), [state(rule) for rule in made]


@every_rule
def test_every_rule_steps_as_in_the_plain_step(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found, states = trained(rule, gradient_clip_val=1.0)
    monkeypatch.setattr(synaptic_callback, "SynapticStep", PlainStep)
    expected, plain = trained(rule, gradient_clip_val=1.0)
    assert torch.equal(found, expected)
    assert_same(states[0], plain[0])


@pytest.mark.parametrize("rules", [("ewc", "si", "benna-fusi"), ("metaplastic", "mesu"), ("cascade", "si")])
def test_several_rules_meet_in_the_order_of_the_plain_step(
    rules: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, states = trained(*rules)
    monkeypatch.setattr(synaptic_callback, "SynapticStep", PlainStep)
    expected, plain = trained(*rules)
    assert torch.equal(found, expected)
    for a, b in zip(states, plain, strict=True):
        assert_same(a, b)
