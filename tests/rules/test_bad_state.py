"""Checkpoints and importance files whose numbers make no sense: refused by name, the rule as it was."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cl_callbacks import EWC, MAS, EpochBoundaries, KFACLaplace, RWalk, SynapticCallback, SynapticIntelligence
from cl_callbacks.guards import sound_state
from tests.every_rule import WITHOUT_STATE, assert_same, every_rule, make, state
from tests.small import Net, fit_tasks, loader, make_trainer, plain_net, task

NAN, INF = float("nan"), float("inf")


def spoiled(tensor: Tensor, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[-1] = value
    return tensor


def repeated(tensor: Tensor) -> Tensor:
    return tensor.new_zeros(1).expand(10**13)


@pytest.fixture(scope="module")
def trained() -> Callable[[str], SynapticCallback]:
    known: dict[str, SynapticCallback] = {}

    def train(rule: str) -> SynapticCallback:
        if rule not in known:
            known[rule] = make(rule)
            fit_tasks(Net(plain_net()), known[rule], tasks=1)
        return known[rule]

    return train


def refuses(rule: SynapticCallback, saved: dict[str, Any], *words: str) -> None:
    """Whether a state is refused with these words, and the rule's own is as it was."""
    before = copy.deepcopy(state(rule))
    with pytest.raises(ValueError, match="own state is kept") as refused:
        rule.load_state_dict(saved)
    assert all(word in str(refused.value) for word in words), str(refused.value)
    assert_same(state(rule), before)


@every_rule
def test_every_tensor_of_every_rule_is_looked_at(rule: str, trained: Any) -> None:
    made = trained(rule)
    saved = made.state_dict()
    if rule in WITHOUT_STATE:
        assert not saved["synapses"]
        return
    for field, named in saved["synapses"].items():
        for name, tensor in named.items():
            for wrong in (
                spoiled(tensor, NAN),
                spoiled(tensor, -INF),
                spoiled(tensor, 1e30),
                repeated(tensor),
            ):
                bad = copy.deepcopy(saved)
                bad["synapses"][field][name] = wrong
                refuses(made, bad, f"{field}/{name}")
    made.load_state_dict(copy.deepcopy(saved))


@every_rule
@pytest.mark.parametrize("wrong", [-5, NAN, INF, 2.5, "many", True, 10**30, 10**400], ids=repr)
def test_the_number_of_tasks_is_one(rule: str, wrong: Any, trained: Any) -> None:
    made = trained(rule)
    refuses(made, made.state_dict() | {"tasks": wrong}, "tasks")


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        ("ewc", "importance"), ("si", "importance"), ("mas", "importance"), ("rwalk", "score"),
        ("rwalk", "fisher"), ("l2sp", "importance"), ("streaming fisher", "importance"), ("bgd", "std"),
        ("mesu", "std"),
        ("merging", "total"),
    ],
)  # fmt: skip
def test_what_cannot_be_below_0_is_not(rule: str, field: str, trained: Any) -> None:
    made = trained(rule)
    saved = copy.deepcopy(made.state_dict())
    name, tensor = next(iter(saved["synapses"][field].items()))
    saved["synapses"][field][name] = spoiled(tensor, -1.0)
    refuses(made, saved, f"{field}/{name} holds -1, and must be from 0 to")


def test_a_path_may_be_below_0(trained: Any) -> None:
    for rule, field in (("si", "path"), ("streaming path", "importance"), ("ewc", "anchor")):
        saved = copy.deepcopy(trained(rule).state_dict())
        name, tensor = next(iter(saved["synapses"][field].items()))
        saved["synapses"][field][name] = spoiled(tensor, -1.0)
        make(rule).load_state_dict(saved)


def test_fields_of_one_weight_have_one_shape(trained: Any) -> None:
    saved = copy.deepcopy(trained("ewc").state_dict())
    saved["synapses"]["anchor"]["net.0.weight"] = torch.zeros(3, 3)
    refuses(
        trained("ewc"), saved, "importance/net.0.weight has the shape (8, 6) and anchor/net.0.weight (3, 3)"
    )


def test_kronecker_factors_are_looked_at(trained: Any) -> None:
    saved = copy.deepcopy(trained("kfac").state_dict())
    name, factors = next(iter(saved["factors"].items()))
    factors[0] = spoiled(factors[0], NAN)
    refuses(trained("kfac"), saved, f"factors/{name}/0 holds nan")
    assert isinstance(trained("kfac"), KFACLaplace)


def test_remembered_samples_that_claim_more_memory_than_they_have(trained: Any) -> None:
    saved = copy.deepcopy(trained("er").state_dict())
    values = saved["samples"]["samples"][0]["values"]
    values[0] = repeated(values[0])
    refuses(trained("er"), saved, "values/0 repeats 4 bytes, and would take 4e+13 of them")


def test_a_boundary_counts_from_0() -> None:
    boundaries = EpochBoundaries(1)
    with pytest.raises(ValueError, match="task holds -1"):
        boundaries.load_state_dict(boundaries.state_dict() | {"task": -1})
    assert boundaries.task == 0


