"""The theory as a picture: how long does a synapse remember one of the many things that it is told?

    python examples/memory_capacity.py                    # figures, and runs/memory_capacity.png
    python examples/memory_capacity.py --json FILE
    python examples/memory_capacity.py --synapses 1000000 --beakers 12

N synapses are asked to store one random pattern of ±1 after the other. The signal of a pattern is its overlap
with the weights, the noise what all others leave there; a pattern is remembered while their ratio is above 1.
Lines are exact (from the spectra of the transitions), dots are simulations with the functions that the
callbacks run. Simple binary synapses forget exponentially, cascades by a power law that costs them initial
signal, and Benna and Fusi's beakers as the inverse root of age, so that their lifetime grows with N itself.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table
from torch import Tensor

from cl_callbacks.functional import beakers, cascade

SIMULATED_SYNAPSES, SIMULATED_STEPS = 4000, 1024
SIZES = [10**k for k in range(2, 8)]


@dataclass
class Model:
    name: str
    ratio: Callable[[Tensor], Tensor]
    """Signal over noise of one synapse, at each age."""
    store: Callable[[Any, Tensor, torch.Generator], Tensor]
    """Stores a pattern in the state of simulated synapses, in place, and returns the weights."""
    fresh: Callable[[], Any]


def binary(name: str, levels: int, probability: float) -> Model:
    """Weights of ±1, whose noise is 1 per synapse."""

    def store(state: dict[str, Tensor], pattern: Tensor, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(len(pattern), generator=generator)
        cascade.cascade_([state["level"]], [probability * pattern], [uniform], levels)
        return state["level"].sign()

    return Model(
        name=name,
        ratio=lambda ages: cascade.cascade_memory_trace(ages, levels, probability=probability),
        store=store,
        fresh=lambda: {"level": torch.ones(SIMULATED_SYNAPSES)},
    )


def chain(name: str, count: int, coupling: float) -> Model:
    c, g = beakers.capacities(count), beakers.conductances(count, coupling)

    def ratio(ages: Tensor) -> Tensor:
        trace, energy = beakers.beaker_memory_trace(ages, c, g)
        return trace / math.sqrt(energy)

    def store(levels: list[list[Tensor]], pattern: Tensor, generator: torch.Generator) -> Tensor:
        beakers.flow_(levels, c, g)
        levels[0][0] += pattern
        return levels[0][0]

    def fresh() -> list[list[Tensor]]:
        """Levels as after memories without end: Gaussian, of the covariance that a step preserves."""
        step = beakers.flow_matrix(c, g)
        learned = torch.zeros(count, count, dtype=step.dtype)
        learned[0, 0] = 1.0
        preserved = torch.eye(count**2, dtype=step.dtype) - torch.kron(step, step)
        covariance = torch.linalg.solve(preserved, learned.flatten()).view(count, count)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(count, SIMULATED_SYNAPSES, generator=generator, dtype=step.dtype)
        return [[level] for level in (torch.linalg.cholesky(covariance) @ noise).float()]

    return Model(name=name, ratio=ratio, store=store, fresh=fresh)


def simulate(model: Model, repeats: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ages, and the measured signal over noise of one synapse, mean over runs and neighbouring ages."""
    generator = torch.Generator().manual_seed(seed)
    signals, noises = torch.zeros(SIMULATED_STEPS), torch.zeros(())
    state = model.fresh()
    for _ in range(repeats):
        patterns = torch.randint(0, 2, (SIMULATED_STEPS, SIMULATED_SYNAPSES), generator=generator) * 2.0 - 1
        for pattern in patterns:
            weights = model.store(state, pattern, generator)
        signals += (patterns.flip(0) @ weights) / SIMULATED_SYNAPSES / repeats
        noises += weights.square().mean() / repeats
    edges = torch.logspace(0, math.log2(SIMULATED_STEPS), 15, base=2).round().long().unique() - 1
    bins = [slice(a, b) for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]
    ages = torch.stack([torch.arange(SIMULATED_STEPS)[b].double().mean() for b in bins])
    return ages, torch.stack([signals[b].mean() for b in bins]) / noises.sqrt()


