"""What a per-sample Fisher costs, against ordinary training passes and against a loop over samples.

    python benchmarks/fisher.py [--repeats 7] [--json FILE]

For each network: the time of the Fisher over a set of samples divided by the time of one ordinary
forward and backward over the same samples in the same batches. Fisher and ordinary passes alternate, and
the ratio is the median over repeats, so a machine whose speed drifts does little harm. ``exact`` makes
one pass per class and is given per class. The loop computes the same with batches of one sample.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_callbacks.functional import PerSampleGradients, fisher_cotangents


class Transformer(nn.Module):
    """Four layers of width 256 over 64 tokens, mean-pooled."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, 256)
        layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(256, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(tokens)).mean(1))


class Case(NamedTuple):
    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    estimator: str
    passes: int
    batch_size: int = 32


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


CASES = [
    Case("digits MLP, exact", mlp, lambda: torch.randn(1440, 256), "exact", 10),
    Case("digits MLP, sampled", mlp, lambda: torch.randn(1440, 256), "sampled", 1),
    Case("transformer, sampled", Transformer, lambda: torch.randint(1000, (128, 64)), "sampled", 1),
]
LOOPED = 32  # samples; the loop's time is proportional


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(case: Case, repeats: int) -> dict[str, float]:
    torch.manual_seed(0)
    net, x = case.make(), case.inputs()
    y = torch.randint(10, (len(x),))
    parameters = dict(net.named_parameters())

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(x.split(case.batch_size), y.split(case.batch_size), strict=True)

    def ordinary() -> None:
        for inputs, labels in batches():
            net.zero_grad()
            F.cross_entropy(net(inputs), labels).backward()

    def fisher(estimator: str = case.estimator) -> list[Tensor]:
        per_sample = PerSampleGradients(net, parameters, lambda b: (net(b[0]), b[1]))
        total = [torch.zeros_like(p) for p in parameters.values()]
        for batch in batches():
            sums, _ = per_sample.sums(
                batch, lambda z, labels: fisher_cotangents(z, labels, estimator=estimator)
            )
            torch._foreach_add_(total, sums)
        assert not per_sample.fallback
        return total

    def loop() -> None:
        total = [torch.zeros_like(p) for p in parameters.values()]
        for i in range(LOOPED):
            outputs = net(x[i : i + 1])
            for v in fisher_cotangents(outputs, y[i : i + 1], estimator=case.estimator):
                gradients = torch.autograd.grad(outputs, list(parameters.values()), v, True)
                torch._foreach_addcmul_(total, gradients, gradients)

    net.eval()
    ordinary(), fisher(), loop()
    rows = [(seconds(ordinary), seconds(fisher), seconds(loop)) for _ in range(repeats)]
    scale = len(x) / LOOPED
    return {
        "fisher": statistics.median(f / o for o, f, _ in rows) / case.passes,
        "fisher_min": min(f / o for o, f, _ in rows) / case.passes,
        "fisher_max": max(f / o for o, f, _ in rows) / case.passes,
        "loop": statistics.median(scale * loop / o for o, _, loop in rows) / case.passes,
        "loop_over_fisher": statistics.median(scale * loop / f for _, f, loop in rows),
        "ordinary_ms_per_batch": 1e3 * statistics.median(o for o, _, _ in rows) * case.batch_size / len(x),
        "difference": difference(net, x[:16], y[:16], parameters),
    }


def difference(net: nn.Module, x: Tensor, y: Tensor, parameters: dict[str, Tensor]) -> float:
    """Largest relative distance, over parameters, between the fast Fisher and the loop's."""
    per_sample = PerSampleGradients(net, parameters, lambda b: (net(b[0]), b[1]))
    fast, _ = per_sample.sums((x, y), lambda z, labels: fisher_cotangents(z, labels, estimator="empirical"))
    slow = [torch.zeros_like(p) for p in parameters.values()]
    for i in range(len(x)):
        gradients = torch.autograd.grad(
            F.cross_entropy(net(x[i : i + 1]), y[i : i + 1]), list(parameters.values())
        )
        torch._foreach_addcmul_(slow, gradients, gradients)
    return max(((f - s).norm() / s.norm()).item() for f, s in zip(fast, slow, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; ordinary pass = 1")
    print(f"{'':22} {'Fisher per pass':>22} {'loop':>8} {'loop/Fisher':>12} {'difference':>11}")
    results = {}
    for case in CASES:
        r = results[case.name] = measure(case, args.repeats)
        spread = f"{r['fisher']:.2f} ({r['fisher_min']:.2f}–{r['fisher_max']:.2f})"
        print(
            f"{case.name:22} {spread:>22} {r['loop']:8.1f} {r['loop_over_fisher']:12.1f} "
            f"{r['difference']:11.1e}"
        )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