def test_a_checkpoint_is_named(tmp_path: Path) -> None:
    fit_tasks(Net(plain_net()), EWC(1.0), tasks=1).save_checkpoint(tmp_path / "good.ckpt")
    bad = torch.load(tmp_path / "good.ckpt", weights_only=True)
    (key,) = (key for key in bad["callbacks"] if key.startswith("EWC"))
    importance = bad["callbacks"][key]["synapses"]["importance"]
    importance["net.0.bias"] = spoiled(importance["net.0.bias"], NAN)
    torch.save(bad, tmp_path / "bad.ckpt")
    rule, trainer = EWC(1.0), make_trainer(max_epochs=2)
    trainer.callbacks.insert(0, rule)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"importance/net.0.bias holds nan.*bad\.ckpt"):
        trainer.fit(Net(plain_net()), loader(*task(0)), ckpt_path=str(tmp_path / "bad.ckpt"))
    assert not rule.synapses.known


# -- importance files ------------------------------------------------------------------------------


@pytest.fixture(params=[EWC, MAS, RWalk, SynapticIntelligence])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[type[Any], Path]:
    rule = request.param(1.0)
    fit_tasks(Net(plain_net()), rule, tasks=1)
    rule.save_importance(tmp_path / "good")
    return request.param, tmp_path / "good"


def changed(path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], None]) -> Path:
    with safe_open(path, "pt") as file:
        about, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    change(tensors, about)
    save_file(tensors, path.with_name("bad"), about)
    return path.with_name("bad")


@pytest.mark.parametrize("value", [NAN, INF, -1.0, 1e30])
def test_importance_in_a_file(written: tuple[type[Any], Path], value: float) -> None:
    rule, path = written

    def spoil(tensors: dict[str, Tensor], about: dict[str, str]) -> None:
        tensors["importance/net.0.bias"] = spoiled(tensors["importance/net.0.bias"], value)

    with pytest.raises(
        ValueError, match=rf"{re.escape(str(path.parent))}/bad .*importance/net\.0\.bias holds"
    ):
        rule(1.0, importance_file=changed(path, spoil))
    assert rule(1.0, importance_file=path).tasks == 1


@pytest.mark.parametrize(
    ("entry", "text"),
    [("tasks", "-5"), ("tasks", "many"), ("tasks", "nan"), ("offset", "inf"), ("offset", "x")],
)
def test_numbers_in_the_header_of_a_file(written: tuple[type[Any], Path], entry: str, text: str) -> None:
    rule, path = written
    with pytest.raises(ValueError, match=rf"bad was not loaded.*{entry} (is|holds)"):
        rule(1.0, importance_file=changed(path, lambda tensors, about: about.update({entry: text})))


def test_an_anchor_of_another_shape_in_a_file(written: tuple[type[Any], Path]) -> None:
    rule, path = written

    def reshape(tensors: dict[str, Tensor], about: dict[str, str]) -> None:
        tensors["anchor/net.0.bias"] = torch.zeros(5)

    with pytest.raises(
        ValueError, match=r"bad .*importance/net.0.bias.*\(8,\) and anchor/net.0.bias \(5,\)|anchor"
    ):
        rule(1.0, importance_file=changed(path, reshape))


def test_integers_are_no_importance(written: tuple[type[Any], Path]) -> None:
    rule, path = written

    def round_off(tensors: dict[str, Tensor], about: dict[str, str]) -> None:
        tensors["importance/net.0.bias"] = tensors["importance/net.0.bias"].long()

    with pytest.raises(ValueError, match=r"importance/net.0.bias is of torch.int64"):
        rule(1.0, importance_file=changed(path, round_off))


def test_a_file_of_another_network_is_named_before_the_first_step(tmp_path: Path) -> None:
    rule = EWC(1.0)
    fit_tasks(Net(plain_net()), rule, tasks=1)
    rule.save_importance(tmp_path / "file")

    def wider(tensors: dict[str, Tensor], about: dict[str, str]) -> None:
        for field in ("importance", "anchor"):
            tensors[f"{field}/net.0.weight"] = torch.zeros(8, 1000)

    path = changed(tmp_path / "file", wider)
    with pytest.raises(
        ValueError, match=rf"(?s){re.escape(str(path))} does not fit.*importance/net\.0\.weight"
    ):
        fit_tasks(Net(plain_net()), EWC(1.0, importance_file=path), tasks=1)


def test_a_file_larger_than_the_memory(
    written: tuple[type[Any], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rule, path = written
    large = path.with_name("large")
    with large.open("wb") as file:
        file.truncate(2**43)  # takes no space where nothing is written
    with pytest.raises(ValueError, match=r"large has 8\.8e\+12 bytes, and this machine a memory of"):
        rule(1.0, importance_file=large)
    assert 2**28 < sound_state.memory_of_machine() < 2**43
