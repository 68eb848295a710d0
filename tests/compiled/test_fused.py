"""Compiled operations against the same in foreach calls."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_callbacks.compiled import fused, kernels
from cl_callbacks.compiled.fused import compiling, fusable
from cl_callbacks.functional.anchoring import add_quadratic_pull_, relax_to_anchor_
from cl_callbacks.functional.averaging import average_, average_square_
from cl_callbacks.functional.beakers import capacities, conductances, flow_
from cl_callbacks.functional.metaplasticity import resist_shrinking_
from cl_callbacks.functional.path_integral import add_path_, add_path_pull_, add_score_
from cl_callbacks.functional.uncertainty import bgd_, draw_, keep_noise_gradients_, mesu_
from cl_callbacks.tensors.finite import copy_each_, copy_finite_, turn_into_update_

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="torch.compile needs a C++ compiler"
)

# The last is too small to be compiled; the second has another length for the kernel of the first.
SIZES = [(40, 500), (kernels.SMALLEST + 3,), (5,)]


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
    "path's pull": (
        add_path_pull_,
        lambda: [tensors(0), tensors(1), tensors(2), tensors(3), 2.0, 1e-3, 5.0],
        {},
    ),
    "score": (
        add_score_,
        lambda: [tensors(0), tensors(1), positive(2), tensors(3), tensors(4, lost=True), 1e-3],
        {},
    ),
    "proximal step": (relax_to_anchor_, lambda: [tensors(0), positive(1), tensors(2), [0.1, 0.2, 0.3]], {}),
    "average": (average_, lambda: [tensors(0), tensors(1, lost=True), [0.1, 0.2, 0.3]], {}),
    "average of squares": (average_square_, lambda: [positive(0), tensors(1), [0.1, 0.2, 0.3]], {}),
    "copy": (copy_each_, lambda: [tensors(0), tensors(1, lost=True)], {}),
    "snapshot": (copy_finite_, lambda: [tensors(0), tensors(1, lost=True)], {}),
    "update": (turn_into_update_, lambda: [tensors(0), tensors(1, lost=True)], {}),
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
        {"trust_region": 0.2, "scale": 3.0},
    ),
    "draw": (draw_, lambda: [tensors(0), tensors(1), tensors(2), positive(3)], {}),
    "noise": (
        keep_noise_gradients_,
        lambda: [tensors(0), tensors(1), tensors(2, lost=True), tensors(3)],
        {},
    ),
    "mesu": (
        mesu_,
        lambda: [tensors(0), positive(1), tensors(2), tensors(3)],
        {"memory_steps": 10.0, "prior_std": 0.5, "trust_region": 0.2, "scale": torch.tensor(3.0)},
    ),
}


def results(call: Callable[..., Any], arguments: list[Any], options: dict[str, Any]) -> list[Tensor]:
    call(*arguments, **options)
    found: list[Any] = []
    kernels._taken_out(arguments, found)
    return [t for some in found for t in some]


def kernels_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Lengths of the tensors for which kernels are asked for from now on, which then run as they are."""
    asked: list[tuple[int, ...]] = []

    def kernel(strands: Any) -> Any:
        asked.append(tuple(strand.length for strand in strands))
        return kernels._program(strands[0].steps)

    monkeypatch.setattr(kernels, "_kernel", kernel)
    monkeypatch.setattr(kernels, "_routes", {})
    return asked


@needs_compiler
@pytest.mark.parametrize("name", OPERATIONS)
def test_compiled_is_the_same_but_for_rounding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_compiled", {})
    monkeypatch.setattr(kernels, "_routes", {})
    operation, build, options = OPERATIONS[name]
    expected = results(operation, build(), options)
    with compiling():
        found = results(operation, build(), options)
    assert len(kernels._compiled) == 1
    torch.testing.assert_close(found, expected, equal_nan=True)


@needs_compiler
def test_numbers_may_change_without_another_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_compiled", {})
    for share in (0.25, 0.5, torch.tensor(0.125, dtype=torch.float64)):
        averages, values = (
            [torch.zeros(kernels.SMALLEST), torch.zeros(3)],
            [torch.ones(kernels.SMALLEST), torch.ones(3)],
        )
        with compiling():
            average_(averages, values, [share, share])
        assert all((t == share).all() for t in averages)
    assert len(kernels._compiled) == 1


@needs_compiler
def test_each_set_of_constants_has_its_own_kernel() -> None:
    """More of them than torch.compile makes for one function."""
    with torch._dynamo.config.patch(recompile_limit=2), compiling():
        for k in range(4):
            g, w, one, zero = (torch.full((kernels.SMALLEST,), float(v)) for v in (0, 2, 1, 0))
            add_quadratic_pull_([g], [w], [one], [zero], float(k))
            assert (g == 2 * k).all()


