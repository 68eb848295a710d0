"""What labels and outputs say about the likelihood, and the sentences where they contradict it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cl_callbacks.functional import Reading, decide_reading, read_labels, reading_of_losses, sample_losses

LOGITS = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(8) % 3
ONE_HOT = torch.nn.functional.one_hot(CLASSES)
MANY = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]).repeat(2, 1)


def maps(*shape: int) -> Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))


def classes(*shape: int) -> Tensor:
    return torch.randint(2, (2, *shape), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("outputs", "labels", "how", "expected"),
    [
        (LOGITS, CLASSES, {}, Reading("categorical", -1)),
        (LOGITS, CLASSES[:, None], {}, Reading("categorical", -1)),
        (LOGITS, CLASSES.to(torch.uint8), {}, Reading("categorical", -1)),
        (LOGITS, CLASSES.float(), {"likelihood": "categorical"}, Reading("categorical", -1)),
        (LOGITS, ONE_HOT, {}, Reading("categorical", -1)),
        (LOGITS, LOGITS.softmax(1), {}, Reading("categorical", -1)),
        (LOGITS, None, {"likelihood": "categorical"}, Reading("categorical", -1)),
        (LOGITS, CLASSES, {"class_dim": 1}, Reading("categorical", -1)),
        (maps(4, 7), classes(7), {}, Reading("categorical", 1)),
        (maps(7, 4), classes(7), {}, Reading("categorical", -1)),
        (maps(4, 5, 6), classes(5, 6), {}, Reading("categorical", 1)),
        (maps(4, 5, 6), classes(1, 5, 6), {}, Reading("categorical", 1)),
        (maps(5, 6, 4), classes(5, 6), {}, Reading("categorical", -1)),
        (maps(4, 5, 6, 7), classes(5, 6, 7), {}, Reading("categorical", 1)),
        (maps(4, 4), classes(4), {"class_dim": 1}, Reading("categorical", 1)),
        (maps(4, 4), classes(4), {"class_dim": -1}, Reading("categorical", -1)),
        (maps(4, 5), maps(4, 5).softmax(1), {}, Reading("categorical", 1)),
        (maps(4, 5), maps(4, 5).softmax(2), {}, Reading("categorical", -1)),
        (LOGITS, MANY, {"likelihood": "bernoulli"}, Reading("bernoulli")),
        (LOGITS[:, 0], MANY[:, :1].float(), {"likelihood": "bernoulli"}, Reading("bernoulli")),
        (maps(1, 5, 6), classes(5, 6), {"likelihood": "bernoulli"}, Reading("bernoulli")),
        (maps(30), maps(1, 5, 6), {"likelihood": "gaussian"}, Reading("gaussian")),
        (maps(1, 5, 6), None, {"likelihood": "gaussian"}, Reading("gaussian")),
    ],
)  # fmt: skip
def test_labels_decide(outputs: Tensor, labels: Any, how: dict[str, Any], expected: Reading) -> None:
    reading = decide_reading(outputs, labels, **how)
    assert reading == expected
    found, read = read_labels(outputs, labels, reading)
    assert torch.equal(found, outputs.movedim(expected.class_dim, -1))
    if labels is not None and expected.likelihood == "categorical" and labels.shape != outputs.shape:
        assert read.dtype == torch.long
        assert torch.equal(read, labels.long().reshape(found.shape[:-1]))
    elif labels is not None:
        assert read.shape == found.shape
        soft = labels.movedim(expected.class_dim, -1) if labels.shape == outputs.shape else labels
        assert torch.equal(read, soft.reshape(found.shape).to(found.dtype))


@pytest.mark.parametrize(
    ("outputs", "labels", "how", "said"),
    [
        (LOGITS, None, {}, "likelihood='categorical' for logits of classes, 'bernoulli'"),
        (LOGITS, torch.randn(8, 3), {}, "give likelihood='gaussian' for a regression"),
        (LOGITS, torch.randn(8, 3), {"likelihood": "categorical"}, "give likelihood='gaussian'"),
        (LOGITS, MANY.float(), {}, "give likelihood='bernoulli' .*, or likelihood='gaussian'"),
        (LOGITS, MANY, {}, "give likelihood='bernoulli'"),
        (LOGITS, MANY.bool(), {}, "give likelihood='bernoulli'"),
        (LOGITS, MANY - (CLASSES == 0).long()[:, None], {}, "give likelihood='bernoulli'"),
        (LOGITS, CLASSES.float(), {}, "may be classes or numbers: give likelihood='categorical'"),
        (LOGITS, LOGITS[:, 0], {"likelihood": "categorical"}, "no whole numbers"),
        (LOGITS[:, :1], CLASSES, {}, "at least two classes.*likelihood='bernoulli'"),
        (LOGITS[:, 0], LOGITS[:, 1], {}, "at least two classes.*likelihood='gaussian'"),
        (LOGITS, CLASSES - 1, {}, "label -1 is none of 3 classes, 0 to 2: give ignore_index=-1"),
        (LOGITS, CLASSES.clamp(min=1) * 255, {}, "ignore_index=255"),
        (LOGITS, CLASSES, {"ignore_index": 0, "likelihood": "gaussian"}, "leave `likelihood` out"),
        (LOGITS, CLASSES, {"likelihood": "bernoulli"}, "leave `likelihood` out if they are classes"),
        (LOGITS, 2 * MANY, {"likelihood": "bernoulli"}, "label 2 is not between 0 and 1"),
        (LOGITS[:, :2], CLASSES.float(), {"likelihood": "gaussian"}, "targets of the shape"),
        (maps(4, 4), classes(4), {}, r"labels \(2, 4\) fit both: give class_dim=1 or class_dim=-1"),
        (maps(4, 5), None, {"likelihood": "categorical"}, "has no labels: give class_dim=1"),
        (maps(4, 5, 6), classes(), {}, r"integers of shape \(2, 4, 5\) \(classes last\) or \(2, 5, 6\)"),
        (maps(4, 5, 6), classes(), {}, r"one row of logits \(N, C\).*mean over its positions"),
        (maps(4, 5), classes(5), {"class_dim": -1}, "do not fit logits"),
        (maps(3, 5, 6), maps(3, 5, 6), {}, "likelihood='gaussian'"),
        (maps(3, 5, 6), maps(5, 6, 3), {"likelihood": "gaussian"}, "targets of the shape"),
        (LOGITS.softmax(1), CLASSES, {}, "probabilities that sum to 1.* return their logarithm"),
        (LOGITS, CLASSES, {"likelihood": "poisson"}, "likelihood='poisson'"),
        (LOGITS, CLASSES, {"class_dim": 2}, "class_dim=2 is neither 1"),
        (LOGITS, MANY, {"likelihood": "bernoulli", "class_dim": 1}, "leave one of them out"),
    ],
)  # fmt: skip
def test_contradictions_name_the_remedy(outputs: Tensor, labels: Any, how: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        decide_reading(outputs, labels, **how)


def test_bernoulli_warns_of_probabilities() -> None:
    with pytest.warns(UserWarning, match="torch.logit"):
        decide_reading(LOGITS.sigmoid(), MANY, likelihood="bernoulli")


def test_ignored_positions_have_one_label() -> None:
    labels = torch.tensor([[0, 255, 1]], dtype=torch.uint8)
    reading = Reading("categorical", -1, 255)
    assert read_labels(torch.zeros(1, 3, 2), labels, reading)[1].tolist() == [[0, -100, 1]]
    # -100 is 156 to an unsigned byte.
    with pytest.raises(ValueError, match="label 156 is none"):
        read_labels(torch.zeros(1, 3, 2), labels.clamp(max=156), Reading("categorical", -1))
    reading = Reading("bernoulli", -1, -1)
    assert read_labels(torch.zeros(1, 2), torch.tensor([[1, -1]]), reading)[1].tolist() == [[1.0, -100.0]]


def test_losses_of_samples_follow_the_layout() -> None:
    outputs, labels = maps(4, 7), classes(7)
    expected = torch.nn.functional.cross_entropy(outputs, labels, reduction="none").sum(1)
    torch.testing.assert_close(sample_losses(outputs, labels), expected)
    torch.testing.assert_close(sample_losses(outputs.movedim(1, 2), labels), expected)
    soft = torch.nn.functional.one_hot(labels, 4).movedim(2, 1).float()
    torch.testing.assert_close(sample_losses(outputs, soft), expected)
    targets = maps(4, 7) * 2
    torch.testing.assert_close(
        sample_losses(outputs, targets), 0.5 * (outputs - targets).square().sum((1, 2))
    )
    for other in (labels, soft, targets):
        reading = reading_of_losses(outputs, other)
        assert torch.equal(sample_losses(outputs, other, reading), sample_losses(outputs, other))
    labels[0, 0], labels[1, 1] = 4, -1
    with pytest.raises(ValueError, match="is none of 4 classes"):
        sample_losses(outputs, labels)
    unchecked = sample_losses(outputs, labels, reading_of_losses(outputs, classes(7)))
    ignored = labels.masked_fill((labels < 0) | (labels > 3), -100)
    assert torch.equal(unchecked, sample_losses(outputs, ignored))
