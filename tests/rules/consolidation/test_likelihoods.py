"""Labels decide or contradict the likelihood, for every rule and function that measures a Fisher."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_callbacks import EWC, KFACLaplace, fisher_information
from tests.references.fisher import (
    bernoulli_fisher,
    bernoulli_labelled_fisher,
    cross_entropy_fisher,
    gaussian_fisher,
)
from tests.references.kronecker import positions
from tests.small import CLASSES, FEATURES, Net, loader, make_trainer, task

EXACT = {"samples": None, "normalize": None}
RULES: dict[str, Callable[..., Any]] = {
    "exact": partial(EWC, 1.0),
    "sampled": partial(EWC, 1.0, estimator="sampled"),
    "empirical": partial(EWC, 1.0, estimator="empirical"),
    "kfac sampled": partial(KFACLaplace, 1.0),
    "kfac exact": partial(KFACLaplace, 1.0, estimator="exact"),
    "kfac empirical": partial(KFACLaplace, 1.0, estimator="empirical"),
}
X, Y = task(0, samples=16)
MANY = (torch.randn(16, CLASSES, generator=torch.Generator().manual_seed(1)) > 0).float()
SERIES = torch.randn(16, 2, 7, generator=torch.Generator().manual_seed(2))
POSITIONS = torch.randint(4, (16, 7), generator=torch.Generator().manual_seed(3))


class Model(Net):
    """A module whose loss is none of the rule's business, and whose weights stay where they are."""

    def __init__(self, net: nn.Module, trains: bool = True) -> None:
        super().__init__(net, partial(torch.optim.SGD, lr=0.0))
        self.trains = trains

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        assert self.trains, "a step was taken"
        x = batch[0] if isinstance(batch, list) else batch
        return self(x).square().mean()


def linear(outputs: int = CLASSES) -> nn.Module:
    return nn.Linear(FEATURES, outputs)


def measured(rule: Any, net: nn.Module, *data: Tensor) -> dict[str, Tensor]:
    make_trainer(rule).fit(Model(net), loader(*data))
    named = zip(rule.synapses.view.names, rule.synapses.view["importance"], strict=True)
    return {name.removeprefix("net."): value for name, value in named}


@pytest.mark.parametrize("estimator", ["exact", "empirical"])
def test_bernoulli(estimator: Any) -> None:
    net = linear()
    found = measured(EWC(1.0, estimator=estimator, likelihood="bernoulli", **EXACT), net, X, MANY)
    slow = bernoulli_fisher(net, X) if estimator == "exact" else bernoulli_labelled_fisher(net, X, MANY)
    once = fisher_information(net, loader(X, MANY, batch_size=5), estimator=estimator, likelihood="bernoulli")
    for name, value in slow.items():
        torch.testing.assert_close(found[name], value)
        torch.testing.assert_close(once[name], value)


def test_bernoulli_sampled_is_near_to_exact() -> None:
    net = linear()
    x, many = X.repeat(200, 1), MANY.repeat(200, 1)
    found = measured(EWC(1.0, estimator="sampled", likelihood="bernoulli", **EXACT), net, x, many)
    for name, value in bernoulli_fisher(net, X).items():
        torch.testing.assert_close(found[name], value, rtol=0.15, atol=0.0)


@pytest.mark.parametrize("estimator", ["exact", "empirical"])
def test_bernoulli_in_kronecker_factors(estimator: Any) -> None:
    net = linear()
    rule = KFACLaplace(1.0, estimator=estimator, likelihood="bernoulli", **EXACT)
    measured(rule, net, X, MANY)
    ((inputs, outputs),) = rule.memory.factors["net.weight"]
    rows = positions(net, X)
    p = net(X).sigmoid().detach()
    if estimator == "exact":
        expected = torch.diag((p * (1 - p)).mean(0))
    else:
        expected = (MANY - p).T @ (MANY - p) / len(X)
    torch.testing.assert_close(inputs, rows.T @ rows / len(X))
    torch.testing.assert_close(outputs, expected)


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize(
    ("net", "data", "how", "said"),
    [
        (linear(2), (X, torch.randn(16, 2)), {}, "likelihood='gaussian'"),
        (linear(1), (X, torch.randn(16)), {}, "likelihood='gaussian'"),
        (linear(1), (X, (Y == 0).float()), {}, "likelihood='bernoulli'"),
        (linear(), (X, MANY), {}, "likelihood='bernoulli'"),
        (linear(), (X, MANY.long()), {}, "likelihood='bernoulli'"),
        (linear(FEATURES), (X, X), {}, "likelihood='gaussian'"),
        (linear(4), (X, Y), {"likelihood": "gaussian"}, "leave `likelihood` out"),
        (linear(4), (X, Y), {"likelihood": "bernoulli"}, "leave `likelihood` out"),
        (linear(), (X, Y - 1), {}, "ignore_index=-1"),
        (nn.Sequential(linear(), nn.Softmax(1)), (X, Y), {}, "return their logarithm"),
        (nn.Conv1d(2, 7, 3, padding=1), (SERIES, POSITIONS), {}, "give class_dim=1 or class_dim=-1"),
        (nn.Conv1d(2, 4, 3, padding=1), (SERIES, POSITIONS[:, 0]), {}, "one row of logits"),
    ],
)  # fmt: skip
def test_contradictions_are_refused_before_the_first_step(
    kind: str, net: nn.Module, data: Any, how: dict[str, Any], said: str
) -> None:
    rule = RULES[kind](**how)
    with pytest.raises(ValueError, match=said):
        make_trainer(rule).fit(Model(net, trains=False), loader(*data))
    with pytest.raises(ValueError, match=said):
        fisher_information(net, [data], estimator=rule.estimator, **how)


