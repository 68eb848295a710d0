"""Kronecker factors against one sample at a time, dense matrices, and curvlinops where it is installed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_callbacks.functional import fisher_cotangents
from cl_callbacks.functional.kronecker import (
    Factors,
    curvature_bound,
    decompose,
    kronecker_pull,
    nearest_sum,
    paired,
    relax_kronecker,
)
from cl_callbacks.gradients.kronecker_factors import KroneckerFactors, has_factors
from tests.references.kronecker import dense, linear_factors, nearest_kronecker_sum, quadratic


class Mixed(nn.Module):
    """A convolution with stride and padding, a layer without a bias, one at several positions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, stride=2, padding=1)
        self.tokens = nn.Linear(4, 5, bias=False)
        self.head = nn.Linear(15, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.conv(x)).flatten(2)  # N, 3, 4
        return self.head(torch.tanh(self.tokens(h)).flatten(1))


def build() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Mixed().double(), torch.randn(6, 2, 4, 4, dtype=torch.float64)


def measure(net: nn.Module, batches: list[Tensor], **how: str) -> dict[str, Factors]:
    layers = {name: m for name, m in net.named_modules() if has_factors(m)}
    layers = {f"{name}.weight": layer for name, layer in layers.items()}
    factors = KroneckerFactors(net, layers, lambda x: (net(x), None))
    totals, count = factors.zeros(), 0
    for batch in batches:
        sums, n = factors.sums(batch, lambda z, y: fisher_cotangents(z, y, **how))
        totals = [a + b for a, b in zip(totals, sums, strict=True)]
        count += n
    assert all(factors.explained.values())
    names = [name.removesuffix(".weight") for name in layers]
    return dict(zip(names, paired([t / count for t in totals]), strict=True))


@pytest.mark.parametrize("parts", [1, 3])
def test_equals_one_sample_at_a_time(parts: int) -> None:
    net, x = build()
    found = measure(net, list(x.chunk(parts)))
    cotangents = list(fisher_cotangents(net(x)))
    assert set(found) == {"conv", "tokens", "head"}
    for name, factors in found.items():
        a, g = linear_factors(net, name, x, cotangents)
        torch.testing.assert_close(factors.inputs, a, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(factors.outputs, g, rtol=1e-10, atol=1e-14)


def test_exact_where_inputs_and_cotangents_are_independent() -> None:
    """A linear regression: the cotangents are the same for every sample."""
    torch.manual_seed(0)
    net, x = nn.Linear(3, 2).double(), torch.randn(7, 3, dtype=torch.float64)
    (found,) = measure(net, [x], likelihood="gaussian").values()
    rows = F.pad(x, (0, 1), value=1.0)
    full = torch.zeros(8, 8, dtype=torch.float64)
    for a in rows:
        for d in range(2):  # the gradient of output d
            g = torch.zeros(2, 4, dtype=torch.float64)
            g[d] = a
            full += torch.outer(g.flatten(), g.flatten()) / len(rows)
    torch.testing.assert_close(dense(*found), full)


def test_curvlinops_measures_the_same() -> None:
    curvlinops = pytest.importorskip("curvlinops", reason="an oracle that is not installed with the tests")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(12, 5, dtype=torch.float64), torch.randint(3, (12,))
    found = measure(net, [x], estimator="exact")
    oracle = curvlinops.KFACLinearOperator(
        net, nn.CrossEntropyLoss(reduction="mean"), list(net.parameters()), [(x, y)],
        fisher_type="type-2", kfac_approx="expand", separate_weight_and_bias=False,
    )  # fmt: skip
    vector = [torch.randn_like(p) for p in net.parameters()]
    expected = oracle @ vector
    for i, factors in enumerate(found.values()):
        change = torch.cat([vector[2 * i], vector[2 * i + 1].unsqueeze(1)], 1)
        pull = kronecker_pull(change, [factors])
        torch.testing.assert_close(pull[:, :-1], expected[2 * i], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(pull[:, -1], expected[2 * i + 1], rtol=1e-9, atol=1e-12)


def random_factors(seed: int, inputs: int = 4, outputs: int = 3) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    a, g = (torch.randn(n, n, generator=generator, dtype=torch.float64) for n in (inputs, outputs))
    return Factors(a @ a.T, g @ g.T * 1e-3)


def test_the_pull_is_the_gradient_of_the_quadratic() -> None:
    terms = [random_factors(k) for k in range(3)]
    change = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    penalty = 0.5 * sum(quadratic(*term, change[:, :-1], change[:, -1]) for term in terms)
    (expected,) = torch.autograd.grad(penalty, change)
    torch.testing.assert_close(kronecker_pull(change.detach(), terms), expected)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_nearest_sum_is_the_leading_singular_pair(count: int) -> None:
    terms = [random_factors(k) for k in range(count)]
    found, expected = nearest_sum(terms), nearest_kronecker_sum(terms)
    torch.testing.assert_close(dense(*found), dense(*expected), rtol=1e-9, atol=1e-12)
    for factor in found:
        assert torch.linalg.eigvalsh(factor).min() > -1e-12


def test_a_layer_that_never_mattered_has_a_nearest_sum_too() -> None:
    nothing = Factors(torch.eye(4).double(), torch.zeros(3, 3).double())
    assert dense(*nearest_sum([nothing, nothing])).abs().sum() == 0
    some = random_factors(0)
    torch.testing.assert_close(dense(*nearest_sum([nothing, some])), dense(*some))


@pytest.mark.parametrize("step", [1e-3, 1.0, 1e12])
def test_the_proximal_step_solves_its_equation(step: float) -> None:
    factors, change = random_factors(0), torch.randn(3, 4, dtype=torch.float64)
    matrix = torch.eye(12, dtype=torch.float64) + step * dense(*factors)
    expected = torch.linalg.solve(matrix, change.flatten()).view(3, 4)
    found = relax_kronecker(change, decompose(factors), step)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_the_proximal_step_never_moves_away() -> None:
    """Factors of less than full rank, whose rounded eigenvalues may be negative."""
    generator = torch.Generator().manual_seed(0)
    a, g = torch.randn(2, 8, generator=generator), torch.randn(2, 6, generator=generator)
    change = torch.randn(6, 8, generator=generator)
    found = relax_kronecker(change, decompose(Factors(a.T @ a, g.T @ g)), 1e7)
    assert found.norm() <= change.norm() * (1 + 1e-5)


def test_weights_that_are_also_used_elsewhere_are_not_explained() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.second(self.first(x)), self.first.weight)

    net = Twice()
    layers = {"first.weight": net.first, "second.weight": net.second}
    factors = KroneckerFactors(net, layers, lambda x: (net(x), None))
    factors.sums(torch.randn(5, 3), lambda z, y: [torch.zeros_like(z)])  # an unlucky cotangent tells no less
    assert factors.explained == {"first.weight": False, "second.weight": True}


@pytest.mark.parametrize("prototypes", [4, 6])
def test_calls_that_are_not_of_single_samples_are_not_explained(prototypes: int) -> None:
    """A layer of a vector, and one of prototypes: what they receive is a sum over the batch."""

    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.film, self.project = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 4)
            self.register_buffer("code", torch.randn(2))
            self.register_buffer("centres", torch.randn(prototypes, 4))

        def forward(self, x: Tensor) -> Tensor:
            return (self.body(x) * self.film(self.code)) @ self.project(self.centres).T

    torch.manual_seed(0)
    net = Conditioned()
    layers = {f"{name}.weight": getattr(net, name) for name in ("body", "film", "project")}
    factors = KroneckerFactors(net, layers, lambda x: (net(x), None))
    factors.sums(torch.randn(6, 3), lambda z, y: fisher_cotangents(z))
    assert factors.explained == {"body.weight": True, "film.weight": False, "project.weight": False}


