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
    expected = ((features[-1] - mean).square() / (variance + variance.mean() / 100)).mean()
    assert shift.update(features[-1]).item() == pytest.approx(expected.item(), rel=1e-4)


def test_recent_batches_weigh_more_and_outliers_count_as_two_deviations() -> None:
    """Against a plain loop over numbers."""
    features = torch.randn(200, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features[100] = 50.0
    shift, mean, variance = FeatureShift(decay=0.8), 0.0, 0.0
    for n, x in enumerate(features[:, 0].tolist()):
        found = shift.update(torch.tensor([x]))
        expected = (x - mean) ** 2 / (1.01 * variance) if n > 1 else 1.0
        assert found.item() == pytest.approx(expected, rel=1e-3)
        kept = min(0.8, n / (n + 1))
        apart = x - mean
        if kept == 0.8:
            bound = 2 * (1.01 * variance) ** 0.5
            apart = max(-bound, min(bound, apart))
        mean += (1 - kept) * apart
        variance = kept * (variance + (1 - kept) * apart**2)
    assert shift.mean.item() == pytest.approx(mean, rel=1e-3)
    assert shift.variance.item() == pytest.approx(variance, rel=1e-3)


def test_is_near_one_until_the_input_shifts_and_some_batches_after() -> None:
    features = torch.randn(500, 20, generator=torch.Generator().manual_seed(0))
    shift = FeatureShift()
    found = distances(shift, features)
    assert found[:2].tolist() == [1.0, 1.0]
    assert 1.0 < found[50:].mean() < 1.5
    after = distances(shift, features[:6] + 5.0)
    assert (after > found[50:].max()).all()


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
