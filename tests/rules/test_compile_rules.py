"""Rules whose arithmetic is compiled, in a Trainer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from cl_callbacks import CompileRules
from cl_callbacks.compiled import fused, kernels
from cl_callbacks.synapses.offload import Offload
from tests.compiled.test_fused import needs_compiler
from tests.every_rule import RULES, make
from tests.small import Net, fit_tasks, plain_net, weights


def trained(monkeypatch: pytest.MonkeyPatch, rules: list[Any], *others: CompileRules) -> tuple[Tensor, int]:
    """Weights after two tasks, and how many kernels that took, of tensors of any size."""
    monkeypatch.setattr(kernels, "SMALLEST", 1)
    monkeypatch.setattr("cl_callbacks.rules.compile_rules.SMALLEST", 1)
    monkeypatch.setattr(kernels, "_compiled", {})
    monkeypatch.setattr(kernels, "_routes", {})
    torch.manual_seed(0)
    model = Net(plain_net()).double()
    fit_tasks(model, *others, *rules, tasks=2, precision="64-true")
    assert all(rule._step is None for rule in rules)
    assert not fused.is_compiling()
    return weights(model), len(kernels._compiled)


QUICK = {"si", "mesu"}  # one whose gradients are rewritten, and one whose weights are drawn


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(rule, marks=[] if rule in QUICK else [pytest.mark.slow])
        for rule in RULES
        if not rule.startswith("kfac")
    ],
)
def test_training_is_the_same_but_for_rounding(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, none = trained(monkeypatch, [make(rule)])
    compiled, some = trained(monkeypatch, [make(rule)], CompileRules())
    assert not none
    assert some
    torch.testing.assert_close(compiled, plain, rtol=1e-9, atol=1e-12)


@needs_compiler
def test_several_rules_whose_state_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Offload, "_everywhere", True)

    def rules() -> list[Any]:
        return [
            make("si", name="a", parameters="weight"),
            make("ewc", state_device="cpu"),
            make("metaplastic"),
        ]

    plain, _ = trained(monkeypatch, rules())
    compiled, _ = trained(monkeypatch, rules(), CompileRules())
    torch.testing.assert_close(compiled, plain, rtol=1e-9, atol=1e-12)


@needs_compiler
def test_all_that_is_done_before_a_step_is_one_kernel_and_all_after_it_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained(monkeypatch, [make("si"), make("rwalk", name="b")], CompileRules())
    found = {tuple(call[0].__name__ for call, _ in kind[0]) for kind, _ in kernels._compiled}
    assert found == {
        ("copy_finite_",),  # the first task, in which the snapshots have nothing in common
        ("copy_each_",),
        ("copy_finite_", "copy_each_", "add_quadratic_pull_", "add_quadratic_pull_"),
        ("copy_finite_", "copy_each_", "add_quadratic_pull_"),  # measured steps look between two pulls
        ("add_quadratic_pull_",),
        ("turn_into_update_", "add_path_", "average_square_", "add_path_"),
        ("add_score_",),  # every third step
    }


@needs_compiler
def test_weights_are_drawn_by_a_kernel_too(monkeypatch: pytest.MonkeyPatch) -> None:
    trained(monkeypatch, [make("mesu")], CompileRules())
    found = {tuple(call[0].__name__ for call, _ in kind[0]) for kind, _ in kernels._compiled}
    assert ("draw_",) in found
    assert ("copy_each_", "mesu_") in found


def test_the_error_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any, **options: Any) -> Any:
        raise RuntimeError("no compiler\nand many lines more")

    monkeypatch.setattr(torch, "compile", failing)
    monkeypatch.setattr(kernels, "_compiled", {})
    monkeypatch.setattr(kernels, "_routes", {})
    with pytest.raises(MisconfigurationException, match=r"RuntimeError: no compiler\)\. .* install it"):
        fit_tasks(Net(plain_net()), make("ewc"), CompileRules(), tasks=1)
