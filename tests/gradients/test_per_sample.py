"""Every way to a per-sample gradient against a loop over samples."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from cl_callbacks.functional import fisher_cotangents
from cl_callbacks.gradients import PerSampleGradients
from tests.gradients.networks import NETWORKS, Branching
from tests.references.fisher import batched_fisher, exact_fisher, labelled_fisher

# What no module explains, and what the whole network must be run again for.
FALLBACK = {
    "amplified": {"table.weight", "gate.weight", "scale", "shift"},
    "branching": {"scale"},
    "tied, functional": {"embed.weight"},
    "branching submodule": {"inner.scale"},
    "pruned": {"0.weight_orig", "0.bias_orig"},
    "pruned, convolution": {"0.weight_orig"},
    "pruned, table": {"table.weight_orig"},
    "pruned, attention": {"attention.in_proj_weight_orig"},
    "weight norm": {"0.weight_g", "0.weight_v"},
    "weight norm, parametrized": {f"0.parametrizations.weight.original{i}" for i in range(2)},
    "spectral norm": {"0.weight_orig"},
    "spectral norm, convolution": {"0.weight_orig"},
    "spectral norm, parametrized": {"0.parametrizations.weight.original"},
    "gain on outputs": {"0.gain"},
    "scale of inputs": {"0.scale"},
    "gate on a layer": {"layer.gate"},
}


def build(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    make, inputs = NETWORKS[name]
    net = make().double()
    x = inputs()
    x = x.double() if x.is_floating_point() else x
    with torch.no_grad():
        net.train()(x)  # BatchNorm statistics that are not the identity
    return net.eval(), x


def fisher(net: nn.Module, batch: Tensor, labels: Tensor | None = None, **how: str) -> dict:
    per_sample = PerSampleGradients(net, dict(net.named_parameters()), lambda x: (net(x), labels))
    sums, n = per_sample.sums(batch, lambda z, y: fisher_cotangents(z, y, **how))
    return dict(zip(per_sample.parameters, [s / n for s in sums], strict=True)) | {"": per_sample}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore:torch.func.vmap cannot follow")
def test_equals_the_loop(name: str) -> None:
    net, x = build(name)
    sequence = name.startswith("tied")
    if sequence:
        labels = torch.randint(net(x).shape[-1], x.shape)
        labels[0, 1:3] = -100
        found = fisher(net, x, labels, estimator="empirical")
        expected = labelled_fisher(net, x, labels)
    else:
        found, expected = fisher(net, x, estimator="exact"), exact_fisher(net, x)
    per_sample = found.pop("")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-10, atol=1e-14, msg=f"{name}: {key}")
    if name != "transformer, time first":  # whose samples are along another dimension
        assert per_sample.fallback == FALLBACK.get(name, set())


@pytest.mark.parametrize("name", ["cnn", "transformer", "lstm"])
def test_chunks_of_one_sample_change_nothing(name: str) -> None:
    net, x = build(name)
    expected = exact_fisher(net, x)
    per_sample = PerSampleGradients(net, dict(net.named_parameters()), lambda x: (net(x), None), max_bytes=1)
    sums, n = per_sample.sums(x, lambda z, y: fisher_cotangents(z, y))
    for total, value in zip(sums, expected.values(), strict=True):
        torch.testing.assert_close(total / n, value, rtol=1e-10, atol=1e-14)


def test_the_loop_says_once_that_it_is_slow() -> None:
    net, x = build("branching")
    per_sample = PerSampleGradients(net, dict(net.named_parameters()), lambda x: (net(x), None))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            per_sample.sums(x, lambda z, y: fisher_cotangents(z, y))
    assert len([w for w in caught if "one sample at a time" in str(w.message)]) == 1


def test_square_of_the_batch_mean_is_caught() -> None:
    net, x = build("mlp")
    labels = net(x).argmax(1)
    found = fisher(net, x, labels, estimator="empirical")
    wrong = batched_fisher(net, x, labels, batch_size=len(x))
    right = labelled_fisher(net, x, labels)
    assert sum(w.sum() for w in wrong.values()) < 0.7 * sum(r.sum() for r in right.values())
    torch.testing.assert_close(found["0.weight"], right["0.weight"])


def test_touches_no_grad_and_leaves_no_hook() -> None:
    net, x = build("cnn")
    before = [p.detach().clone() for p in net.parameters()]
    buffers = [b.clone() for b in net.buffers()]
    fisher(net, x)
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))
    assert all(torch.equal(p, b) for p, b in zip(net.buffers(), buffers, strict=True))
    assert not any(m._forward_hooks for m in net.modules())


@pytest.mark.parametrize("name", ["pruned", "weight norm", "weight norm, lstm"])
def test_leaves_the_weights_that_a_forward_computes(name: str) -> None:
    net, x = build(name)
    net(x)
    before = [t for m in net.modules() for t in vars(m).values() if isinstance(t, Tensor)]
    fisher(net, x)
    after = [t for m in net.modules() for t in vars(m).values() if isinstance(t, Tensor)]
    assert len(before) == len(after) > 0
    for computed, found in zip(before, after, strict=True):
        assert found.grad_fn is not None
        assert torch.equal(computed, found)


def test_leaves_out_samples_that_are_not_finite() -> None:
    net, x = build("mlp")
    poisoned = x.clone()
    poisoned[2] = float("nan")
    keep = [0, 1, 3, 4, 5]
    per_sample = PerSampleGradients(net, dict(net.named_parameters()), lambda x: (net(x), None))
    sums, n = per_sample.sums(poisoned, lambda z, y: fisher_cotangents(z, y))
    assert n == 5
    for total, value in zip(sums, exact_fisher(net, x[keep]).values(), strict=True):
        torch.testing.assert_close(total / n, value)
    sums, n = per_sample.sums(torch.full_like(x, torch.nan), lambda z, y: [z])
    assert n == 0
    assert all((s == 0).all() for s in sums)


def test_a_head_that_only_later_batches_use_is_checked_then() -> None:
    class Heads(nn.Module):
        """Used as a matrix, not as a module: only the whole network's vmap can explain it."""

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 3)
            self.heads = nn.ModuleList(nn.Linear(3, 2) for _ in range(2))

        def forward(self, batch: tuple[Tensor, int]) -> Tensor:
            return self.body(batch[0]) @ self.heads[batch[1]].weight.T

    torch.manual_seed(0)
    net = Heads().double()
    per_sample = PerSampleGradients(net, dict(net.named_parameters()), lambda b: (net(b), None))
    for head in (0, 1):
        batch = torch.randn(5, 4).double()
        sums, n = per_sample.sums((batch, head), lambda z, y: fisher_cotangents(z, y))
        alone = nn.Sequential(net.body, nn.Linear(3, 2, bias=False).double())
        alone[1].weight = net.heads[head].weight
        found = dict(zip(per_sample.parameters, sums, strict=True))
        expected = exact_fisher(alone, batch)
        torch.testing.assert_close(found[f"heads.{head}.weight"] / n, expected["1.weight"])
        torch.testing.assert_close(found["body.weight"] / n, expected["0.weight"])
    assert per_sample.fallback == {"heads.0.weight", "heads.1.weight"}


