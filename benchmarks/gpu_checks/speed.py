"""How long rules take beside a step of training: figures for docs/performance.md, and no assertion."""

from __future__ import annotations

import shutil

import fisher
import overhead
from networks import CASES, Transformer, texts

from gpu_checks.check import Skip
from gpu_checks.place import Place

PAIRS = 20
WORTH = 0.1
"""Of a step, by which one pass over memory for all operations has to beat a compiled kernel for each."""


def speed_of_ewc(place: Place) -> str:
    """EWC beside a step of 32 x 128 tokens: as it is, by CompileRules, with each operation compiled."""
    return speed_of(place, "EWC")


def speed_of_si(place: Place) -> str:
    """SI beside a step of 32 x 128 tokens: as it is, by CompileRules, with each operation compiled."""
    return speed_of(place, "SI")


def speed_of_benna_fusi(place: Place) -> str:
    """BennaFusi beside a step of 32 x 128 tokens: as it is, by CompileRules, with each operation compiled."""
    return speed_of(place, "BennaFusi, 4 beakers")


def speed_of_mesu(place: Place) -> str:
    """MESU beside a step of 32 x 128 tokens: as it is, by CompileRules, with each operation compiled."""
    return speed_of(place, "MESU")


def speed_of(place: Place, rule: str) -> str:
    if place.device == "pretend":
        raise Skip("its steps take as long as those of the CPU")
    if place.quick and rule != "EWC":
        raise Skip("left out by --quick")
    if place.device == "cpu" and not any(map(shutil.which, ("g++", "c++", "clang++"))):
        raise Skip("torch.compile needs a C++ compiler")
    case = CASES["transformer-large-batch" if place.device == "cuda" else "mlp"]
    how = overhead.How(place.device, "bf16-mixed", PAIRS if place.device == "cuda" else 2)
    as_it_is = overhead.measure(case, rule, how)
    tape = overhead.measure(case, rule, overhead.replace(how, compiled="rules"))
    each = overhead.measure(case, rule, overhead.replace(how, compiled="each operation"))
    gain = each.ratio - tape.ratio
    verdict = "at least" if gain >= WORTH else "less than"
    return (
        f"{case.name}, {case.shape}, bf16-mixed: a plain step {as_it_is.plain_ms:.2f} ms, as 1; floor "
        f"{as_it_is.floor:.3f}, as it is {ratio(as_it_is)}, CompileRules {ratio(tape)}, each operation "
        f"compiled {ratio(each)}: one pass for all saves {gain:.3f} of a step, {verdict} {WORTH}"
    )


def ratio(found: overhead.Found) -> str:
    return f"{found.ratio:.3f} ({found.quartiles[0]:.3f}–{found.quartiles[1]:.3f})"


def speed_of_the_fisher(place: Place) -> str:
    """The per-sample Fisher of a transformer of 32 x 128 tokens beside an ordinary forward and backward."""
    if place.device == "pretend":
        raise Skip("its passes take as long as those of the CPU")
    case = fisher.CASES["digits-sampled"]
    if place.device == "cuda":
        case = fisher.Case(lambda: Transformer(768), texts(128), 128, 32)
    found = fisher.measure(case, 3 if place.device == "cuda" else 1, place.device)
    assert found["difference"] < 1e-3, f"differs from a loop over samples by {found['difference']:.1e}"
    return (
        f"{found['fisher']:.2f} ordinary passes ({found['fisher_min']:.2f}–{found['fisher_max']:.2f}), "
        f"{found['first']:.2f} with its checks, a loop over samples {found['loop']:.1f}; "
        f"an ordinary pass {found['ordinary_ms_per_batch']:.1f} ms a batch"
    )
