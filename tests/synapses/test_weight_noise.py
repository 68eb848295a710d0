"""Drawn weights: what is put in place, what comes back, and the gradients times noise of several draws."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_callbacks.synapses import weight_noise
from cl_callbacks.synapses.weight_noise import WeightNoise
from cl_callbacks.tensors import blocks
from cl_callbacks.tensors.blocks import ALL


def taken(noise: WeightNoise, parameters: list[nn.Parameter]) -> list[torch.Tensor]:
    noise.reduce_gathered()
    kept = [torch.zeros_like(p) for p in parameters]
    noise.take(dict.fromkeys(parameters, ALL), kept)
    return kept


def weights_and_stds(seed: int = 0) -> tuple[list[nn.Parameter], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 4), (5,)]
    parameters = [nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]
    return parameters, [0.1 + torch.rand(s, generator=generator) for s in shapes]


def placed(**options: object) -> tuple[WeightNoise, list[nn.Parameter], list[Tensor]]:
    parameters, stds = weights_and_stds()
    noise = WeightNoise(**options)  # type: ignore[arg-type]
    noise.place(parameters, stds)
    return noise, parameters, stds


def flat(tensors: list[Tensor] | list[nn.Parameter]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def test_means_come_back_bit_for_bit() -> None:
    noise, parameters, _ = placed()
    before = flat(parameters)
    noise.begin()
    assert (flat(parameters) != before).all()
    noise.pause()
    assert torch.equal(flat(parameters), before)
    noise.resume()
    noise.end()
    assert torch.equal(flat(parameters), before)
    noise.resume()  # nobody has begun
    assert torch.equal(flat(parameters), before)


def test_draws_are_gaussian_with_the_standard_deviations() -> None:
    parameter, std = nn.Parameter(torch.full((100_000,), 2.0)), torch.linspace(0.1, 1.0, 100_000)
    noise = WeightNoise(antithetic=False)
    noise.place([parameter], [std])
    noise.begin()
    epsilon = (parameter.detach() - 2.0) / std
    assert epsilon.mean().abs() < 0.02
    assert epsilon.std().item() == pytest.approx(1, abs=0.02)
    assert epsilon.pow(4).mean().item() == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("antithetic", [True, False])
def test_noise_follows_from_seed_and_draw_alone(antithetic: bool) -> None:
    def draws(first: int, count: int, seed: int = 0) -> list[Tensor]:
        noise, parameters, _ = placed(seed=seed, antithetic=antithetic)
        noise.draws, found = first, []
        for p in parameters:
            p.grad = torch.zeros_like(p)
        for _ in range(count):
            noise.begin()
            found.append(flat(parameters))
            noise.end()
            taken(noise, parameters)
        return found

    state = torch.get_rng_state()
    whole = draws(0, 6)
    assert torch.equal(state, torch.get_rng_state())
    for first in (1, 2, 5):  # also in the middle of a pair
        assert all(map(torch.equal, draws(first, 6 - first), whole[first:]))
    assert not torch.equal(draws(0, 1, seed=1)[0], whole[0])
    mean = flat(weights_and_stds()[0])
    for first, second in zip(whole[::2], whole[1::2], strict=True):
        assert torch.allclose(first - mean, mean - second, atol=1e-6) == antithetic
    assert not torch.equal(whole[0], whole[2])


@pytest.mark.parametrize("draws", [1, 2, 5])
@pytest.mark.parametrize("antithetic", [True, False])
def test_gradients_times_noise_are_summed_over_the_draws(draws: int, antithetic: bool) -> None:
    noise, parameters, stds = placed(antithetic=antithetic)
    means = [p.detach().clone() for p in parameters]
    for step in range(3):
        for p in parameters:
            p.grad = None
        noise.begin()
        expected = [torch.zeros_like(m) for m in means]
        for draw in range(draws):
            if draw:
                noise.redraw()
            epsilon = [(p.detach() - m) / s for p, m, s in zip(parameters, means, stds, strict=True)]
            loss = sum((p**3).sum() * (1 + step + draw) for p in parameters)
            gradients = torch.autograd.grad(loss, parameters)  # type: ignore[arg-type]
            for p, g, e, total in zip(parameters, gradients, epsilon, expected, strict=True):
                p.grad = g if p.grad is None else p.grad + g
                total += g * e
        noise.end()
        for found, total in zip(taken(noise, parameters), expected, strict=True):
            torch.testing.assert_close(found, total, rtol=1e-4, atol=1e-4)


def test_several_draws_are_settled_once() -> None:
    noise, parameters, _ = placed()
    for p in parameters:
        p.grad = torch.ones_like(p)
    noise.begin()
    noise.redraw()
    alone = [t.clone() for t in taken(noise, parameters)]
    noise.begin()
    noise.reduce = lambda gathered: gathered.mul_(0.5)  # type: ignore[assignment]
    noise.redraw()
    settled = taken(noise, parameters)
    assert not torch.equal(flat(alone), flat(settled))


def test_what_has_joined_since_the_draw_has_no_noise_yet() -> None:
    noise, parameters, stds = placed()
    noise.begin()
    noise.end()
    new = nn.Parameter(torch.ones(2))
    noise.place([*parameters, new], [*stds, torch.ones(2)])
    for p in (*parameters, new):
        p.grad = torch.ones_like(p)
    assert all((t == 0).all() for t in taken(noise, [*parameters, new]))
    noise.begin()
    noise.end()
    assert all((t != 0).all() for t in taken(noise, [*parameters, new]))


def test_placing_the_same_again_changes_nothing() -> None:
    noise, parameters, stds = placed()
    before = flat(parameters)
    noise.begin()
    drawn = flat(parameters)
    noise.place(parameters, stds)
    assert torch.equal(flat(parameters), drawn)
    noise.place(parameters[:1], stds[:1])
    assert torch.equal(flat(parameters), before)


def test_weights_of_half_precision() -> None:
    parameter = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    noise = WeightNoise()
    noise.place([parameter], [torch.full((64,), 0.5)])
    noise.begin()
    assert parameter.detach().float().std() > 0.2
    parameter.grad = torch.ones_like(parameter)
    noise.redraw()
    noise.end()
    assert torch.equal(parameter, torch.ones_like(parameter))
    assert taken(noise, [parameter])[0].isfinite().all()


def test_weights_of_several_dtypes_have_noise_of_their_own() -> None:
    weights = [nn.Parameter(torch.zeros(64, dtype=dtype)) for dtype in (torch.float32, torch.float64)]
    noise = WeightNoise()
    noise.place(weights, [torch.ones_like(w) for w in weights])
    noise.begin()
    drawn = [w.detach().double() for w in weights]
    assert all(w.any() for w in drawn)
    assert torch.corrcoef(torch.stack(drawn))[0, 1].abs() < 0.5


def test_an_error_leaves_the_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "ELEMENTS_ON_CPU", 4)
    noise, parameters, _ = placed()
    before, calls = flat(parameters), 0

    def failing(*lists: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise MemoryError
        draw(*lists)

    draw = weight_noise.draw_
    monkeypatch.setattr(weight_noise, "draw_", failing)
    with pytest.raises(MemoryError):
        noise.begin()
    assert torch.equal(flat(parameters), before)
    noise.resume()
    assert calls > 4
    noise.end()
    assert torch.equal(flat(parameters), before)


def test_an_interrupt_leaves_the_means(monkeypatch: pytest.MonkeyPatch) -> None:
    noise, parameters, _ = placed()
    before = flat(parameters)

    def interrupted(*lists: Any) -> None:
        draw(*lists)
        signal.raise_signal(signal.SIGINT)

    draw = weight_noise.draw_
    monkeypatch.setattr(weight_noise, "draw_", interrupted)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            noise.begin()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert not torch.equal(flat(parameters), before)
    noise.end()
    assert torch.equal(flat(parameters), before)