class Experts(nn.Module):
    """Each sample goes to one of two experts: their batches are not the network's."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        outputs = x.new_zeros(len(x), 3)
        for k, expert in enumerate(self.experts):
            rows = (x[:, 0] > 0) == bool(k)
            if rows.any():
                outputs[rows] = expert(x[rows])
        return outputs


@pytest.mark.filterwarnings("ignore:torch.func.vmap cannot follow")
def test_what_the_first_batch_explains_and_the_second_does_not() -> None:
    torch.manual_seed(0)
    net = Experts().double()
    x = torch.randn(8, 4).double()
    one = x.clone()
    one[:, 0] = x[:, 0].abs()  # all to the second expert
    per_sample = PerSampleGradients(net, dict(net.named_parameters()), lambda x: (net(x), None))
    for batch in (one, x):
        sums, n = per_sample.sums(batch, lambda z, y: fisher_cotangents(z, y))
        for total, expected in zip(sums, exact_fisher(net, batch).values(), strict=True):
            torch.testing.assert_close(total / n, expected)


def test_every_sample_that_is_checked_counts() -> None:
    """A layer that is what it seems for the first sample alone."""

    class Sorting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + x[1:, 0].argsort()])
            return self.head(x[order])[order.argsort()]

    torch.manual_seed(0)
    net, x = Sorting().double(), torch.randn(9, 4).double()
    found = fisher(net, x)
    assert found.pop("").fallback == {"head.weight", "head.bias"}
    torch.testing.assert_close(found["head.weight"], exact_fisher(net, x)["head.weight"])


def test_unused_parameters_have_no_importance() -> None:
    torch.manual_seed(0)
    net = Branching()
    net.spare = nn.Linear(4, 2)
    per_sample = PerSampleGradients(
        net, dict(net.spare.named_parameters(prefix="spare")), lambda x: (net(x), None)
    )
    sums, _ = per_sample.sums(torch.randn(3, 4), lambda z, y: fisher_cotangents(z, y))
    assert all((s == 0).all() for s in sums)


def test_half_precision_is_squared_in_float32() -> None:
    torch.manual_seed(0)
    net = nn.Linear(3, 2).bfloat16()
    x = torch.randn(4, 3).bfloat16() * 1e-25  # the squares underflow in bfloat16's eight bits less
    per_sample = PerSampleGradients(net, dict(net.named_parameters()), lambda x: (net(x), None))
    sums, _ = per_sample.sums(x, lambda z, y: fisher_cotangents(z, y))
    assert all(s.dtype is torch.float32 for s in sums)


def test_a_gradient_that_is_nothing_but_rounding_needs_no_second_run() -> None:
    class Attention(nn.Module):
        """No softmax sees the bias of its keys, which adds the same to all scores of a query."""

        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.head = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            scores = self.query(x) @ self.key(x).mT
            return self.head((scores.softmax(-1) @ x).mean(1))

    x = torch.randn(6, 9, 32)
    net = Attention()
    bias = torch.autograd.grad(net(x).square().sum(), net.key.bias)[0]
    assert 0 < bias.norm() < 1e-5  # rounding
    assert fisher(net, x).pop("").fallback == set()


def test_adds_to_the_sums_over_earlier_batches_in_place() -> None:
    net, x = build("transformer")
    per_sample = PerSampleGradients(net, dict(net.named_parameters()), lambda x: (net(x), None))
    totals = per_sample.zeros()
    for batch in (x[:4], x[4:], x * torch.nan):
        found, _ = per_sample.sums(batch, lambda z, y: fisher_cotangents(z, y), totals)
        assert found is totals
    for total, expected in zip(totals, exact_fisher(net, x).values(), strict=True):
        torch.testing.assert_close(total / len(x), expected, rtol=1e-10, atol=1e-14)


class Texts(nn.Module):
    """Every kind of layer that a text meets."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(9, 8), nn.Embedding(5, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.convolution, self.head = nn.Conv1d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.block(self.words(tokens) + self.positions(torch.arange(5)))
        return self.head(self.convolution(x.mT).tanh().mean(2))