@fusable
def double_(weights: list[Tensor]) -> None:
    torch._foreach_mul_(weights, 2.0)


@fusable
def add_(weights: list[Tensor], others: list[Tensor]) -> None:
    torch._foreach_add_(weights, others)


@pytest.mark.parametrize(
    ("weight", "compiled"),
    [
        (torch.ones(kernels.SMALLEST), True),
        (torch.ones(kernels.SMALLEST - 1), False),
        (torch.ones(kernels.SMALLEST, 2).T, True),
        (torch.ones(kernels.SMALLEST // 4, 2, 1, 2).to(memory_format=torch.channels_last), True),
        (torch.ones(()), False),
    ],
)
def test_what_is_small_is_not_compiled(
    weight: Tensor, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = kernels_of(monkeypatch)
    weight = weight.clone(memory_format=torch.preserve_format)
    with compiling():
        double_([weight])
    assert bool(asked) == compiled
    double_([weight])  # nor is anything that nobody has asked for
    assert len(asked) == compiled
    assert (weight == 4).all()


def test_what_lies_in_memory_in_one_order_is_compiled_as_one_dimension(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = kernels_of(monkeypatch)
    shape = (kernels.SMALLEST // 16, 4, 2, 2)
    like = [torch.empty(shape), torch.empty(shape).to(memory_format=torch.channels_last)]
    for weight, other in product(like, like):
        values = torch.randn(shape)
        a, b = torch.empty_like(weight).copy_(values), torch.empty_like(other).copy_(2 * values)
        with compiling():
            add_([a], [b])
        assert torch.equal(a, 3 * values)
        assert bool(asked) == (weight is other)
        asked.clear()
    whole = torch.ones(kernels.SMALLEST, 2)
    with compiling():
        double_([whole[:, 0]])  # with gaps
    assert whole.mean(0).tolist() == [2, 1]
    assert not asked


def test_operations_on_the_same_tensors_are_one_kernel_in_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = kernels_of(monkeypatch)
    a, b, c, d = (torch.full((kernels.SMALLEST + k % 2,), float(k)) for k in range(1, 5))
    small = torch.ones(1)
    with compiling():
        add_([a, b, small], [c, d, small])  # a: 1 + 3, b: 2 + 4, small: 2
        double_([c, a, small])  # c: 6, a: 8
        add_([d], [b])  # d: 10
        assert a.numel()  # asks for nothing that waits
        assert not asked
    assert asked == [(kernels.SMALLEST,), (kernels.SMALLEST + 1,)]
    assert [t[0].item() for t in (a, b, c, d, small)] == [8, 6, 6, 10, 4]


def test_tensors_that_are_treated_alike_are_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = kernels_of(monkeypatch)
    monkeypatch.setattr(kernels, "TOGETHER", 3)
    weights = [torch.ones(kernels.SMALLEST + k % 2) for k in range(5)]
    wide = [torch.ones(kernels.SMALLEST, dtype=torch.float64)]
    for _ in range(2):
        with compiling():
            double_(weights + wide)
    least = kernels.SMALLEST
    assert sorted(asked) == [(least,), (least, least, least), (least + 1, least + 1)]  # once for both
    assert all((t == 4).all() for t in weights + wide)


def test_nothing_reads_what_waits_to_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = kernels_of(monkeypatch)
    weight = torch.ones(kernels.SMALLEST)
    with compiling():
        double_([weight])
        rows, flat = weight[:2], weight.view(-1)  # not yet
        assert not asked
        assert rows.sum() == 4
        double_([weight])
        assert (flat[:3] + 0).tolist() == [4, 4, 4]
        double_([weight])
        weight += 1
        double_([weight])
    assert (weight == 18).all()


def test_parts_of_a_tensor_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = kernels_of(monkeypatch)
    weight, other = torch.ones(3, kernels.SMALLEST), torch.ones(2, kernels.SMALLEST)
    with compiling():
        double_([weight])
        add_([weight[1:]], [other])
        double_([weight])
    assert weight[:, 0].tolist() == [4, 6, 6]
    assert not asked


def test_parts_of_a_tensor_keep_their_order_also_after_tensors_that_were_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernels_of(monkeypatch)
    least = kernels.SMALLEST
    for apart in (True, False):
        weight, other = torch.ones(3 * least), torch.ones(least)
        part = torch.ones(least) if apart else weight[least : 2 * least]
        with compiling():
            double_([weight])
            add_([part], [other])
            double_([weight])
        assert weight[least] == (4 if apart else 6)


def test_tensors_with_gaps_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels_of(monkeypatch)
    weight, other = torch.ones(2, 2 * kernels.SMALLEST), torch.ones(2, kernels.SMALLEST)
    left, second = weight[:, : kernels.SMALLEST], weight[1]
    with compiling():
        double_([second])
        add_([left], [other])
    assert weight[:, 0].tolist() == [2, 3]


def test_a_tensor_and_its_transpose_are_not_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels_of(monkeypatch)
    total, weight = torch.zeros(200, 200), torch.randn(200, 200)
    turned = weight.T
    with compiling():
        add_([total], [weight])
        add_([total], [turned])
    assert torch.equal(total, weight + turned)


def test_lists_may_change_after_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels_of(monkeypatch)
    weights, shares = [torch.zeros(kernels.SMALLEST)], [0.5]
    weight, other = weights[0], torch.ones(kernels.SMALLEST)
    with compiling():
        average_(weights, [other], shares)
        weights[0], shares[0] = other, 0.0
    assert (weight == 0.5).all()
    assert (other == 1).all()


def test_a_tensor_is_no_constant() -> None:
    ones = [torch.ones(kernels.SMALLEST)]
    with compiling(), pytest.raises(TypeError, match="numbers"):
        add_path_(ones, ones, ones, torch.tensor(0.5))  # type: ignore[arg-type]


def test_other_types_find_their_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than torch.compile makes for one function."""
    asked = kernels_of(monkeypatch)
    kinds = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
    for kind in kinds:
        for other in kinds:
            a, b = (torch.ones(kernels.SMALLEST, dtype=d) for d in (kind, other))
            with compiling():
                add_([a], [b])
            assert (a == 2).all()
    assert len(asked) == 16


def test_threads_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels_of(monkeypatch)
    begun, ended = threading.Event(), threading.Event()
    seen: list[float] = []

    def first() -> None:
        with compiling():
            begun.set()
            ended.wait(10)

    def second() -> None:
        begun.wait(10)
        weight = torch.ones(kernels.SMALLEST)
        double_([weight])
        seen.append(weight[0].item())
        with compiling():
            ended.set()
            threads[0].join(10)

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert seen == [2]
    assert not fused.is_compiling()


def test_an_operation_may_be_made_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    @fusable
    def double_and_add_(weights: list[Tensor], others: list[Tensor]) -> None:
        double_(weights)
        add_(weights, others)

    asked = kernels_of(monkeypatch)
    small, large = torch.ones(2), torch.ones(kernels.SMALLEST)
    with compiling():
        double_and_add_([small, large], [small.clone(), large.clone()])
        assert (large + 0 == 3).all()
    assert (small == 3).all()
    assert len(asked) == 1


@needs_compiler
@pytest.mark.parametrize("size", [3, kernels.SMALLEST])
def test_a_compiled_function_reads_what_has_waited(size: int) -> None:
    @torch.compile
    def plus_one(tensor: Tensor) -> Tensor:
        return tensor + 1

    weight = torch.ones(size)
    with compiling():
        assert (plus_one(weight) == 2).all()  # compiled while nothing waits
        double_([weight])
        assert (plus_one(weight) == 3).all()
        double_([weight])
    assert (weight == 4).all()


@needs_compiler
def test_more_lists_of_lengths_than_torch_compile_makes_for_one_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "SMALLEST", 2)
    with torch._dynamo.config.patch(recompile_limit=2), compiling():
        for extra in range(4):
            weights = [torch.ones(3), torch.ones(4 + extra)]
            double_(weights)
            assert all((w == 2).all() for w in weights)


def test_no_more_kernels_are_kept_than(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "MOST", 3)
    monkeypatch.setattr(kernels, "_compiled", {})
    monkeypatch.setattr(kernels, "_routes", {})
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    for k in range(8):
        with compiling():
            add_quadratic_pull_(*(tensors(s)[:1] for s in range(4)), float(k))
        assert len(kernels._compiled) <= 3 >= len(kernels._routes)


class Seen(Exception):
    """An error within."""


def test_compiling_ends_also_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels_of(monkeypatch)
    weight = torch.ones(kernels.SMALLEST)
    with pytest.raises(Seen), compiling():
        assert fused.is_compiling()
        double_([weight])
        raise Seen
    assert not fused.is_compiling()
    assert (weight == 2).all()


def test_compiling_may_be_nested(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = kernels_of(monkeypatch)
    weight = torch.ones(kernels.SMALLEST)
    with compiling():
        double_([weight])
        with compiling(False):
            assert not fused.is_compiling()
            double_([weight])
        double_([weight])
    assert (weight == 8).all()
    assert asked
