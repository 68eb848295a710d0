"""One set of options: declared once, seen in every signature, and refused by the nearest name."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

import pytest

import cl_callbacks
from cl_callbacks import (
    BGD,
    EWC,
    MESU,
    BennaFusi,
    Cascade,
    KFACLaplace,
    MetaplasticGate,
    RWalk,
    StreamingConsolidation,
    SynapticCallback,
    SynapticIntelligence,
)
from cl_callbacks.guards.signatures import arguments_of
from cl_callbacks.rules.rule_options import AnchoredOptions, BoundaryOptions, RuleOptions, UncertainOptions
from tests.every_rule import every_rule, make

PUBLIC = [
    kind
    for kind in (getattr(cl_callbacks, name) for name in cl_callbacks.__all__)
    if inspect.isclass(kind) and issubclass(kind, SynapticCallback) and kind is not SynapticCallback
]


@pytest.mark.parametrize("kind", PUBLIC, ids=lambda kind: kind.__name__)
def test_every_rule_takes_every_common_option(kind: Any) -> None:
    assert RuleOptions.__annotations__.keys() <= inspect.signature(kind).parameters.keys()


@pytest.mark.parametrize("options", [RuleOptions, AnchoredOptions, BoundaryOptions, UncertainOptions])
def test_each_option_is_declared_where_it_is_used_with_the_same_type(options: Any) -> None:
    """What type checkers see, and what the classes really take."""
    users = [kind for kind in PUBLIC if options.__annotations__.keys() <= arguments_of(kind).keys()]
    assert users
    declared = {n: t for parent in users[0].__mro__ if "__init__" in vars(parent) and parent is not object
                for n, t in get_type_hints(vars(parent)["__init__"]).items()}  # fmt: skip
    for name, hint in get_type_hints(options).items():
        assert declared[name] == hint, name


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EWC(1.0, stength=2.0), r"EWC has no argument 'stength': the nearest is 'strength'"),  # type: ignore[call-arg]
        (lambda: RWalk(1.0, every_n_steps=3), "the nearest is 'window_steps'"),  # type: ignore[call-arg]
        (lambda: MESU(10, excluded="a"), "the nearest is 'exclude'"),  # type: ignore[call-arg]
        (lambda: SynapticCallback(nme="a"), "the nearest is 'name'"),
        (lambda: KFACLaplace(1.0, anchors="each"), "'anchors'"),  # type: ignore[call-arg]
        (lambda: MetaplasticGate(zzz=1), "none is near of steepness, parameters, exclude"),  # type: ignore[call-arg]
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest_right_one(build: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        build()


def test_what_a_rule_cannot_do_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="leave anchors='latest'"):
        SynapticIntelligence(1.0, anchors="each")
    with pytest.raises(ValueError, match="leave max_importance out"):
        KFACLaplace(1.0, max_importance=2.0)
    with pytest.raises(ValueError, match="use 'float32' or wider"):
        Cascade(state_dtype="float16")


def test_names_are_those_of_files_and_configurations() -> None:
    found = {kind(**_needed(kind)).name for kind in PUBLIC}
    assert found == {
        "ewc", "mas", "rwalk", "kfac_laplace", "synaptic_intelligence", "streaming_consolidation",
        "mesu", "bgd", "benna_fusi", "cascade", "metaplastic_gate", "l2_sp",
        "l2_init", "shrink_and_perturb", "upgd", "fire",
        "weight_merging", "retention_guard", "experience_replay", "dark_experience_replay", "distillation",
        "continual_backprop", "re_do", "self_normalized_resets",
    }  # fmt: skip


def test_checkpoints_of_version_0_1_are_found_under_their_keys() -> None:
    key = "{'name': 'NAME', 'parameters': (), 'exclude': ()}"
    for rule, name in (
        (BennaFusi(), "bennafusi"),
        (KFACLaplace(1.0), "kfaclaplace"),
        (SynapticIntelligence(1.0), "synapticintelligence"),
        (StreamingConsolidation(1.0), "streamingconsolidation"),
        (MetaplasticGate(), "metaplasticgate"),
    ):
        assert rule.state_key == type(rule).__name__ + key.replace("NAME", name)
    assert EWC(1.0, name="mine").state_key == "EWC" + key.replace("NAME", "mine")
    # Also a name that was given then and is the default now.
    assert BennaFusi(name="benna_fusi").state_key == "BennaFusi" + key.replace("NAME", "benna_fusi")


def test_a_repr_has_the_arguments_and_the_tasks() -> None:
    assert repr(EWC(70.0, exclude="bias", decay="mean")) == (
        "EWC(strength=70.0, decay='mean', exclude=('bias',), tasks=0)"
    )
    assert repr(BGD(0.2, draws=2)) == "BGD(initial_std=0.2, draws=2)"


@every_rule
def test_a_repr_builds_the_rule_again(rule: str) -> None:
    made = make(rule)
    text = repr(made).replace(", tasks=0", "").replace("tasks=0", "")
    again = eval(text, vars(cl_callbacks), {"torch": None})
    assert repr(again) == repr(made)


class Scaled(EWC):
    """A rule of a user's, with an argument of its own."""

    def __init__(self, strength: float, *, factor: float = 1.0, **options: Any) -> None:
        super().__init__(strength, **options)
        self.factor = factor


def test_a_rule_of_a_user_shows_all_arguments_too() -> None:
    names = list(inspect.signature(Scaled).parameters)
    assert names[:2] == ["strength", "factor"]
    assert {"estimator", "decay", "proximal", "exclude"} <= set(names)
    assert repr(Scaled(1.0, factor=2.0)) == "Scaled(strength=1.0, factor=2.0, tasks=0)"


def test_rules_of_users_are_made_whatever_their_signatures() -> None:
    class Optional(EWC):
        def __init__(self, factor: float = 1.0, **options: Any) -> None:
            super().__init__(**options)

    class Annotated(EWC):
        def __init__(self, strength: float, thing: Nowhere = None, **options: Unpack[Nothing]) -> None:  # noqa: F821
            super().__init__(strength, **options)

    class Passing(EWC):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    parameters = inspect.signature(Optional).parameters
    assert list(parameters)[:2] == ["factor", "strength"]
    assert parameters["strength"].kind is inspect.Parameter.KEYWORD_ONLY
    assert {"thing", "anchors", "exclude"} <= inspect.signature(Annotated).parameters.keys()
    assert list(inspect.signature(Passing).parameters) == list(inspect.signature(EWC).parameters)
    for rule in (Optional(strength=2.0), Annotated(2.0), Passing(2.0)):
        assert rule.strength == 2.0


def _needed(kind: Any) -> dict[str, Any]:
    texts = {"monitor": "val_acc", "mode": "max"}
    names = [n for n, p in inspect.signature(kind).parameters.items() if p.default is p.empty]
    return {name: texts.get(name, 10.0) for name in names}
