"""What a per-sample Fisher costs, against ordinary training passes and against a loop over samples.

    python benchmarks/fisher.py [CASE ...] [--repeats 5] [--device cpu] [--json FILE]

For each network: the time of the Fisher over a set of samples divided by the time of one ordinary
forward and backward over the same samples in the same batches. ``first`` is the same for an object that
has seen no batch before and checks some against single samples, as it happens once for each task. Fisher,
ordinary passes and loop alternate, and all ratios are medians over repeats, so a machine whose speed varies
does little harm. ``exact`` makes one pass per class and is given per class. The loop computes the same with
batches of one sample; ``difference`` is the largest relative distance to it over all parameters.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from networks import Transformer, mlp, resnet, texts
from torch import Tensor, nn
from torch.nn import functional as F

from cl_callbacks.functional import fisher_cotangents
from cl_callbacks.gradients import PerSampleGradients


class Case(NamedTuple):
    """A network, how to make ``n`` inputs of it, and the Fisher that is measured."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    samples: int
    batch_size: int
    estimator: str = "sampled"
    passes: int = 1


def digits() -> nn.Module:
    return mlp(width=256, inputs=256)


def vectors(n: int) -> Tensor:
    return torch.randn(n, 256)


CASES = {
    "digits-exact": Case(digits, vectors, 1440, 32, "exact", 10),
    "digits-sampled": Case(digits, vectors, 1440, 32),
    "cnn": Case(resnet, lambda n: torch.randn(n, 3, 32, 32), 64, 32),
    "small-transformer": Case(lambda: Transformer(256, 4, 4, 1000), texts(64, 1000), 128, 32),
    "transformer": Case(Transformer, texts(64), 128, 16),
    "transformer-16-tokens": Case(Transformer, texts(16), 128, 16),
}
LOOPED = 16  # samples; the loop's time is proportional


class Measurement:
    """One case on one device."""

    def __init__(self, case: Case, device: str) -> None:
        torch.manual_seed(0)
        self.case, self.device = case, torch.device(device)
        self.net = case.make().to(device).eval()
        self.x = case.inputs(case.samples).to(device)
        self.y = torch.randint(10, (case.samples,), device=device)
        self.parameters = dict(self.net.named_parameters())
        self.seasoned = self.new()

    def new(self) -> PerSampleGradients:
        return PerSampleGradients(self.net, self.parameters, lambda batch: (self.net(batch[0]), batch[1]))

    def cotangents(self, outputs: Tensor, labels: Tensor | None) -> list[Tensor]:
        return list(fisher_cotangents(outputs, labels, estimator=self.case.estimator))

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        size = self.case.batch_size
        return list(zip(self.x.split(size), self.y.split(size), strict=True))

    def ordinary(self) -> None:
        for inputs, labels in self.batches():
            self.net.zero_grad()
            F.cross_entropy(self.net(inputs), labels).backward()
        self.net.zero_grad()

    def fisher(self, per_sample: PerSampleGradients) -> None:
        totals = per_sample.zeros()
        for batch in self.batches():
            per_sample.sums(batch, self.cotangents, totals)
        assert not per_sample.fallback

    def loop(self, chosen: list[Tensor] | None = None) -> list[Tensor]:
        """Over the first samples; ``chosen`` cotangents stand in for new ones."""
        totals = [torch.zeros_like(p) for p in self.parameters.values()]
        for i in range(LOOPED):
            outputs = self.net(self.x[i : i + 1])
            for v in self.cotangents(outputs, self.y[i : i + 1]) if chosen is None else chosen:
                v = v if chosen is None else v[i : i + 1]
                gradients = torch.autograd.grad(outputs, list(self.parameters.values()), v, True)
                torch._foreach_addcmul_(totals, gradients, gradients)
        return totals

    def difference(self) -> float:
        batch = self.x[:LOOPED], self.y[:LOOPED]
        chosen = self.cotangents(self.net(batch[0]), batch[1])
        fast, _ = self.new().sums(batch, lambda outputs, labels: chosen)
        slow = self.loop(chosen)
        return max(((f - s).norm() / s.norm()).item() for f, s in zip(fast, slow, strict=True))

    def seconds(self, function: Callable[..., object], *args: object) -> float:
        self.synchronize()
        start = time.perf_counter()
        function(*args)
        self.synchronize()
        return time.perf_counter() - start

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure(case: Case, repeats: int, device: str) -> dict[str, float]:
    m = Measurement(case, device)
    m.ordinary(), m.fisher(m.seasoned), m.loop()
    scale, rows = case.samples / LOOPED, []
    for _ in range(repeats):
        ordinary, fisher = m.seconds(m.ordinary), m.seconds(m.fisher, m.seasoned)
        rows.append((ordinary, fisher, m.seconds(m.fisher, m.new()), scale * m.seconds(m.loop)))
    ratios = [fisher / ordinary / case.passes for ordinary, fisher, _, _ in rows]
    batches = case.samples / case.batch_size
    return {
        "fisher": statistics.median(ratios),
        "fisher_min": min(ratios),
        "fisher_max": max(ratios),
        "first": statistics.median(first / ordinary for ordinary, _, first, _ in rows) / case.passes,
        "loop": statistics.median(loop / ordinary for ordinary, _, _, loop in rows) / case.passes,
        "loop_over_fisher": statistics.median(loop / fisher for _, fisher, _, loop in rows),
        "ordinary_ms_per_batch": 1e3 * statistics.median(row[0] for row in rows) / batches,
        "difference": m.difference(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(CASES)}; default: all")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    if unknown := set(args.cases) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads; ordinary pass = 1")
    header = f"{'Fisher per pass':>20} {'first':>6} {'loop':>6} {'loop/Fisher':>12} {'difference':>11}"
    print(f"{'':22}{header} {'ordinary':>10}")
    results = {}
    for name in args.cases or CASES:
        r = results[name] = measure(CASES[name], args.repeats, args.device)
        spread = f"{r['fisher']:.2f} ({r['fisher_min']:.2f}–{r['fisher_max']:.2f})"
        print(
            f"{name:22}{spread:>20} {r['first']:6.2f} {r['loop']:6.1f} {r['loop_over_fisher']:12.1f} "
            f"{r['difference']:11.1e} {r['ordinary_ms_per_batch']:7.1f} ms",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