def test_half_precision_is_summed_in_float32() -> None:
    """Many small squares: a sum that has eight bits stops growing once it is 256 times what is added."""
    torch.manual_seed(0)
    net = Texts().bfloat16().eval()
    tokens = torch.randint(9, (4, 5)).repeat(300, 1)
    labels = torch.randint(4, (4,)).repeat(300)
    half = fisher(net, tokens, labels, estimator="empirical")
    assert half.pop("").fallback == set()
    full = fisher(net.float(), tokens, labels, estimator="empirical")
    for name, found in half.items():
        assert found.dtype is torch.float32
        assert (found - full[name]).norm() < 0.06 * full[name].norm(), name


@pytest.mark.filterwarnings("ignore:torch.func.vmap cannot follow")
def test_a_parameter_that_a_later_batch_uses_in_another_way() -> None:
    class Shifting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift, self.head = nn.Parameter(torch.randn(4)), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((x + self.shift if x.sum() > 0 else x * self.shift).tanh())

    torch.manual_seed(0)
    net, x = Shifting().double(), torch.rand(6, 4).double()
    per_sample = PerSampleGradients(net, dict(net.named_parameters()), lambda x: (net(x), None))
    for batch, fallback in ((x, set()), (-x, {"shift"}), (x, {"shift"})):
        sums, n = per_sample.sums(batch, lambda z, y: fisher_cotangents(z, y))
        assert per_sample.fallback == fallback
        for total, expected in zip(sums, exact_fisher(net, batch).values(), strict=True):
            torch.testing.assert_close(total / n, expected)
