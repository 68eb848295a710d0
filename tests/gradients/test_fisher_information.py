"""The Fisher information in one call, against the rule that measures it at a boundary and a slow loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cl_callbacks import EWC, fisher_information
from tests.references.fisher import exact_fisher
from tests.small import Net, fit_tasks, loader, plain_net, task


def test_equals_what_the_rule_measures_at_the_end_of_a_task() -> None:
    model, rule = Net(plain_net()), EWC(1.0, samples=None, normalize=None)
    fit_tasks(model, rule, tasks=1)
    found = fisher_information(model, loader(*task(0), batch_size=7))
    assert list(found) == rule.synapses.view.names
    for name, importance in zip(rule.synapses.view.names, rule.synapses.view["importance"], strict=True):
        torch.testing.assert_close(found[name], importance)


def test_equals_a_loop_over_samples_and_classes() -> None:
    model, (x, y) = plain_net().double(), task(0)
    found = fisher_information(model, [(x[:5].double(), y[:5]), x[5:].double()])
    expected = exact_fisher(model, x.double())
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=0)


def test_leaves_modes_and_gradients_as_they_were() -> None:
    model = Net()
    model.net[1].eval()
    modes = [part.training for part in model.modules()]
    fisher_information(model, loader(*task(0)))
    assert [part.training for part in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(TypeError, match="got a str: give `outputs="):
        fisher_information(model, ["text"])
    assert [part.training for part in model.modules()] == modes


def test_other_batches_and_some_parameters() -> None:
    model, (x, y) = plain_net(), task(0)

    def outputs(module: nn.Module, batch: Any) -> Any:
        return module(batch["left"]), batch["right"]

    some = {"2.bias": model[2].bias}
    found = fisher_information(
        model, [{"left": x, "right": y}], parameters=some, estimator="empirical", outputs=outputs
    )
    expected = fisher_information(model, [(x, y)], estimator="empirical")
    assert list(found) == ["2.bias"]
    torch.testing.assert_close(found["2.bias"], expected["2.bias"])


def test_what_cannot_be_measured_is_refused() -> None:
    model, (x, y) = plain_net(), task(0)
    with pytest.raises(ValueError, match="estimator must be"):
        fisher_information(model, [(x, y)], estimator="guessed")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no sample has finite outputs"):
        fisher_information(model, [(x * torch.nan, y)])
    with pytest.raises(ValueError, match="no sample"):
        fisher_information(model, [])