def line(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Slope of the line through points, and the largest distance from it."""
    slope = ((x - x.mean()) @ (y - y.mean())) / (x - x.mean()).square().sum()
    residual = y - y.mean() - slope * (x - x.mean())
    return slope.item(), residual.abs().max().item()


def lifetime(model: Model, synapses: int) -> float:
    """Age at which signal over noise falls to 1; 0 if it never was above."""
    low, high = 0.0, 1.0

    def remembered(age: float) -> bool:
        return model.ratio(torch.tensor([age], dtype=torch.float64)).item() * math.sqrt(synapses) >= 1

    if not remembered(low):
        return 0.0
    while remembered(high):
        low, high = high, 2 * high
    while high - low > max(0.5, 1e-3 * low):
        middle = (low + high) / 2
        low, high = (middle, high) if remembered(middle) else (low, middle)
    return (low + high) / 2


def measure(args: argparse.Namespace) -> tuple[dict[str, Model], dict[str, Any]]:
    models = {
        "simple": binary("simple, binary", 1, args.probability),
        "cascade": binary(f"cascade, {args.levels} levels", args.levels, 1.0),
        "benna_fusi": chain(f"Benna–Fusi, {args.beakers} beakers", args.beakers, args.coupling),
    }
    found: dict[str, Any] = {}
    for key, model in models.items():
        lifetimes = {size: lifetime(model, size) for size in SIZES}
        alive = [(size, age) for size, age in lifetimes.items() if age > 3]
        sizes, ages = torch.tensor(alive, dtype=torch.float64).log().T
        found[key] = {"lifetimes": lifetimes, "lifetime_exponent": line(sizes, ages)[0]}
    # The middle of the chain's range: neither its first beaker alone, nor its last.
    times = beakers.timescales(args.beakers, args.coupling)
    middle = torch.logspace(math.log10(8 * times[0]), math.log10(times[-1] / 8), 60, dtype=torch.float64)
    slope, residual = line(middle.log(), models["benna_fusi"].ratio(middle).log())
    found["benna_fusi"] |= {
        "slope": slope,
        "residual": residual,
        "fitted_ages": [middle[0].item(), middle[-1].item()],
    }
    middle = torch.logspace(1, (args.levels - 3) * math.log10(2), 30, dtype=torch.float64)
    slope, residual = line(middle.log(), models["cascade"].ratio(middle).log())
    found["cascade"] |= {
        "slope": slope,
        "residual": residual,
        "fitted_ages": [middle[0].item(), middle[-1].item()],
    }
    ages = torch.arange(1, 200, dtype=torch.float64)
    slope, residual = line(ages, models["simple"].ratio(ages).log())
    found["simple"] |= {"decay_per_step": 1 - math.exp(slope), "residual": residual}
    return models, found


def draw(models: dict[str, Model], found: dict[str, Any], args: argparse.Namespace) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    ages = torch.logspace(0, 5, 120, dtype=torch.float64).round().unique()
    root = math.sqrt(args.synapses)
    for color, (key, model) in zip(("tab:gray", "tab:blue", "tab:red"), models.items(), strict=True):
        left.loglog(ages, root * model.ratio(ages), color=color, label=model.name)
        at, ratio = simulate(model, args.repeats)
        left.loglog(at + 1e-9, root * ratio.clamp(min=1e-9), ".", color=color)
        lifetimes = {size: age for size, age in found[key]["lifetimes"].items() if age > 0}
        right.loglog(list(lifetimes), list(lifetimes.values()), "o-", color=color, label=model.name)
    left.loglog(ages, root * 0.3 * ages**-0.5, "k:", label="slope −1/2")
    left.axhline(1, color="k", linewidth=0.5)
    left.set(ylim=(0.1, 2 * root), xlim=(0.8, 1e5), xlabel="age of the memory, in memories stored since")
    left.set(ylabel="signal over noise", title=f"{args.synapses:,} synapses; dots are simulated")
    right.set(xlabel="number of synapses", ylabel="lifetime of a memory", title="how long signal > noise")
    for axis in (left, right):
        axis.legend()
    args.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out / "memory_capacity.png", dpi=150)
    plt.close(figure)


def show(console: Console, models: dict[str, Model], found: dict[str, Any]) -> None:
    table = Table(title="lifetime of a memory, in memories stored since, by number of synapses")
    for column in ("synapses are", *(f"10^{int(math.log10(size))}" for size in SIZES), "grows as"):
        table.add_column(column, justify="left" if column == "synapses are" else "right")
    for key, model in models.items():
        lifetimes = [f"{age:,.0f}" for age in found[key]["lifetimes"].values()]
        growth = f"N^{found[key]['lifetime_exponent']:.2f}" if key != "simple" else "log N"
        table.add_row(model.name, *lifetimes, growth)
    console.print(table)
    for key in ("benna_fusi", "cascade"):
        slope, (first, last) = found[key]["slope"], found[key]["fitted_ages"]
        console.print(
            f"{models[key].name}: signal falls as age^{slope:.3f}, ages {first:,.0f} to {last:,.0f}"
        )
    simple = found["simple"]
    console.print(
        f"{models['simple'].name}: signal falls by {simple['decay_per_step']:.1%} with each memory, "
        f"an exponential to {simple['residual']:.0e} in its logarithm"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--synapses", type=int, default=100_000, help="of the left picture")
    parser.add_argument("--beakers", type=int, default=12)
    parser.add_argument("--coupling", type=float, default=0.25, help="of the first beaker to the second")
    parser.add_argument("--levels", type=int, default=12, help="of the cascade")
    parser.add_argument("--probability", type=float, default=0.1, help="that a simple synapse takes a memory")
    parser.add_argument("--repeats", type=int, default=12, help="of the simulation")
    parser.add_argument("--json", type=Path, help="write slopes and lifetimes to this file")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the picture")
    return parser.parse_args()


def main() -> None:
    args, console = parse(), Console()
    models, found = measure(args)
    show(console, models, found)
    draw(models, found, args)
    console.print(f"picture: {args.out / 'memory_capacity.png'}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
