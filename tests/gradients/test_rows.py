"""The rows of the outputs are the samples, whatever a batch is: against a loop over them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_callbacks.functional import fisher_cotangents, sensitivity_cotangent
from cl_callbacks.gradients import KroneckerFactors, PerSampleGradients, fisher_information
from cl_callbacks.tensors.containers import map_tensors
from tests.odd.batches import OWN, odd
from tests.references.rows import (
    exact_scores,
    labelled_scores,
    mean_over_rows,
    norm_scores,
    reversed_scores,
)

# Kinds of which single samples can be cut out, so that no row needs a backward of the whole batch.
CUT = {"named tuple", "dataclass", "mapping", "task beside memory"}


def double(value: Any) -> Any:
    return map_tensors(lambda t: t.double() if t.is_floating_point() else t, value)


def prepared(name: str, samples: int = 6) -> tuple[nn.Module, Any]:
    net, [batch] = odd(name, samples)
    if name not in ("graphs", "one graph", "nodes"):  # objects stay as they are
        net, batch = net.double(), double(batch)
    return net.eval(), batch


def measure(net: nn.Module, batch: Any, cotangents: Any, **options: Any) -> tuple[dict[str, Tensor], Any]:
    most = options.pop("most", None)
    per_sample = PerSampleGradients(net, dict(net.named_parameters()), net, **options)
    sums, n = per_sample.sums(batch, cotangents, most=most)
    return dict(zip(per_sample.parameters, (s / n for s in sums), strict=True)), per_sample


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], name: str = "") -> None:
    assert found.keys() == expected.keys()
    largest = max(value.abs().max() for value in expected.values())
    for key, value in expected.items():
        close = {"rtol": 1e-4, "atol": float(1e-6 * largest)}
        if value.dtype is torch.float64:
            close = {"rtol": 1e-9, "atol": float(1e-14 * largest)}
        torch.testing.assert_close(found[key], value, msg=lambda m, k=key: f"{name} {k}: {m}", **close)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.filterwarnings("error")
def test_equals_the_loop_over_rows(name: str) -> None:
    net, batch = prepared(name)
    outputs, labels = net(batch)
    parameters = dict(net.named_parameters())
    for estimator, scores in (
        ("exact", exact_scores),
        ("empirical", labelled_scores(labels)),
        ("logits_reversal", reversed_scores(labels)),
    ):
        found, per_sample = measure(
            net, batch, lambda z, y, e=estimator: fisher_cotangents(z, y, estimator=e)
        )
        assert_equal(found, mean_over_rows(outputs, parameters, scores), f"{name} {estimator}")
        assert per_sample.rows == len(outputs)
        assert bool(per_sample._slices.right) == (name in CUT)
    found, _ = measure(net, batch, lambda z, y: [sensitivity_cotangent(z)], magnitude=Tensor.abs_)
    assert_equal(found, mean_over_rows(outputs, parameters, norm_scores, torch.abs), f"{name} MAS")


@pytest.mark.parametrize("name", OWN)
def test_only_the_first_rows(name: str) -> None:
    net, batch = prepared(name)
    outputs, _ = net(batch)
    parameters, most = dict(net.named_parameters()), min(4, len(outputs))
    found, per_sample = measure(net, batch, lambda z, y: fisher_cotangents(z, y), most=4)
    assert per_sample.rows == most
    assert_equal(found, mean_over_rows(outputs, parameters, exact_scores, rows=most), name)
    assert measure(net, batch, lambda z, y: fisher_cotangents(z, y), most=1000)[1].rows == len(outputs)


@pytest.mark.parametrize("max_bytes", [1, 1 << 22])
def test_more_rows_than_one_backward_holds(max_bytes: int) -> None:
    net, batch = prepared("batch norm", 40)
    with pytest.warns(UserWarning, match="cannot be run one by one"):
        found, _ = measure(net, batch, lambda z, y: fisher_cotangents(z, y), max_bytes=max_bytes)
    assert_equal(found, mean_over_rows(net(batch)[0], dict(net.named_parameters()), exact_scores))


class Unbatched(torch.autograd.Function):
    """An operation whose backward no vmap can follow."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        assert gradient.sum().item() < 1e9
        return 2 * gradient


