"""What a rule adds to an optimizer step.

    python benchmarks/overhead.py --json FILE --plot FILE
    python benchmarks/overhead.py --networks transformer --rules EWC SI --pairs 50 --compile
    python benchmarks/overhead.py --networks transformer-large-batch --device cuda --precision bf16-mixed
    python benchmarks/overhead.py --quick

For each rule, one fit in which it takes part in every second step only, after it has consolidated a task;
each such step is compared with the mean of the plain ones before and after it, so that a machine whose speed
varies does little harm. Printed are medians of the ratios, and in brackets their quartiles. On a GPU the time
is that of events in its stream.

With ``--compile`` the rules are compiled by ``CompileRules``; with ``--compile-each`` each of their
operations is compiled by ``torch.compile`` on its own, to see what one pass over memory for all is worth.

The floor is what the rule cannot do without: the bytes that it has to read and write, each once, over the
bandwidth with which this machine copies memory. What is above it is arithmetic (random numbers above all),
calls, and bytes that are moved more than once.

Two baselines are the penalty of EWC as it is often written, summed over parameters and added to the loss of
the task, for one anchor and for ten.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from networks import CASES, Case, Classifier
from operations import each_operation_compiled
from timing import Moment, bytes_of, quiet_trainer
from torch import Tensor
from torch.utils.data import DataLoader

from cl_callbacks import (
    BGD,
    EWC,
    L2SP,
    MAS,
    MESU,
    UPGD,
    BennaFusi,
    Cascade,
    CompileRules,
    ContinualBackprop,
    DarkExperienceReplay,
    Distillation,
    DriftBoundaries,
    EpochBoundaries,
    ExperienceReplay,
    KFACLaplace,
    L2Init,
    MetaplasticGate,
    ReDo,
    RWalk,
    SelfNormalizedResets,
    ShrinkAndPerturb,
    StreamingConsolidation,
    SynapticCallback,
    SynapticIntelligence,
    WeightMerging,
)
from cl_callbacks.training.noisy_training import NoisyTraining


@dataclass(frozen=True)
class Entry:
    """Callbacks, and the words (of four bytes for each parameter) that they have to read and write in a step.

    A gradient that is read is g, a weight w; a copy of either is written before the step and read after it.
    """

    make: Callable[[], list[Callback]]
    words: int


SAMPLED: dict[str, Any] = {"estimator": "sampled", "samples": 16}
RULES = {
    # g, w, importance, anchor, g
    "EWC": Entry(lambda: [EWC(1.0, **SAMPLED)], 5),
    "MAS": Entry(lambda: [MAS(1.0, samples=16)], 5),
    # Copies of g and w besides; then w, copies, path twice
    "SI": Entry(lambda: [SynapticIntelligence(1.0)], 12),
    # … Fisher twice; the window is closed in every tenth step
    "RWalk": Entry(lambda: [RWalk(1.0)], 15),
    # g, w, importance, anchor, g, copy of g; copy, w, importance and anchor twice
    "StreamingConsolidation, fisher": Entry(lambda: [StreamingConsolidation(1.0, measure="fisher")], 12),
    # … and the copy of w
    "StreamingConsolidation, path": Entry(lambda: [StreamingConsolidation(1.0)], 14),
    # w and beakers of eight bytes, twice
    "BennaFusi, 2 beakers": Entry(lambda: [BennaFusi(2)], 6),
    "BennaFusi, 4 beakers": Entry(lambda: [BennaFusi(4)], 14),
    "BennaFusi, 4 beakers in float32": Entry(lambda: [BennaFusi(4, state_dtype="float32")], 8),
    # w, copy; copy, w, w
    "MetaplasticGate": Entry(lambda: [MetaplasticGate()], 5),
    # w and its copy, noise, std, w drawn; g, noise, their product, g copied, means, w; all of these but the
    # noise again, std twice
    "BGD": Entry(lambda: [BGD()], 17),
    "MESU": Entry(lambda: [MESU(1e5)], 17),
    # w, copy; copy, w and level twice
    "Cascade": Entry(lambda: [Cascade()], 7),
    "EWC and MetaplasticGate": Entry(lambda: [EWC(1.0, **SAMPLED), MetaplasticGate()], 9),
    "SI and EWC": Entry(lambda: [SynapticIntelligence(1.0), EWC(1.0, **SAMPLED)], 14),
    "DriftBoundaries": Entry(lambda: [DriftBoundaries()], 0),
    "KFACLaplace": Entry(lambda: [KFACLaplace(1.0, **SAMPLED)], 0),  # matrix products
    # Further forwards and backwards
    "ExperienceReplay": Entry(lambda: [ExperienceReplay(500)], 0),
    "ExperienceReplay, joined": Entry(lambda: [ExperienceReplay(500, joined=True)], 0),
    "DarkExperienceReplay": Entry(lambda: [DarkExperienceReplay(500)], 0),
    "Distillation": Entry(lambda: [Distillation()], 0),
    # w, old, total; the same and w again after every step
    "WeightMerging, each step": Entry(lambda: [WeightMerging(0.01, every_n_steps=1)], 4),
    "L2SP": Entry(lambda: [L2SP()], 5),
    "L2Init": Entry(lambda: [L2Init()], 5),
    # noise drawn; w, noise, w
    "ShrinkAndPerturb, each step": Entry(lambda: [ShrinkAndPerturb(0.999, every_n_steps=1)], 4),
    # w, g and g with pulls copied; noise drawn; g, w, U twice; U, noise, g, copy of w, w
    "UPGD": Entry(lambda: [UPGD()], 16),
    # Means over activations, and for the first one weights
    "ContinualBackprop": Entry(lambda: [ContinualBackprop()], 0),
    "ReDo": Entry(lambda: [ReDo()], 0),
    "SelfNormalizedResets": Entry(lambda: [SelfNormalizedResets()], 0),
}
AUTOGRAD = {"autograd penalty, 1 anchor": 1, "autograd penalty, 10 anchors": 10}


class Penalised(Classifier):
    """With a quadratic penalty for each anchor in the loss."""

    def __init__(self, plain: Classifier, anchors: int) -> None:
        super().__init__(plain.net, plain.lr)
        self.active = True
        self.memories = [
            [(p, torch.rand_like(p), p.detach().clone()) for p in self.net.parameters()]
            for _ in range(anchors)
        ]

    def on_fit_start(self) -> None:
        self.memories = [
            [(p, importance.to(p.device), anchor.to(p.device)) for p, importance, anchor in memory]
            for memory in self.memories
        ]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        for memory in self.memories if self.active else ():
            for p, importance, anchor in memory:
                loss = loss + 0.5e-3 * (importance * (p - anchor).square()).sum()
        return loss


class Alternating(Callback):
    """Takes callbacks, or a penalty, out of every second step, and notes the seconds of each step."""

    def __init__(self, callbacks: list[Callback]) -> None:
        self.callbacks, self.active = callbacks, True
        self.steps: dict[bool, list[tuple[Moment, Moment]]] = {True: [], False: []}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last = Moment(pl_module.device)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.steps[self.active].append((self.last, Moment(pl_module.device)))
        self.active = trainer.is_last_batch or not self.active
        others = [c for c in trainer.callbacks if c not in self.callbacks]  # type: ignore[attr-defined]
        trainer.callbacks = [*self.callbacks, *others] if self.active else others  # type: ignore[attr-defined]
        if isinstance(pl_module, Penalised):
            pl_module.active = self.active
        self._listen(trainer)
        for rule in self.callbacks:
            if isinstance(rule, ExperienceReplay) and rule._shadow is not None:  # samples are joined
                (rule._shadow.attach if self.active else rule._shadow.detach)()
        for rule in self.callbacks:
            if isinstance(rule, BGD | MESU) and rule._training is not None:  # which draw weights
                if self.active:
                    rule._training = NoisyTraining(trainer, pl_module, rule.weight_noise, rule.draws)
                else:
                    rule._training.detach()
        self.last = Moment(pl_module.device)

    def _listen(self, trainer: Trainer) -> None:
        """Steps are heard whoever is among the callbacks, so the listener has to be deaf to plain ones."""
        steps = [rule._step for rule in self.callbacks if isinstance(rule, SynapticCallback)]
        if steps and steps[0] is not None:
            if self.active:
                steps[0].attach(trainer.optimizers)
            else:
                steps[0]._hooks.detach()

    def seconds(self, active: bool) -> list[float]:
        return [end.seconds_since(start) for start, end in self.steps[active]]

    def ratios(self) -> list[float]:
        """Of each step to the plain ones around it, but for the first two."""
        plain = self.seconds(False)
        pairs = zip(self.seconds(True)[1:], plain, plain[1:], strict=False)
        return [with_it / statistics.mean(around) for with_it, *around in pairs][1:]


@dataclass
class Found:
    ratio: float
    quartiles: tuple[float, float]
    floor: float
    bytes_per_parameter: float
    peak_bytes_per_parameter: float | None
    plain_ms: float


@dataclass(frozen=True)
class How:
    """How steps are measured: as in the arguments of the command line."""

    device: str = "cpu"
    precision: str = "32-true"
    pairs: int = 20
    compiled: Literal["not", "rules", "each operation"] = "not"


def measure(case: Case, name: str, how: How) -> Found:
    if how.compiled == "each operation":
        with each_operation_compiled():
            return measure(case, name, replace(how, compiled="rules"))
    torch.manual_seed(0)
    model = Classifier(case.make())
    parameters = sum(p.numel() for p in model.parameters())
    callbacks: list[Callback] = []
    words, state = 0, 0.0
    few = case.loader(3)

    def fit(data: DataLoader, *others: Callback) -> None:
        quiet_trainer(*others, accelerator=how.device, precision=how.precision).fit(model, data)

    with Peak(how.device) as plain:
        fit(few)
    if name in AUTOGRAD:
        model, state = Penalised(model, AUTOGRAD[name]), 8.0 * AUTOGRAD[name]
    else:
        callbacks, words = RULES[name].make(), RULES[name].words
        if how.compiled != "not":
            callbacks.append(CompileRules())
        rules = [callback for callback in callbacks if isinstance(callback, SynapticCallback)]
        if rules:
            fit(few, *callbacks, EpochBoundaries(1))  # the first task
        state = sum(bytes_of(rule.state_dict()) for rule in rules) / parameters
    with Peak(how.device) as peak:
        fit(few, *callbacks)
    bandwidth, alternating = copy_bandwidth(how.device), Alternating(callbacks)
    fit(case.loader(2 * how.pairs + 5), *callbacks, alternating)
    ratios, plain_seconds = alternating.ratios(), statistics.median(alternating.seconds(False))
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Found(
        middle,
        (low, high),
        1 + 4 * words * parameters / bandwidth / plain_seconds,
        state,
        None if plain.bytes is None or peak.bytes is None else (peak.bytes - plain.bytes) / parameters,
        1e3 * plain_seconds,
    )


class Peak:
    """The most memory that was in use at a time within."""

    bytes: float | None = None
    """None where nobody says."""

    def __init__(self, device: str) -> None:
        self.cuda = device != "cpu"
        self.reset, self.status = Path("/proc/self/clear_refs"), Path("/proc/self/status")

    def __enter__(self) -> Peak:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        elif self.reset.exists():
            self.reset.write_text("5")
        return self

    def __exit__(self, *exception: object) -> None:
        if self.cuda:
            self.bytes = torch.cuda.max_memory_allocated()
        elif self.reset.exists():
            line = next(line for line in self.status.read_text().splitlines() if line.startswith("VmHWM"))
            self.bytes = 1024 * float(line.split()[1])


def copy_bandwidth(device: str, elements: int = 2**25) -> float:
    """Bytes read and written in a second."""
    a = torch.ones(elements, device=device)
    b = torch.ones_like(a)

    def seconds() -> float:
        start = Moment(a.device)
        b.copy_(a)
        return Moment(a.device).seconds_since(start)

    return 2 * a.nbytes / statistics.median(seconds() for _ in range(20))


def rows(names: list[str], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    how = How(args.device, args.precision, args.pairs, args.compiled)
    for network in args.networks:
        case = CASES[network]
        parameters = sum(p.numel() for p in case.make().parameters())
        print(f"\n{case.name}, {parameters / 1e6:.1f} M parameters, batch {case.shape}")
        print(f"{'':34} {'step':>6} {'':15} {'floor':>6} {'× floor':>8} {'state':>6} {'peak':>6}")
        for name in names:
            found = measure(case, name, how)
            extra, least = found.ratio - 1, found.floor - 1
            times = f"{extra / least:8.1f}" if least else f"{'–':>8}"
            floor = f"{found.floor:6.3f}" if least else f"{'–':>6}"
            peak = "–" if found.peak_bytes_per_parameter is None else f"{found.peak_bytes_per_parameter:.0f}"
            spread = f"({found.quartiles[0]:.3f}–{found.quartiles[1]:.3f})"
            print(
                f"{name:34} {found.ratio:6.3f} {spread:15} {floor} {times} "
                f"{found.bytes_per_parameter:6.1f} {peak:>6}",
                flush=True,
            )
            yield {"network": case.name, "batch": case.shape, "rule": name, **asdict(found)}


def plot(found: list[dict[str, Any]], file: Path) -> None:
    """Bars of what each rule adds, with a mark at its floor, for each network."""
    import matplotlib.pyplot as plt

    networks = list(dict.fromkeys(row["network"] for row in found))
    figure, axes = plt.subplots(1, len(networks), figsize=(5 * len(networks), 5), sharey=True, squeeze=False)
    for axis, network in zip(axes[0], networks, strict=True):
        mine = [row for row in found if row["network"] == network and row["floor"] > 1][::-1]
        places = range(len(mine))
        axis.barh(places, [100 * (row["ratio"] - 1) for row in mine], color="#7aa6c2")
        axis.plot([100 * (row["floor"] - 1) for row in mine], places, "k|", markersize=12, label="floor")
        axis.set_yticks(places, [row["rule"] for row in mine])
        axis.set(title=f"{network}\nbatch {mine[0]['batch']}", xlabel="% of a plain step")
        axis.legend(frameon=False, loc="lower right")
    figure.savefig(file, dpi=150, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=CASES, default=["mlp", "cnn", "transformer"])
    parser.add_argument("--rules", nargs="+", choices=[*RULES, *AUTOGRAD], default=[*RULES, *AUTOGRAD])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", default="32-true", help="of the Trainer")
    compiled = parser.add_mutually_exclusive_group()
    compiled.add_argument(
        "--compile", dest="compiled", action="store_const", const="rules", default="not", help="CompileRules"
    )
    compiled.add_argument(
        "--compile-each",
        dest="compiled",
        action="store_const",
        const="each operation",
        help="each operation of the rules by torch.compile, instead",
    )
    parser.add_argument("--pairs", type=int, default=20, help="of steps with a rule and without")
    parser.add_argument("--quick", action="store_true", help="a minute: four rules on two small networks")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--plot", type=Path, help="write a picture to this file")
    args = parser.parse_args()
    if args.quick:
        args.networks, args.rules = ["mlp", "small-transformer"], ["EWC", "SI", "BennaFusi, 4 beakers"]
        args.rules.append("MetaplasticGate")
    bandwidth = copy_bandwidth(args.device)
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {device}, copies {bandwidth / 1e9:.1f} GB/s; a plain step is 1")
    found = list(rows(args.rules, args))
    if args.json:
        machine = {"torch": torch.__version__, "device": device, "bandwidth": bandwidth}
        args.json.write_text(json.dumps({"machine": machine, "rows": found}, indent=1))
    if args.plot:
        plot(found, args.plot)


if __name__ == "__main__":
    main()
