"""``torch.compile`` of the network, and of the rules."""

from __future__ import annotations

import shutil
from typing import Any

import torch
from torch import Tensor

from cl_callbacks import CompileRules, DriftBoundaries, SynapticIntelligence
from gpu_checks.check import Skip, each, needs_cuda
from gpu_checks.place import Place
from gpu_checks.rules import RULES
from gpu_checks.training import fit, large, model, sgd, weights

IN_GRAPHS = ("EWC", "SI", "KFACLaplace", "MESU", "MESU, 2 draws")
COMPILED = ("EWC", "SI", "BennaFusi", "MESU", "RWalk", "BGD")


def apart(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def cuda_graphs(place: Place) -> str:
    """A submodule compiled with mode="reduce-overhead": as without to 1 %, nothing kept is overwritten."""
    needs_cuda(place)
    torch._dynamo.reset()

    def graphed() -> Any:
        module = model()
        module.net = torch.compile(module.net, mode="reduce-overhead")
        return module

    def compare(name: str, make: Any) -> float:
        found = apart(weights(fit(place, make(), module=graphed())), weights(fit(place, make())))
        assert found < 1e-2, f"differs by {found:.1e}"
        return found

    said = each({name: RULES[name] for name in IN_GRAPHS}, compare)
    watching = DriftBoundaries(monitor="feature_shift")  # keeps outputs of the network
    fit(place, SynapticIntelligence(1.0), module=graphed(), boundaries=watching)
    return said


def compile_rules(place: Place) -> str:
    """CompileRules, for layers large enough to be compiled: as without, to a tenth of the effect."""
    if place.device == "pretend":
        raise Skip("there is no compiler for the device")
    if place.device == "cpu" and not any(map(shutil.which, ("g++", "c++", "clang++"))):
        raise Skip("torch.compile needs a C++ compiler")

    def trained(*callbacks: Any) -> Tensor:
        return weights(fit(place, None, *callbacks, module=model(lambda: large(160), sgd(1e-2))))

    without_rule = trained()

    def compare(name: str, make: Any) -> float:
        compiled, without = trained(make(), CompileRules()), trained(make())
        found, effect = apart(compiled, without), apart(without, without_rule)
        assert found < min(1e-3, effect / 10), f"differs by {found:.1e}, and without the rule by {effect:.1e}"
        return found

    return each({name: RULES[name] for name in COMPILED[: 1 if place.quick else None]}, compare)
