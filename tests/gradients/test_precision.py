"""Per-sample gradients of a forward in half precision: float32 sums, cotangents that do not underflow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_callbacks.functional import fisher_cotangents
from cl_callbacks.gradients import KroneckerFactors, PerSampleGradients, fisher_information
from cl_callbacks.gradients.cotangent_scale import CotangentScale
from cl_callbacks.gradients.precision import Precision
from tests.gradients.networks import NETWORKS

HALF = [torch.bfloat16, torch.float16]
# Of the Fisher information of each tensor; the unit roundoff is 4e-3 and 5e-4, and squares have twice that.
WITHIN = {torch.bfloat16: 5e-2, torch.float16: 5e-3}


def build(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, inputs = NETWORKS[name]
    net, x = make(), inputs()
    with torch.no_grad():
        net.train()(x)
    return net.eval(), x


def measure(
    net: nn.Module, x: Any, autocast: torch.dtype | None, cotangents: Any = None
) -> tuple[list[Tensor], PerSampleGradients]:
    def forward(x: Any) -> tuple[Tensor, None]:
        with torch.autocast("cpu", autocast, enabled=autocast is not None, cache_enabled=False):
            return net(x), None

    per_sample = PerSampleGradients(net, dict(net.named_parameters()), forward)
    sums, _ = per_sample.sums(x, cotangents or (lambda z, y: fisher_cotangents(z)))
    return sums, per_sample


def apart(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest relative distance of a tensor; one that is only rounding error counts for nothing."""
    sizes = [e.double().norm() for e in expected]
    pairs = zip(found, expected, sizes, strict=True)
    return max(
        float((f.double() - e.double()).norm() / size) for f, e, size in pairs if size > 1e-5 * max(sizes)
    )


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    "name",
    ["cnn", "sequence norm", "transformer", "gru, time first", "custom", "vision", "attention, masked",
     "attention, crossed", "shared layer", "branching", "weight norm"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:torch.func.vmap cannot follow", "ignore:.*weight_norm:FutureWarning")
def test_autocast_changes_no_more_than_its_rounding(name: str, dtype: torch.dtype) -> None:
    net, x = build(name)
    expected, full = measure(net, x, None)
    found, half = measure(net, x, dtype)
    assert 0 < apart(found, expected) < WITHIN[dtype]
    assert {t.dtype for t in found} == {torch.float32}
    assert half.fallback == full.fallback


@pytest.mark.parametrize("dtype", HALF)
def test_true_half_precision_likewise(dtype: torch.dtype) -> None:
    net, x = build("transformer")
    expected, _ = measure(net, x, None)
    found, _ = measure(net.to(dtype), x.to(dtype), None)
    assert apart(found, expected) < WITHIN[dtype]
    assert {t.dtype for t in found} == {torch.float32}


def tiny(size: float) -> Any:
    return lambda z, y: (size * v for v in fisher_cotangents(z))


@pytest.mark.parametrize("name", ["mlp", "custom", "branching", "pruned"])
@pytest.mark.filterwarnings("ignore:torch.func.vmap cannot follow")
def test_cotangents_that_float16_cannot_hold_are_not_lost(name: str) -> None:
    """By closed forms, by vmap of a module, by a loop over samples, by vmap of the network."""
    net, x = build(name)
    assert torch.tensor(1e-9).half() == 0
    found, _ = measure(net, x, torch.float16, tiny(1e-9))
    expected, _ = measure(net, x, torch.float16, tiny(1.0))
    # Entries of one tensor that are far below its largest have fewer digits in float16.
    assert apart([1e18 * t for t in found], expected) < 1e-3


def test_rows_of_samples_that_influence_each_other_are_scaled() -> None:
    net = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 4))
    x = torch.randn(6, 5)
    found, per_sample = measure(net, x, torch.float16, tiny(1e-9))
    expected, _ = measure(net, x, None, tiny(1.0))
    assert per_sample.fallback
    assert apart([1e18 * t for t in found], expected) < WITHIN[torch.float16]