def test_outputs_without_labels_need_a_likelihood() -> None:
    data = torch.utils.data.DataLoader(X, batch_size=8)
    for kind in ("exact", "sampled", "kfac sampled"):
        with pytest.raises(ValueError, match="likelihood='categorical' for logits of classes"):
            make_trainer(RULES[kind]()).fit(Model(linear(FEATURES), trains=False), data)
    net, rule = linear(FEATURES), EWC(1.0, likelihood="gaussian", **EXACT)
    make_trainer(rule).fit(Model(net), data)
    torch.testing.assert_close(rule.synapses.view["importance"][0], gaussian_fisher(net, X)["weight"])


def test_all_labels_of_the_first_batch_are_looked_at() -> None:
    """Two samples of multi-label targets may each have one label, as those of a classification do."""
    many = MANY.clone()
    many[:2] = torch.eye(CLASSES)[:2]
    with pytest.raises(ValueError, match="likelihood='bernoulli'"):
        make_trainer(EWC()).fit(Model(linear(), trains=False), loader(X, many))


def test_labels_that_contradict_the_first_batch_are_never_read_otherwise() -> None:
    many = MANY.clone()
    many[:8] = torch.eye(CLASSES)[torch.arange(8) % CLASSES]
    with pytest.raises(ValueError, match="likelihood='bernoulli'"):
        make_trainer(EWC(samples=None)).fit(Model(linear()), loader(X, many))


@pytest.mark.parametrize(
    ("ignore_index", "kind"), [(-100, "last"), (-1, "last"), (0, "second"), (255, "second")]
)
def test_layouts_and_ignored_positions(ignore_index: int, kind: str) -> None:
    class Last(nn.Conv1d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).movedim(1, 2)

    torch.manual_seed(0)
    second = nn.Conv1d(2, 4, 3, padding=1)
    net = second
    if kind == "last":
        net = Last(2, 4, 3, padding=1)
        net.load_state_dict(second.state_dict())
    labels = POSITIONS.clamp(min=1).masked_fill(torch.rand(16, 7) < 0.5, ignore_index)
    rule = EWC(1.0, estimator="empirical", ignore_index=ignore_index, **EXACT)
    found = measured(rule, net, SERIES, labels)
    expected = cross_entropy_fisher(second, SERIES, labels, ignore_index=ignore_index)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    once = fisher_information(net, [(SERIES, labels)], estimator="empirical", ignore_index=ignore_index)
    torch.testing.assert_close(once["bias"], expected["bias"])


def test_the_first_batch_decides_for_all() -> None:
    """Series as long as there are classes fit both layouts."""
    net = nn.Conv1d(2, 4, 3, padding=1)
    batches = [(SERIES, POSITIONS), (SERIES[..., :4], POSITIONS[:, :4])]
    found = fisher_information(net, batches, estimator="empirical")
    parts = [cross_entropy_fisher(net, x, y)["bias"] for x, y in batches]
    torch.testing.assert_close(found["bias"], sum(parts) / 2)


def test_segmentation_with_factors() -> None:
    torch.manual_seed(0)
    net, x = nn.Conv2d(2, 4, 1), torch.randn(8, 2, 5, 3)
    y = torch.randint(4, (8, 5, 3))
    rule = KFACLaplace(1.0, estimator="empirical", **EXACT)
    measured(rule, net, x, y)
    ((_, outputs),) = rule.memory.factors["net.weight"]
    delta = (F.one_hot(y, 4) - net(x).movedim(1, -1).softmax(-1)).flatten(0, 2).detach()
    torch.testing.assert_close(outputs, delta.T @ delta / len(x))


def test_soft_labels_are_classes() -> None:
    net, soft = linear(), torch.randn(16, CLASSES).softmax(1)
    found = measured(EWC(1.0, estimator="empirical", **EXACT), net, X, soft)
    torch.testing.assert_close(found["weight"], cross_entropy_fisher(net, X, soft)["weight"])
    exact = measured(EWC(1.0, **EXACT), net, X, soft)
    torch.testing.assert_close(exact["weight"], measured(EWC(1.0, **EXACT), net, X, Y)["weight"])


def test_a_fisher_of_zero_is_said() -> None:
    net = linear()
    nothing = torch.full_like(Y, -100)
    for kind in ("exact", "sampled", "empirical", "kfac sampled"):
        rule = RULES[kind](normalize=None)
        with pytest.warns(UserWarning, match="no weight has any importance"):
            make_trainer(rule).fit(Model(net), loader(X, nothing))
        assert rule.tasks == 0
    with pytest.warns(UserWarning, match="exactly 0 for every parameter.*no position has a label"):
        fisher_information(net, [(X, nothing)])
