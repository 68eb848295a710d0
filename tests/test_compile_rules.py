"""Rules whose arithmetic is compiled, in a Trainer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cl_callbacks import CompileRules
from cl_callbacks.functional import fused, kernels
from tests.functional.test_fused import needs_compiler
from tests.rules import make
from tests.training import Net, fit_tasks, plain_net, weights


@needs_compiler
@pytest.mark.parametrize(
    ("rule", "first"), [("ewc", True), ("ewc", False), ("si", False), ("benna-fusi", False), ("mesu", False)]
)
def test_training_is_the_same_but_for_rounding(
    rule: str, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "SMALLEST", 1)
    monkeypatch.setattr("cl_callbacks.compile_rules.SMALLEST", 1)
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model, memory = Net(plain_net()).double(), make(rule)
        callbacks = [memory, CompileRules()][:: -1 if first else 1] if compiled else [memory]
        monkeypatch.setattr(kernels, "_compiled", {})
        monkeypatch.setattr(kernels, "_routes", {})
        fit_tasks(model, *callbacks, tasks=2, precision="64-true")
        found.append(weights(model))
        assert memory._step is None
        assert not fused.is_compiling()
        assert bool(kernels._compiled) == compiled
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_the_error_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any, **options: Any) -> Any:
        raise RuntimeError("no compiler\nand many lines more")

    monkeypatch.setattr(torch, "compile", failing)
    monkeypatch.setattr(kernels, "_compiled", {})
    monkeypatch.setattr(kernels, "_routes", {})
    with pytest.raises(MisconfigurationException, match=r"RuntimeError: no compiler\)\. .* install it"):
        fit_tasks(Net(plain_net()), make("ewc"), CompileRules(), tasks=1)
