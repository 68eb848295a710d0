"""How much the rules hold, as docs/memory.md says it, and in which precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cl_callbacks import RWalk, SynapticIntelligence
from tests.every_rule import DISTILLING, MATRICES_ONLY, REHEARSING, RULES, WITHOUT_STATE, make
from tests.memory import PAGE, factors, measured, page, size
from tests.small import CLASSES, FEATURES, Net, fit_tasks, plain_net

# Rules that take half precision, and which of their fields have it.
NARROW = {
    rule: {"importance", "anchor"}
    for rule in ("ewc", "ewc each", "si", "mas", "mas mean", "rwalk", "kfac", "kfac list")
}
NARROW |= {rule: {"importance"} for rule in ("l2sp", "l2sp start", "l2init")}
NARROW |= {rule: {"total"} for rule in ("merging", "merging steps")}


def test_the_page_says_what_is_measured() -> None:
    assert PAGE.read_text() == page(), "run `python -m tests.memory`"


@pytest.mark.parametrize("rule", ["kfac", "kfac list"])
def test_factors_take_what_the_page_says(rule: str) -> None:
    once = sum(4 * (inputs**2 + outputs**2) for inputs, outputs in [(FEATURES + 1, 8), (8 + 1, CLASSES)])
    assert measured(make(rule), tasks=2).factors == once
    assert measured(make(rule), tasks=3).factors == once * (2 if rule == "kfac list" else 1)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in {*REHEARSING, *DISTILLING}])
def test_only_what_is_selected_takes_memory(rule: str) -> None:
    """State, snapshots and noise: for each selected parameter the same, and nothing for the others."""
    memory = make(rule, parameters=r"net\.2\.weight")
    part, whole = measured(memory), measured(make(rule))
    assert (part.state, part.snapshots, part.noise) == (whole.state, whole.snapshots, whole.noise)
    assert {name for named in memory.synapses.state_dict().values() for name in named} <= {"net.2.weight"}
    assert set(factors(memory)) <= {"net.2.weight"}
    assert size(t for ts in memory.synapses.view.fields.values() for t in ts) == 8 * CLASSES * len(
        memory.fields
    ) * (8 if rule == "benna-fusi" else 4)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in {*MATRICES_ONLY, *WITHOUT_STATE}])
@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_state_of_half_precision_where_it_does_not_change_in_every_step(rule: str, dtype: Any) -> None:
    if rule not in NARROW:
        with pytest.raises(ValueError, match=r"would stand still: use 'float32' or wider"):
            make(rule, state_dtype=dtype)
        return
    memory = make(rule, state_dtype=dtype)
    fit_tasks(Net(plain_net()), memory, tasks=3)
    view = memory.synapses.view
    narrow = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    for field, kept in view.fields.items():
        assert {t.dtype for t in kept} == {narrow if field in NARROW[rule] else torch.float32}
        assert all(t.isfinite().all() for t in kept)
    learned = "total" if "merging" in rule else "importance"
    assert factors(memory) or sum(t.float().sum() for t in view[learned]) > 0


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_state_of_eight_bits_is_refused(dtype: str) -> None:
    with pytest.raises(ValueError, match="is not a floating-point dtype such as"):
        SynapticIntelligence(1.0, state_dtype=dtype)


@pytest.mark.parametrize("kind", [SynapticIntelligence, RWalk])
def test_half_precision_loses_no_more_than_its_rounding(kind: Any) -> None:
    """The path of hundreds of small steps is as it is in single precision; the anchor is rounded."""
    found: list[list[Tensor]] = []
    for dtype in ("float32", "bfloat16"):
        torch.manual_seed(0)
        memory = kind(1.0, state_dtype=dtype)
        fit_tasks(Net(plain_net(), lambda p: torch.optim.SGD(p, lr=0.01)), memory, tasks=1, max_epochs=100)
        found.append(memory.synapses.view["importance"])
    for exact, rounded in zip(*found, strict=True):
        torch.testing.assert_close(rounded.float(), exact, rtol=0.01, atol=1e-4 * float(exact.max()))