class Steep(nn.Module):
    """Its gradients are a million times as large as the cotangents, and its outputs are not."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(5, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer((self.inner(x) - self.inner(x).detach()) * 1e3) * 1e3


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e3])
def test_the_scale_falls_until_nothing_overflows(size: float) -> None:
    net, x = Steep(), torch.randn(6, 5)
    found, _ = measure(net, x, torch.float16, lambda z, y: [torch.full_like(z, size)])
    expected, _ = measure(net, x, None, lambda z, y: [torch.full_like(z, size)])
    assert apart(found, expected) < WITHIN[torch.float16]


def test_what_overflows_at_any_scale_is_not_finite_and_spoils_no_other_batch() -> None:
    scale = CotangentScale()
    scale.active = True
    infinite, _ = scale.pull_back(lambda v: v[0] * torch.inf, [torch.ones(1)])
    assert not infinite.isfinite().any()
    half, factor = scale.pull_back(lambda v: v[0].half(), [torch.tensor([3e-6])])
    assert half == torch.tensor(3e-6 * 2.0**30).half()  # between 2**11 and 2**12, as at the beginning
    assert factor == 2.0**-30


def test_the_scale_that_was_right_is_tried_first() -> None:
    scale, tried = CotangentScale(), []
    scale.active = True

    def pull(vectors: list[Tensor]) -> Tensor:
        tried.append(vectors[0])
        return (vectors[0] * 100).half()

    for _ in range(2):
        pulled, factor = scale.pull_back(pull, [torch.ones(1)])
        assert factor is not None
        assert pulled.float() * factor == 100
    assert torch.cat(tried).tolist() == [2.0**11, 2.0**9, 2.0**9]


def test_the_factor_is_a_power_of_two() -> None:
    scale = CotangentScale()
    scale.active = True
    for value in torch.logspace(-19, 10, 200):
        _, factor = scale.pull_back(lambda v: v[0], [value[None]])
        assert torch.frexp(factor).mantissa == 0.5


@pytest.mark.parametrize("dtype", HALF)
def test_kronecker_factors(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net, x = (
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)),
        torch.randn(6, 2, 6, 6),
    )
    layers: Any = {"0.weight": net[0], "3.weight": net[3]}

    def sums(autocast: bool, size: float) -> list[Tensor]:
        def forward(x: Tensor) -> tuple[Tensor, None]:
            with torch.autocast("cpu", dtype, enabled=autocast, cache_enabled=False):
                return net(x), None

        return KroneckerFactors(net, layers, forward).sums(x, tiny(size))[0]

    found, expected = sums(True, 1e-9), sums(False, 1.0)
    found = [t * (1e18 if i % 2 else 1.0) for i, t in enumerate(found)]  # inputs have no cotangents
    assert {t.dtype for t in found} == {torch.float32}
    assert apart(found, expected) < WITHIN[dtype]


class OnlyHalf(nn.Module):
    """A stand-in for kernels that take half precision alone, as FlashAttention; with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if x.dtype not in HALF:
            raise RuntimeError("only half precision is supported")
        return F.softmax(x, -1).to(x.dtype) * self.gain.to(x.dtype)


def half_only() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), OnlyHalf(), nn.Linear(8, 4))


@pytest.mark.parametrize("dtype", HALF)
def test_a_module_that_refuses_float32_is_measured(dtype: torch.dtype) -> None:
    net, x = half_only(), torch.randn(6, 5)
    with pytest.raises(RuntimeError, match="only half precision"):
        measure(net, x, None)
    found, per_sample = measure(net, x, dtype)
    assert not per_sample.fallback
    gain = net[1].gain

    def plain(x: Tensor) -> Tensor:
        return net[2](F.softmax(net[0](x), -1) * gain)

    full = PerSampleGradients(net, dict(net.named_parameters()), lambda x: (plain(x), None))
    expected, _ = full.sums(x, lambda z, y: fisher_cotangents(z))
    assert apart(found, expected) < WITHIN[dtype]


def test_the_fisher_information_runs_under_the_callers_autocast_and_sums_without() -> None:
    net, x = half_only(), torch.randn(6, 5)
    expected, _ = measure(net, x, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = fisher_information(net, [x], likelihood="categorical")
    for value, total in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(value, total / 6, rtol=1e-6, atol=0)


def test_the_precision_of_a_call_has_its_default_dtype() -> None:
    inside = Precision("cpu", None, torch.float64)
    with inside.again():
        assert torch.ones(1).dtype is torch.float64
    assert torch.ones(1).dtype is torch.float32
