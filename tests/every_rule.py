"""Every public rule, as the tests build it; a new rule joins with one line in a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_callbacks import (
    BGD,
    EWC,
    FIRE,
    L2SP,
    MAS,
    MESU,
    UPGD,
    BennaFusi,
    Cascade,
    ContinualBackprop,
    DarkExperienceReplay,
    Distillation,
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

EACH = {"anchors": "each", "decay": 0.9, "estimator": "sampled"}

# Rules that pull: with a strength that shows, and one that forbids any movement.
PULLING: dict[str, tuple[Callable[..., Any], float, float]] = {
    "ewc": (EWC, 1.0, 1e5),
    "ewc each": (lambda s, **o: EWC(s, **EACH | o), 1.0, 1e5),
    "si": (lambda s, **o: SynapticIntelligence(s, damping=1e-3, **o), 1.0, 1e5),
    "l2sp": (L2SP, 0.1, 1e4),
    "l2sp start": (lambda s, **o: L2SP(s, to="start", **o), 0.1, 1e4),
    "l2init": (L2Init, 0.05, 5e3),
    "mas": (MAS, 1.0, 1e4),
    "mas mean": (lambda s, **o: MAS(s, norm="l2", decay="mean", **o), 1.0, 1e4),
    "rwalk": (lambda s, **o: RWalk(s, window_steps=3, **o), 1.0, 1e6),
    "kfac": (KFACLaplace, 1.0, 1e5),
    "kfac list": (lambda s, **o: KFACLaplace(s, accumulate="list", **o), 1.0, 1e5),
    "streaming fisher": (lambda s, **o: StreamingConsolidation(s, measure="fisher", **o), 1.0, 1e6),
    "streaming |g|": (lambda s, **o: StreamingConsolidation(s, measure="sensitivity", **o), 1.0, 1e6),
    "streaming path": (lambda s, **o: StreamingConsolidation(s, measure="path", **o), 1.0, 1e6),
}  # fmt: skip

# Rules that change the optimizer's update: with a strength that shows.
REWRITING: dict[str, tuple[Callable[..., Any], float]] = {
    "benna-fusi": (lambda s, **o: BennaFusi(4, s, **o), 0.2),
    "metaplastic": (MetaplasticGate, 5.0),
    "merging": (lambda s, **o: WeightMerging(s, include_start=True, **o), 0.3),
    "merging steps": (lambda s, **o: WeightMerging(s, every_n_steps=2, include_start=True, **o), 0.1),
    "shrink": (lambda s, **o: ShrinkAndPerturb(1 - s, s, **o), 0.2),
    "shrink steps": (lambda s, **o: ShrinkAndPerturb(1 - s, s, every_n_steps=2, **o), 0.05),
    "fire": (FIRE, 0.5),
}

SIZE: dict[str, Any] = {"memory": 12, "batch_size": 8}

# Rules that train on remembered samples: with a weight that shows.
REHEARSING: dict[str, tuple[Callable[..., Any], float]] = {
    "er": (lambda s, **o: ExperienceReplay(weight=s, **SIZE | o), 1.0),
    "er joined": (lambda s, **o: ExperienceReplay(weight=s, joined=True, **SIZE | o), 1.0),
    "er past": (lambda s, **o: ExperienceReplay(weight=s, past_only=True, **SIZE | o), 1.0),
    "der": (lambda s, **o: DarkExperienceReplay(alpha=s, beta=s, **SIZE | o), 1.0),
}

# Rules that hold outputs to those of an earlier network: with a strength that shows.
DISTILLING: dict[str, tuple[Callable[..., Any], float]] = {
    "lwf": (Distillation, 1.0),
    "lwf reverse": (lambda s, **o: Distillation(s, direction="reverse", **o), 1.0),
}

# Rules that replace units, of a network that has some: with a share or threshold that shows.
RECYCLING: dict[str, tuple[Callable[..., Any], float]] = {
    "cbp": (lambda s, **o: ContinualBackprop(s, maturity=1, **o), 0.3),
    "redo": (lambda s, **o: ReDo(s, every_n_steps=2, **o), 0.95),
}
# One that replaces none where they are active in every sample, as those of tanh are.
RECYCLING_SILENT = {"snr": (lambda s, **o: SelfNormalizedResets(s or 1e-9, every_n_steps=1, **o), 0.9)}

# Rules that put another in its place: there is no strength at which they do nothing.
OWNING: dict[str, Callable[..., Any]] = {
    "bgd": lambda **o: BGD(0.1, **o),
    "mesu": lambda **o: MESU(100, 0.2, **o),
    "mesu chain": lambda **o: MESU(100, 0.2, draws=1, prior="chain", beakers=3, coupling=0.1, **o),
    "mesu draws": lambda **o: MESU(100, 0.2, draws=2, **o),
    "cascade": lambda **o: Cascade(3, **o),
    "upgd": lambda **o: UPGD(decay=0.9, noise=0.1, weight_decay=0.1, **o),
}
RULES = [*PULLING, *REWRITING, *REHEARSING, *DISTILLING, *RECYCLING, *OWNING]
# Rules that renew weights, and know nothing of single ones.
RENEWING = {"shrink", "shrink steps", "fire"}
WITHOUT_STATE = {"metaplastic", *RENEWING, *REHEARSING, *DISTILLING, *RECYCLING, *RECYCLING_SILENT}
"""Of weights."""
every_rule = pytest.mark.parametrize("rule", RULES)
any_rule = pytest.mark.parametrize("rule", [*RULES, *RECYCLING_SILENT])
pulling_rule = pytest.mark.parametrize("rule", PULLING)
MATRICES_ONLY = {"metaplastic", "cascade", "fire"}
# Rules whose loss is summed over observations, which they count.
COUNTING = {"bgd", "mesu", "mesu chain", "mesu draws"}
# Rules that are local to each weight, and so to each shard, or add a gradient, of which each shard is a part.
SHARDABLE = {*PULLING, *REWRITING, *REHEARSING, *DISTILLING, *RECYCLING, "upgd"} - {"kfac", "kfac list"}

# Rules that do something at the end of a task.
CONSOLIDATING = {rule for rule in PULLING if not rule.startswith("streaming")}
CONSOLIDATING |= {"merging", "merging steps", *RENEWING}

COUNTING_TASKS = {*CONSOLIDATING, *REHEARSING, *DISTILLING}
"""Rules that are told of the end of a task, and count it."""

# What tells the forms of one class apart, where there are several.
VARIANTS = {
    "ewc": '`estimator="exact"`',
    "ewc each": '`anchors="each"`, `estimator="sampled"`',
    "l2sp": '`to="last_task"`',
    "l2sp start": '`to="start"`',
    "mas": '`norm="squared"`',
    "mas mean": '`norm="l2"`, `decay="mean"`',
    "kfac": '`accumulate="nearest"`',
    "kfac list": '`accumulate="list"`',
    "streaming fisher": '`measure="fisher"`',
    "streaming |g|": '`measure="sensitivity"`',
    "streaming path": '`measure="path"`',
    "merging": "`share=0.3`",
    "merging steps": "`every_n_steps=2`",
    "shrink": "`every_n_steps=None`",
    "shrink steps": "`every_n_steps=2`",
    "er": "`joined=False`",
    "er joined": "`joined=True`",
    "er past": "`past_only=True`",
    "lwf": '`direction="forward"`',
    "lwf reverse": '`direction="reverse"`',
    "mesu": "`draws=1`",
    "mesu chain": '`prior="chain"`',
    "mesu draws": "`draws=2`",
}


def make(rule: str, strength: float | None = None, **options: Any) -> Any:
    if rule in OWNING:
        return OWNING[rule](**options)
    build, usual = (PULLING | REWRITING | REHEARSING | DISTILLING | RECYCLING | RECYCLING_SILENT)[rule][:2]
    return build(usual if strength is None else strength, **options)


def selected(rule: str, names: list[str]) -> list[str]:
    """Those that the rule takes of all parameters."""
    return [name for name in names if rule not in MATRICES_ONLY or name.endswith("weight")]


def state(rule: SynapticCallback) -> dict[str, Tensor]:
    """All tensors of a rule's state, flat."""
    found: dict[str, Tensor] = {}

    def visit(path: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                visit(f"{path}/{key}", inner)
        elif isinstance(value, list):
            for key, inner in enumerate(value):
                visit(f"{path}/{key}", inner)
        elif isinstance(value, str):
            found[path] = torch.tensor(list(value.encode()))
        elif value is not None:
            found[path] = torch.as_tensor(value)

    visit("", rule.state_dict())
    return found


def same(a: Any, b: Any) -> bool:
    """Whether two trees of tensors and numbers are alike, bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]), key
