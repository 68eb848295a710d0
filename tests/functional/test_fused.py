"""Compiled operations against the same in foreach calls."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_callbacks.functional import fused
from cl_callbacks.functional.anchoring import add_quadratic_pull_
from cl_callbacks.functional.averaging import keep_finite_, keep_undo_
from cl_callbacks.functional.beakers import capacities, conductances, flow_
from cl_callbacks.functional.fused import compiling, fusable
from cl_callbacks.functional.metaplasticity import resist_shrinking_
from cl_callbacks.functional.path_integral import add_path_, path_importance
from cl_callbacks.functional.uncertainty import bgd_, mesu_

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="torch.compile needs a C++ compiler"
)

# The last is too small to be compiled; the second has another length for the kernel of the first.
SIZES = [(40, 500), (fused.SMALLEST + 3,), (5,)]


def tensors(seed: int, dtype: torch.dtype = torch.float32, lost: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = [torch.randn(size, generator=generator).to(dtype) for size in SIZES]
    for t in found if lost else []:
        t.view(-1)[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    return found


def positive(seed: int) -> list[Tensor]:
    return [t.abs() + 0.1 for t in tensors(seed)]


FLOW = capacities(3), conductances(3, 0.3)
OPERATIONS: dict[str, tuple[Callable[..., Any], Callable[[], list[Any]], dict[str, Any]]] = {
    "pull": (
        add_quadratic_pull_,
        lambda: [tensors(0), tensors(1), positive(2), tensors(3), 3.0],
        {},
    ),
    "pull of half precision": (
        add_quadratic_pull_,
        lambda: [tensors(0, torch.bfloat16), tensors(1, torch.bfloat16), positive(2), tensors(3), 3.0],
        {},
    ),
    "path": (add_path_, lambda: [tensors(0), tensors(1), tensors(2)], {"decay": 0.9}),
    "path importance": (path_importance, lambda: [tensors(0), tensors(1), tensors(2), 1e-3], {}),
    "snapshot": (keep_finite_, lambda: [tensors(0), tensors(1, lost=True)], {}),
    "undo": (keep_undo_, lambda: [tensors(0), tensors(1, lost=True)], {}),
    "flow": (
        flow_,
        lambda: [[tensors(0, lost=True), tensors(1, torch.float64), tensors(2, torch.float64)], *FLOW],
        {},
    ),
    "gated flow": (
        flow_,
        lambda: [[tensors(0), tensors(1), tensors(2)], *FLOW, positive(3)],
        {"hold_first": True},
    ),
    "gate": (resist_shrinking_, lambda: [tensors(0), tensors(1)], {"steepness": 1.35}),
    "bgd": (
        bgd_,
        lambda: [tensors(0), positive(1), tensors(2), tensors(3)],
        {"trust_region": 0.2},
    ),
    "mesu": (
        mesu_,
        lambda: [tensors(0), positive(1), tensors(2), tensors(3)],
        {"memory": 10.0, "prior_std": 0.5, "trust_region": 0.2},
    ),
}


def results(call: Callable[..., Any], arguments: list[Any], options: dict[str, Any]) -> list[Tensor]:
    found = call(*arguments, **options)
    return [t for value in [*arguments, found] for some in fused._lists(value) for t in some]


@needs_compiler
@pytest.mark.parametrize("name", OPERATIONS)
def test_compiled_is_the_same_but_for_rounding(name: str) -> None:
    operation, build, options = OPERATIONS[name]
    expected = results(operation, build(), options)
    kernels = len(fused._compiled)
    with compiling():
        found = results(operation, build(), options)
    assert len(fused._compiled) > kernels  # it was, once for two lengths
    torch.testing.assert_close(found, expected, equal_nan=True)


@needs_compiler
def test_each_set_of_constants_has_its_own_kernel() -> None:
    """More of them than torch.compile makes for one function."""
    with compiling():
        for k in range(torch._dynamo.config.recompile_limit + 2):
            g, w, one, zero = (torch.full((fused.SMALLEST,), float(v)) for v in (0, 2, 1, 0))
            add_quadratic_pull_([g], [w], [one], [zero], float(k))
            assert (g == 2 * k).all()


class Seen(Exception):
    """A kernel would have been asked for."""


def kernel(*args: Any) -> Any:
    raise Seen


@fusable
def double_(weights: list[Tensor]) -> None:
    torch._foreach_mul_(weights, 2.0)


@pytest.mark.parametrize(
    ("weight", "compiled"),
    [
        (torch.ones(fused.SMALLEST), True),
        (torch.ones(fused.SMALLEST - 1), False),
        (torch.ones(fused.SMALLEST, 2).T, False),
    ],
)
def test_what_is_small_or_not_contiguous_is_not_compiled(
    weight: Tensor, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "_kernel", kernel)
    weight = weight.clone(memory_format=torch.preserve_format)
    with compiling():
        if compiled:
            with pytest.raises(Seen):
                double_([weight])
        else:
            double_([weight])
            assert (weight == 2).all()
    double_([weight])  # nor is anything that nobody has asked for
    assert (weight == (2 if compiled else 4)).all()


def test_a_gpu_gets_all_tensors_of_a_kind_in_one_call() -> None:
    def tensor(device: str, dtype: torch.dtype = torch.float32) -> Any:
        return SimpleNamespace(is_cuda=device != "cpu", device=device, dtype=dtype)

    several: list[Any] = [
        tensor("cuda:0"),
        tensor("cuda:1"),
        tensor("cuda:0", torch.bfloat16),
        tensor("cuda:0"),
    ]
    assert fused._calls(several, [0, 1, 2, 3]) == [[0, 3], [1], [2]]
    assert fused._calls([tensor("cpu"), tensor("cpu")], [0, 1]) == [[0], [1]]


@needs_compiler
def test_all_in_one_call_for_more_lists_of_lengths_than_torch_compile_makes_for_one_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fused, "_calls", lambda tensors, which: [which])
    monkeypatch.setattr(fused, "SMALLEST", 2)
    with compiling():
        for extra in range(torch._dynamo.config.recompile_limit + 2):
            weights = [torch.ones(3), torch.ones(4 + extra)]
            double_(weights)
            assert all((w == 2).all() for w in weights)


def test_no_more_kernels_are_kept_than(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "MOST", 3)
    monkeypatch.setattr(fused, "_compiled", {})
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    with compiling():
        for k in range(8):
            add_quadratic_pull_(*(tensors(s)[:1] for s in range(4)), float(k))
            assert len(fused._compiled) <= 3


def test_compiling_ends_also_with_an_error() -> None:
    with pytest.raises(Seen), compiling():
        assert fused.is_compiling()
        raise Seen
    assert not fused.is_compiling()
