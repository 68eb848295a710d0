"""Distances of features from where they usually are."""

from __future__ import annotations

import copy

import pytest
import torch

from cl_callbacks.drift import FeatureShift


def distances(shift: FeatureShift, batches: torch.Tensor) -> torch.Tensor:
    return torch.stack([shift.update(batch) for batch in batches])


def test_equals_plain_statistics_while_it_averages_all() -> None:
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = FeatureShift(decay=0.99)
    distances(shift, features[:-1])
    mean, variance = features[:-1].mean(0), features[:-1].var(0, correction=0)
    expected = ((features[-1] - mean).square() / variance).mean()
    assert shift.update(features[-1]).item() == pytest.approx(expected.item(), rel=1e-4)


def test_recent_batches_weigh_more() -> None:
    """The closed form of exponential averages of mean and variance, far from the start."""
    features = torch.randn(3000, 2, generator=torch.Generator().manual_seed(0))
    features[1500:] += 10.0
    shift = FeatureShift(decay=0.9)
    distances(shift, features)
    weight = 0.1 * 0.9 ** torch.arange(2999, -1, -1.0)
    mean = (weight[:, None] * features).sum(0)
    torch.testing.assert_close(shift.mean, mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        shift.variance, (weight[:, None] * (features - mean) ** 2).sum(0), rtol=1e-3, atol=1e-3
    )


def test_is_about_one_until_the_input_shifts() -> None:
    features = torch.randn(500, 20, generator=torch.Generator().manual_seed(0))
    found = distances(FeatureShift(), features)
    assert found[:2].tolist() == [1.0, 1.0]
    assert found[50:].mean().item() == pytest.approx(1.0, abs=0.1)
    shift = FeatureShift()
    distances(shift, features)
    assert shift.update(features[0] + 3.0) > 5.0


def test_units_that_are_silent_say_nothing() -> None:
    features = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    features[:, 0] = 0.0
    assert distances(FeatureShift(), features).isfinite().all()
    assert distances(FeatureShift(), torch.zeros(10, 4)).isfinite().all()


def test_goes_on_from_its_state() -> None:
    features = torch.randn(60, 4)
    whole, first, second = FeatureShift(), FeatureShift(), FeatureShift()
    expected = distances(whole, features)
    distances(first, features[:30])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(distances(second, features[30:]), expected[30:])


def test_a_decay_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="0 to below 1"):
        FeatureShift(decay=1.0)