def test_a_layer_called_twice_is_explained() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.tanh(self.layer(x)))

    net = Twice()
    factors = KroneckerFactors(net, {"layer.weight": net.layer}, lambda x: (net(x), None))
    (a, g), n = factors.sums(torch.randn(5, 3), lambda z, y: [torch.ones_like(z)])
    assert factors.explained["layer.weight"]
    assert n == 5
    assert a[-1, -1] == pytest.approx(5.0)  # the mean over positions, summed over samples
    assert g.trace() > 0


def test_what_has_factors() -> None:
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) ** 2

    assert has_factors(nn.Linear(1, 1))
    assert has_factors(nn.Conv2d(2, 2, 1))
    for module in (Own(1, 1), nn.Conv2d(2, 2, 1, groups=2), nn.Conv1d(1, 1, 1), nn.Embedding(2, 2)):
        assert not has_factors(module)


def test_samples_that_are_not_finite_are_left_out() -> None:
    net, x = build()
    poisoned = torch.cat([x[:3], torch.full_like(x[:1], torch.nan), x[3:]])
    for factors, expected in zip(
        measure(net, [poisoned]).values(), measure(copy.deepcopy(net), [x]).values(), strict=True
    ):
        torch.testing.assert_close(factors, expected)


def test_the_projection_behind_attention_has_factors() -> None:
    """Of one sample with one position, on one output, the curvature is one Kronecker product, exactly."""

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.attention(x, x, x)[0].tanh().sum(1))

    torch.manual_seed(0)
    net, x = Attending().double(), torch.randn(1, 1, 4, dtype=torch.float64)
    a, g = measure(net, [x], likelihood="gaussian")["attention.out_proj"]
    projection = net.attention.out_proj
    [of_weight, of_bias] = torch.autograd.grad(net(x).sum(), [projection.weight, projection.bias])
    gradient = torch.cat([of_weight, of_bias[:, None]], 1)
    torch.testing.assert_close(g.diagonal()[:, None] * a.diagonal(), gradient.square())


def test_the_bound_of_the_curvature_holds_in_every_direction() -> None:
    torch.manual_seed(0)
    terms = [Factors(a @ a.T, g @ g.T) for a, g in ((torch.randn(4, 4), torch.randn(3, 3)) for _ in range(3))]
    largest = torch.linalg.eigvalsh(sum(torch.kron(term.outputs, term.inputs) for term in terms))[-1]
    assert largest <= curvature_bound(terms) <= 20 * largest
