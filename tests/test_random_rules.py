"""Random valid arguments of every public rule, on random small networks."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

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
    KFACLaplace,
    L2Init,
    MetaplasticGate,
    RWalk,
    ShrinkAndPerturb,
    StreamingConsolidation,
    SynapticCallback,
    SynapticIntelligence,
    WeightMerging,
)
from tests.every_rule import same, state
from tests.small import CLASSES, FEATURES, Net, fit_tasks, weights

bounded = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


class Case(NamedTuple):
    rule: type[SynapticCallback]
    arguments: dict[str, Any]


def one_of(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


positive = st.floats(1e-6, 1e6)
share = st.floats(0.0, 1.0)
OPTIONS = {
    "exclude": one_of(None, "bias", ["bias"]),
    "state_dtype": one_of(None, "float32", "float64"),
    "state_device": one_of(None, "cpu"),
    "strict": st.booleans(),
}
PULL = OPTIONS | {
    "state_dtype": one_of(None, "float32", "float64", "bfloat16"),
    "strength": one_of(0.0) | positive,
    "normalize": one_of("mean", None),
    "proximal": st.booleans(),
    "max_importance": optional(positive),
}
MEASURED = {"samples": one_of(None, 1, 7, 1000), "decay": share | one_of("mean")}
BOUNDARY = PULL | {"anchors": one_of("latest", "each")}
UNCERTAIN = OPTIONS | {
    "relative_std": optional(st.floats(1e-3, 2.0)),
    "lr_scale": optional(st.floats(1e-3, 100.0)),
    "std_lr_scale": optional(st.floats(1e-3, 100.0)),
    "draws": st.integers(1, 3),
    "antithetic": st.booleans(),
    "trust_region": st.floats(0.01, 0.9),
    "reduction": one_of("mean", "sum"),
    "seed": st.integers(0, 2**31),
}
ESTIMATORS = one_of("exact", "sampled", "empirical", "logits_reversal")
# Arguments from which the valid ones of each rule are drawn; those left out keep their defaults.
RULES: dict[type[SynapticCallback], dict[str, st.SearchStrategy[Any]]] = {
    EWC: BOUNDARY | MEASURED | {"estimator": ESTIMATORS},
    SynapticIntelligence: PULL | {"decay": share, "damping": positive},
    MAS: BOUNDARY | MEASURED | {"norm": one_of("squared", "l2")},
    RWalk: BOUNDARY | {"fisher_decay": st.floats(0.0, 0.999), "window_steps": st.integers(1, 9)},
    KFACLaplace: {name: values for name, values in PULL.items() if name != "max_importance"}
    | {"estimator": one_of("exact", "sampled", "empirical"), "samples": one_of(1, 7, 1000)},
    StreamingConsolidation: PULL
    | {"measure": one_of("path", "fisher", "sensitivity"), "importance_decay": share, "anchor_decay": share},
    BennaFusi: OPTIONS | {"beakers": st.integers(2, 8), "leak": st.booleans()},
    MetaplasticGate: OPTIONS | {"steepness": one_of(0.0) | positive},
    Cascade: OPTIONS
    | {"levels": st.integers(1, 6), "ratio": st.floats(0.1, 0.5), "seed": st.integers(0, 99)},
    L2SP: OPTIONS
    | {"strength": one_of(0.0) | positive, "to": one_of("last_task", "start"), "proximal": st.booleans()},
    L2Init: OPTIONS | {"strength": one_of(0.0) | st.floats(1e-6, 1.0), "proximal": st.booleans()},
    WeightMerging: OPTIONS
    | {"share": st.floats(0.0, 0.99), "every_n_steps": optional(st.integers(1, 9))}
    | {"include_start": st.booleans()},
    ShrinkAndPerturb: OPTIONS
    | {"shrink": share, "noise": st.floats(0.0, 1.0), "every_n_steps": optional(st.integers(1, 9))}
    | {"noise_unit": one_of("initial_std", "absolute"), "seed": st.integers(0, 99)},
    FIRE: {name: values for name, values in OPTIONS.items() if name != "exclude"}
    | {"share": share, "iterations": optional(st.integers(1, 9))},
    UPGD: OPTIONS
    | {"decay": st.floats(0.0, 0.9999), "noise": st.floats(0.0, 1.0), "weight_decay": st.floats(0.0, 1.0)},
    MESU: UNCERTAIN | {"memory_epochs": optional(st.floats(1.0, 1e5)), "prior": one_of("zero", "chain")},
    BGD: UNCERTAIN,
}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rule = draw(st.sampled_from(list(RULES)))
    named = draw(st.sets(st.sampled_from(sorted(RULES[rule])), max_size=5))
    return Case(rule, {name: draw(RULES[rule][name]) for name in sorted(named)})


@st.composite
def networks(draw: st.DrawFn) -> Net:
    torch.manual_seed(draw(st.integers(0, 999)))
    layers: list[nn.Module] = []
    width = FEATURES
    for _ in range(draw(st.integers(0, 2))):
        wider = draw(st.sampled_from([2, 5, 8]))
        layers.append(nn.Linear(width, wider, bias=draw(st.booleans())))
        layers += draw(
            one_of(
                [],
                [nn.LayerNorm(wider)],
                [nn.BatchNorm1d(wider)],
                [nn.Unflatten(1, (wider, 1)), nn.Flatten()],
            )
        )
        layers.append(draw(one_of(nn.ReLU(), nn.Tanh(), nn.PReLU(), nn.Dropout(0.3))))
        width = wider
    layers.append(nn.Linear(width, CLASSES))
    optimizers: list[Callable[..., Any]] = [
        lambda p: torch.optim.Adam(p, lr=1e-2),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=1e-3, amsgrad=True),
    ]
    return Net(nn.Sequential(*copy.deepcopy(layers)), draw(st.sampled_from(optimizers)))


def trained(net: Net, case: Case) -> tuple[Net, SynapticCallback]:
    """A copy of the network after two tasks with the rule, which has no reason to refuse anything."""
    model, rule = copy.deepcopy(net), case.rule(**case.arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit_tasks(model, rule)
    return model, rule


@bounded
@given(cases(), networks())
def test_weights_and_state_stay_finite_and_survive_saving(case: Case, net: Net) -> None:
    model, rule = trained(net, case)
    assert weights(model).isfinite().all()
    assert all(tensor.isfinite().all() for tensor in state(rule).values())
    saved = copy.deepcopy(rule.state_dict())
    other = case.rule(**case.arguments)
    other.load_state_dict(copy.deepcopy(saved))
    assert same(other.state_dict(), saved)


@bounded
@given(cases().filter(lambda case: "strength" in RULES[case.rule]), networks())
def test_a_strength_of_zero_changes_nothing(case: Case, net: Net) -> None:
    model, _ = trained(net, Case(case.rule, case.arguments | {"strength": 0.0}))
    plain = copy.deepcopy(net)
    fit_tasks(plain)
    assert torch.equal(weights(model), weights(plain))