def test_rows_one_by_one_where_no_backward_can_be_batched() -> None:
    net, batch = prepared("batch norm")
    net.act.append(module := nn.Module())
    module.forward = Unbatched.apply
    found, per_sample = measure(net, batch, lambda z, y: fisher_cotangents(z, y))
    assert not per_sample._network._rows_batch
    assert_equal(found, mean_over_rows(net(batch)[0], dict(net.named_parameters()), exact_scores))


def test_a_memory_that_is_as_long_as_the_task_in_one_batch_is_not_cut_with_it() -> None:
    """The last batch of an epoch is shorter, and then has as many samples of the task as of the memory."""

    class Prototypes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.head = nn.Parameter(torch.ones(4)), nn.Linear(4, 3)

        def forward(self, batch: Any) -> tuple[Tensor, None]:
            return self.head((batch["task"] * self.scale - batch["memory"].mean(0)).tanh()), None

    torch.manual_seed(0)
    net = Prototypes().double()
    per_sample = PerSampleGradients(net, dict(net.named_parameters()), net)
    for task, memory in ((6, 3), (3, 3), (3, 6)):
        batch = {"task": torch.randn(task, 4).double(), "memory": torch.randn(memory, 4).double()}
        sums, n = per_sample.sums(batch, lambda z, y: fisher_cotangents(z, y))
        assert n == task
        found = dict(zip(per_sample.parameters, (s / n for s in sums), strict=True))
        assert_equal(found, mean_over_rows(net(batch)[0], dict(net.named_parameters()), exact_scores))


@pytest.mark.parametrize(("name", "left"), [("named tuple", 5), ("task beside memory", 5), ("graphs", 0)])
def test_rows_that_are_not_finite(name: str, left: int) -> None:
    """They are left out; and a whole batch, if no row can be taken out of it."""
    net, batch = prepared(name)
    x = batch["task"][0] if isinstance(batch, dict) else batch.x
    x[3] = torch.nan
    per_sample = PerSampleGradients(net, dict(net.named_parameters()), net)
    sums, n = per_sample.sums(batch, lambda z, y: fisher_cotangents(z, y))
    assert (n, per_sample.rows) == (left, 6)
    assert all(s.isfinite().all() for s in sums)
    assert (sum(s.sum() for s in sums) > 0) == bool(left)


@pytest.mark.parametrize("kind", ["dropout", "latent"])
def test_noise_in_the_forward_is_said_to_be_noise(kind: str) -> None:
    """And what is measured is that of the rows of one noisy forward."""

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.head(torch.nn.functional.dropout(h) if kind == "dropout" else h + torch.randn_like(h))

    torch.manual_seed(0)
    net, x = Noisy().eval().double(), torch.randn(6, 4).double()
    with pytest.warns(UserWarning, match="forward of Noisy is random in evaluation mode") as caught:
        torch.manual_seed(1)
        found = fisher_information(net, [x], likelihood="categorical")
    assert len(caught) == 1
    torch.manual_seed(1)
    assert_equal(found, mean_over_rows(net(x), dict(net.named_parameters()), exact_scores))


@pytest.mark.parametrize("name", ["named tuple", "graphs"])
def test_factors_of_the_first_rows(name: str) -> None:
    """Those of a layer that sees one vector for each row: the head."""
    net, batch = prepared(name)
    factors = KroneckerFactors(net, {"net.0.weight": net.net[0]}, net)
    inputs: list[Tensor] = []
    handle = net.net[0].register_forward_hook(lambda module, args, output: inputs.append(args[0].detach()))
    outputs, labels = net(batch)
    handle.remove()
    (a, g), n = factors.sums(batch, lambda z, y: fisher_cotangents(z, y, estimator="empirical"), most=4)
    assert (n, factors.rows) == (4, 4)
    a_of = torch.nn.functional.pad(inputs[0], (0, 1), value=1.0)[:4]
    delta = torch.nn.functional.one_hot(labels, 3).to(outputs) - outputs.detach().softmax(1)
    torch.testing.assert_close(a, a_of.T @ a_of)
    torch.testing.assert_close(g, delta[:4].T @ delta[:4])
