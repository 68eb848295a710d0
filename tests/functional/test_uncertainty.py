"""Bayesian gradient descent and MESU against plain loops, Kalman's filter and their fixed points."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_callbacks.functional.uncertainty import SMALLEST_STD, bgd_, mesu_
from tests.references.uncertainty import bgd_step, chain_step, mesu_step, posterior_variance


def one(value: float) -> list[Tensor]:
    return [torch.tensor([value], dtype=torch.float64)]


def random_state() -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    torch.manual_seed(0)
    shapes = [(3, 2), (5,)]
    means, gradients, noise = ([torch.randn(s, dtype=torch.float64) for s in shapes] for _ in range(3))
    return means, [0.05 + torch.rand(s, dtype=torch.float64) for s in shapes], gradients, noise


def test_bgd_equals_a_plain_loop() -> None:
    means, stds, gradients, noise = random_state()
    expected = [bgd_step(*tensors, 0.7) for tensors in zip(means, stds, gradients, noise, strict=True)]
    bgd_(means, stds, gradients, noise, 0.7)
    for mean, std, (m, s) in zip(means, stds, expected, strict=True):
        torch.testing.assert_close(mean, m, rtol=1e-12, atol=0)
        torch.testing.assert_close(std, s, rtol=1e-12, atol=0)


def test_bgd_stays_within_a_widest_std() -> None:
    means, stds, gradients, noise = random_state()
    expected = [bgd_step(*tensors, 1.0)[1] for tensors in zip(means, stds, gradients, noise, strict=True)]
    widest = [float(std.median()) for std in expected]
    bgd_(means, stds, gradients, noise, widest=widest)
    for std, free, limit in zip(stds, expected, widest, strict=True):
        assert (free > limit).any()
        torch.testing.assert_close(std, free.clamp(max=limit), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"memory_steps": 50.0, "prior_std": 1.5},
        {"memory_steps": math.inf, "prior_std": 1.5},
        {"memory_steps": 3.0, "prior_std": 0.4, "lr_scale": 2.0, "std_lr_scale": 3.0, "trust_region": 0.1},
    ],
)
def test_mesu_equals_a_plain_loop(options: dict[str, Any]) -> None:
    means, stds, gradients, noise = random_state()
    expected = [mesu_step(*tensors, **options) for tensors in zip(means, stds, gradients, noise, strict=True)]
    mesu_(means, stds, gradients, noise, **options)
    for mean, std, (m, s) in zip(means, stds, expected, strict=True):
        torch.testing.assert_close(mean, m, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(std, s, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("trust_region", [None, 0.05])
def test_a_chain_in_the_place_of_the_prior_equals_a_plain_loop(trust_region: float | None) -> None:
    means, stds, gradients, noise = random_state()
    slow = [torch.randn_like(m) for m in means]
    options: dict[str, Any] = {
        "memory_steps": 20.0,
        "prior_std": 0.6,
        "coupling": 0.2,
        "trust_region": trust_region,
    }
    expected = [
        chain_step(m, s, [u], g, q, ratio=2.0, **options)
        for m, s, u, g, q in zip(means, stds, slow, gradients, noise, strict=True)
    ]
    mesu_(means, stds, gradients, noise, slow=slow, **options)
    for mean, std, (m, s, _) in zip(means, stds, expected, strict=True):
        torch.testing.assert_close(mean, m, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(std, s, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("curvature", [0.5, 40.0])
def test_the_variance_goes_to_that_of_the_window(curvature: float) -> None:
    """With constant curvature h, E[gε] = hσ: σ² → 1/(Nh + 1/σp²), and μ to the estimate from N steps."""
    memory, prior_std, target = 200.0, 0.7, 3.0
    means, stds = one(0.0), one(0.1)
    for _ in range(20_000):
        gradients = [curvature * (means[0] - target)]
        mesu_(means, stds, gradients, [curvature * stds[0]], memory_steps=memory, prior_std=prior_std)
    precision = memory * curvature + 1 / prior_std**2
    assert stds[0].item() ** 2 == pytest.approx(1 / precision, rel=1e-9)
    assert means[0].item() == pytest.approx(memory * curvature * target / precision, rel=1e-9)


def test_without_data_uncertainty_grows_back_to_the_priors() -> None:
    means, stds, none = one(1.0), one(0.01), one(0.0)
    for _ in range(100):
        mesu_(means, stds, none, none, memory_steps=50.0, prior_std=1.0)
    assert stds[0].item() == pytest.approx(0.01 * math.exp(100 / (2 * 50)), rel=0.02)  # e^(t/2N) at first
    for _ in range(2000):
        mesu_(means, stds, none, none, memory_steps=50.0, prior_std=1.0)
    assert stds[0].item() == pytest.approx(1.0, rel=1e-6)
    assert abs(means[0].item()) < 1e-6


@pytest.mark.parametrize("rule", ["bgd", "mesu"])
@pytest.mark.parametrize("initial", [0.03, 0.1])
def test_next_to_kalmans_filter(rule: str, initial: float) -> None:
    """First-order filters: after 3,000 observations 0.99 to 1 of the exact variance, for hσ² ≤ 0.01."""
    means, stds = one(0.0), one(initial)
    for _ in range(3000):
        if rule == "bgd":
            bgd_(means, stds, one(0.0), [stds[0].clone()])
        else:
            mesu_(means, stds, one(0.0), [stds[0].clone()], memory_steps=math.inf, prior_std=1.0)
    ratio = stds[0].item() ** 2 / posterior_variance(3000, 1.0, initial**2)
    assert 0.99 <= ratio <= 1.0


def test_an_endless_memory_is_bgd_to_second_order() -> None:
    """With a = σ E[gε]/2 the two standard deviations differ by σa²/2, and the means not at all."""
    for a in (1e-1, 1e-2, 1e-3):
        noise = one(2 * a / 0.3)
        (bgd_mean,), (bgd_std,), (mean,), (std,) = one(1.0), one(0.3), one(1.0), one(0.3)
        bgd_([bgd_mean], [bgd_std], one(0.2), noise)
        mesu_([mean], [std], one(0.2), noise, memory_steps=math.inf, prior_std=1.0)
        assert torch.equal(mean, bgd_mean)
        assert (bgd_std - std).item() == pytest.approx(0.3 * a**2 / 2, rel=a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_standard_deviation_stays_positive(dtype: torch.dtype) -> None:
    for size in (1.0, 1e4, 1e12):
        for sign in (-1, 1):
            stds = [torch.full((3,), 0.1, dtype=dtype) for _ in range(3)]
            huge = [torch.full((3,), sign * size, dtype=dtype)]
            zeros = [torch.zeros(3, dtype=dtype)]
            for _ in range(50):
                bgd_([zeros[0].clone()], [stds[0]], zeros, huge)
                mesu_(
                    [zeros[0].clone()],
                    [stds[1]],
                    zeros,
                    huge,
                    memory_steps=10,
                    prior_std=1.0,
                    trust_region=0.5,
                )
                mesu_([zeros[0].clone()], [stds[2]], zeros, huge, memory_steps=10, prior_std=1.0)
            assert (stds[1] >= SMALLEST_STD * (1 - 1e-6)).all()
            if sign > 0:
                assert all((s >= SMALLEST_STD * (1 - 1e-6)).all() for s in stds)
            assert stds[1].isfinite().all()


def test_the_factors_of_the_published_convolutional_networks() -> None:
    """There they multiply a whole step, that of the standard deviation without its one half."""
    window, prior, of_mean, of_std = 1e4, 1.5, 5.0, 132.0
    for steps, which in ((window / of_mean, 0), (window / (2 * of_std), 1)):
        means, stds, gradients, noise = random_state()
        published = []
        for mean, std, g, q in zip(means, stds, gradients, noise, strict=True):
            back = (std**2 - prior**2) / (window * prior**2)
            moved = mean - of_mean * (std**2 * g + std**2 * mean / (window * prior**2))
            published.append((moved, std - of_std * (std**2 * q + std * back)))
        scales = {"lr_scale": of_mean, "std_lr_scale": 2 * of_std}
        mesu_(means, stds, gradients, noise, memory_steps=steps, prior_std=prior, **scales)
        for found, expected in zip(zip(means, stds, strict=True), published, strict=True):
            wanted = expected[which].clamp_min(SMALLEST_STD) if which else expected[which]
            torch.testing.assert_close(found[which], wanted, rtol=1e-9, atol=1e-12)


def test_the_trust_region_limits_both_steps() -> None:
    for sign in (-1, 1):
        means, stds = one(0.0), one(0.2)
        bgd_(means, stds, one(1e6), one(sign * 1e6), trust_region=0.25)
        assert means[0].item() == pytest.approx(-0.05)
        assert stds[0].item() == pytest.approx(0.2 - sign * 0.05)
    means, stds = one(0.0), one(0.2)
    mesu_(means, stds, one(1e6), one(1e6), memory_steps=10, prior_std=1.0, trust_region=0.25)
    assert means[0].item() == pytest.approx(-0.05)
    assert stds[0].item() == pytest.approx(0.15)
