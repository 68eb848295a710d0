"""Closed forms of the Fisher information, to rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cl_callbacks.functional import fisher_cotangents
from cl_callbacks.gradients import PerSampleGradients
from tests.references import fisher as reference


def weight_fisher(net: nn.Linear, x: Tensor, labels: Tensor | None = None, **how: str) -> Tensor:
    per_sample = PerSampleGradients(net, {"weight": net.weight}, lambda x: (net(x), labels))
    sums, n = per_sample.sums(x, lambda z, y: fisher_cotangents(z, y, **how))
    return sums[0] / n


@pytest.fixture
def linear() -> tuple[nn.Linear, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(5, 3).double(), torch.randn(40, 5).double()


def test_softmax_linear(linear: tuple[nn.Linear, Tensor]) -> None:
    net, x = linear
    p = net(x).softmax(1)
    expected = ((p * (1 - p)).unsqueeze(2) * x.square().unsqueeze(1)).mean(0)
    torch.testing.assert_close(weight_fisher(net, x), expected, rtol=1e-10, atol=1e-14)


def test_gaussian_linear(linear: tuple[nn.Linear, Tensor]) -> None:
    net, x = linear
    expected = x.square().mean(0).expand(3, 5)
    found = weight_fisher(net, x, likelihood="gaussian")
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_bernoulli_linear(linear: tuple[nn.Linear, Tensor]) -> None:
    net, x = linear
    p = net(x).sigmoid()
    expected = ((p * (1 - p)).unsqueeze(2) * x.square().unsqueeze(1)).mean(0)
    found = weight_fisher(net, x, likelihood="bernoulli")
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found, reference.bernoulli_fisher(net, x)["weight"], rtol=1e-10, atol=1e-14)


def test_one_bernoulli_logit_is_a_softmax_of_it_and_zero(linear: tuple[nn.Linear, Tensor]) -> None:
    _, x = linear
    net = nn.Linear(5, 1).double()

    def pair(x: Tensor) -> Tensor:
        return torch.cat([torch.zeros(len(x), 1).double(), net(x)], 1)

    y = torch.randint(2, (40,))
    for estimator, labels in [("exact", None), ("empirical", y)]:
        per_sample = PerSampleGradients(net, {"weight": net.weight}, lambda x, y=labels: (pair(x), y))
        sums, n = per_sample.sums(x, lambda z, y, e=estimator: fisher_cotangents(z, y, estimator=e))
        found = weight_fisher(net, x, labels, estimator=estimator, likelihood="bernoulli")
        torch.testing.assert_close(found, sums[0] / n, rtol=1e-10, atol=1e-14)


def test_soft_labels_are_the_expectation_of_the_score(linear: tuple[nn.Linear, Tensor]) -> None:
    net, x = linear
    soft = torch.rand(40, 3).double().softmax(1)
    found = weight_fisher(net, x, soft, estimator="empirical")
    expected = reference.cross_entropy_fisher(net, x, soft)["weight"]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    one_hot = torch.eye(3)[torch.arange(40) % 3]
    found = weight_fisher(net, x, one_hot, estimator="empirical")
    torch.testing.assert_close(found, weight_fisher(net, x, torch.arange(40) % 3, estimator="empirical"))


@pytest.mark.parametrize("ignore_index", [-100, -1, 255, 0])
def test_classes_second_as_in_torchs_cross_entropy(ignore_index: int) -> None:
    torch.manual_seed(0)
    net, x = nn.Conv2d(2, 4, 3, padding=1).double(), torch.randn(6, 2, 5, 3).double()
    labels = torch.randint(1, 4, (6, 5, 3)).masked_fill(torch.rand(6, 5, 3) < 0.5, ignore_index)
    per_sample = PerSampleGradients(net, dict(net.named_parameters()), lambda x: (net(x), labels))
    sums, n = per_sample.sums(
        x,
        lambda z, y: fisher_cotangents(z, y, estimator="empirical", class_dim=1, ignore_index=ignore_index),
    )
    expected = reference.cross_entropy_fisher(net, x, labels, ignore_index=ignore_index)
    for found, value in zip(sums, expected.values(), strict=True):
        torch.testing.assert_close(found / n, value, rtol=1e-10, atol=1e-14)


def test_what_has_no_label_is_left_out_by_every_estimator() -> None:
    z = torch.randn(4, 3)
    labels = torch.tensor([0, -1, 2, -1])
    for estimator in ("exact", "sampled", "empirical", "logits_reversal"):
        for v in fisher_cotangents(z, labels, estimator=estimator, ignore_index=-1):
            assert (v[labels == -1] == 0).all()
            assert (v[labels != -1].abs().sum(1) > 0).all()
    many = torch.tensor([[0.0, 1.0, -1.0]] * 4)
    for estimator in ("exact", "sampled", "empirical"):
        how = {"estimator": estimator, "likelihood": "bernoulli", "ignore_index": -1}
        total = sum(v.abs() for v in fisher_cotangents(z, many, **how))
        assert torch.equal(total > 0, many >= 0)


def test_sampled_converges_to_exact(linear: tuple[nn.Linear, Tensor]) -> None:
    net, x = linear
    many = x.repeat(500, 1)
    for likelihood in ("categorical", "bernoulli", "gaussian"):
        exact = weight_fisher(net, x, likelihood=likelihood)
        sampled = weight_fisher(net, many, estimator="sampled", likelihood=likelihood)
        torch.testing.assert_close(sampled, exact, rtol=0.1, atol=0.0)


def test_labelled_estimators_against_the_loop(linear: tuple[nn.Linear, Tensor]) -> None:
    net, x = linear
    y = torch.randint(3, (40,))
    targets = torch.randn(40, 3).double()
    many = torch.rand(40, 3).double()
    cases = {
        "empirical": (y, "categorical", reference.labelled_fisher),
        "logits_reversal": (y, "categorical", reference.reversed_fisher),
        "empirical ": (targets, "gaussian", reference.gaussian_labelled_fisher),
        " empirical": (many, "bernoulli", reference.bernoulli_labelled_fisher),
        " empirical ": (many.round(), "bernoulli", reference.bernoulli_labelled_fisher),
    }
    for name, (labels, likelihood, slow) in cases.items():
        found = weight_fisher(net, x, labels, estimator=name.strip(), likelihood=likelihood)
        torch.testing.assert_close(found, slow(net, x, labels)["weight"], rtol=1e-10, atol=1e-14)


def test_logits_reversal_does_not_vanish_with_confidence() -> None:
    # What the estimator is for: a sure network has no empirical Fisher left.
    torch.manual_seed(0)
    net, x = nn.Linear(5, 3).double(), torch.randn(40, 5).double()
    labels = net(x).argmax(1)
    before = {e: weight_fisher(net, x, labels, estimator=e).sum() for e in ("empirical", "logits_reversal")}
    with torch.no_grad():
        net.weight.mul_(16)
        net.bias.mul_(16)
    after = {e: weight_fisher(net, x, labels, estimator=e).sum() for e in before}
    assert after["empirical"] < 0.2 * before["empirical"]
    assert after["logits_reversal"] > before["logits_reversal"]


def test_a_drawn_sequence_keeps_its_ignored_positions() -> None:
    logits = torch.randn(2, 3, 5)
    labels = torch.tensor([[1, -100, 2], [-100, -100, 0]])
    (v,) = fisher_cotangents(logits, labels, estimator="sampled")
    assert (v[labels == -100] == 0).all()
    assert (v[labels != -100].abs().sum(1) > 0).all()


@pytest.mark.parametrize(
    ("outputs", "labels", "how", "said"),
    [
        (torch.zeros(3, 1), None, {}, "at least two classes"),
        (torch.zeros(3), None, {}, "at least two classes"),
        (torch.zeros(2, 3, 5), None, {}, "use estimator='sampled'"),
        (torch.zeros(3, 4), None, {"estimator": "empirical"}, "the batch has none"),
        (torch.zeros(3, 4), torch.zeros(3, 4), {"estimator": "empirical"}, "likelihood='bernoulli'"),
        (torch.zeros(3, 4), torch.zeros(3, 4), {}, "likelihood='bernoulli'"),
        (torch.zeros(3, 4), torch.zeros(3, 4), {"estimator": "sampled"}, "likelihood='bernoulli'"),
        (torch.zeros(3, 4), torch.zeros(2), {}, "integers of shape"),
        (torch.zeros(2, 3, 5, 5), torch.zeros(2, 5, 5).long(), {"class_dim": 1}, "use estimator='sampled'"),
        (torch.zeros(3, 4), None, {"estimator": "logits_reversal"}, "needs labels"),
        (torch.zeros(3, 4), None, {"estimator": "empirical", "likelihood": "gaussian"}, "needs labels"),
        (torch.zeros(3, 4), torch.zeros(3), {"estimator": "sampled", "likelihood": "gaussian"}, "targets"),
        (torch.zeros(3, 4), None, {"estimator": "logits_reversal", "likelihood": "bernoulli"}, "only"),
        (torch.zeros(2, 1, 101, 100), None, {"likelihood": "bernoulli"}, "10,100 numbers a.*'sampled'"),
        (torch.zeros(2, 10_001), None, {}, "10,001 numbers a sample"),
        (torch.zeros(3, 4), None, {"estimator": "logits_reversal", "likelihood": "gaussian"}, "only"),
    ],
)  # fmt: skip
def test_unreadable_outputs_are_named(outputs: Tensor, labels: Tensor, how: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        list(fisher_cotangents(outputs, labels, **how))
