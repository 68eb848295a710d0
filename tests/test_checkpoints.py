"""Checkpoints load without trust in who wrote them; one that does not fit is refused and changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cl_callbacks import (
    EWC,
    MAS,
    BatchBoundaries,
    DriftBoundaries,
    EpochBoundaries,
    FitBoundaries,
    PlateauBoundaries,
    RWalk,
)
from tests.every_rule import RULES, any_rule, assert_same, make, same, state
from tests.small import CLASSES, FEATURES, Net, loader, make_trainer, plain_net, task, weights


def learned(rule: str | None, *callbacks: Callback, epochs: int = 2) -> Any:
    """A trainer that has trained, and its rule."""
    memory = [] if rule is None else [make(rule)]
    trainer = make_trainer(*memory, *callbacks, max_epochs=epochs)
    trainer.fit(Net(plain_net()), loader(*task(0)))
    return (trainer, *memory)


@any_rule
def test_the_state_of_a_rule_loads_without_trust(rule: str, tmp_path: Path) -> None:
    trainer, memory = learned(rule)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]
    again = make(rule)
    again.load_state_dict(saved[memory.state_key])
    assert_same(state(memory), state(again))


BOUNDARIES: dict[str, Callable[[], Any]] = {
    "fit": FitBoundaries,
    "epoch": lambda: EpochBoundaries(1),
    "batch": lambda: BatchBoundaries(2),
    "drift": DriftBoundaries,
    "shift": lambda: DriftBoundaries(monitor="feature_shift"),
    "plateau": PlateauBoundaries,
    "hard": lambda: HardTriples(hard_samples=3),
}
every_boundary = pytest.mark.parametrize("kind", BOUNDARIES)


class HardTriples(PlateauBoundaries):
    def outputs(self, pl_module: Any, batch: Any) -> Any:
        return pl_module(batch[0]), batch[1]


def watched(kind: str) -> tuple[Any, Any]:
    boundaries = BOUNDARIES[kind]()
    trainer = make_trainer(boundaries, max_epochs=2)
    trainer.fit(Net(plain_net()), loader(*task(0), torch.zeros(24).long()))
    return trainer, boundaries


@every_boundary
def test_the_state_of_boundaries_loads_without_trust(kind: str, tmp_path: Path) -> None:
    trainer, boundaries = watched(kind)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"][boundaries.state_key]
    again = BOUNDARIES[kind]()
    again.load_state_dict(saved)
    assert same(again.state_dict(), boundaries.state_dict())


def spoil(saved: dict[str, Any], optional: Iterable[str] = ()) -> list[tuple[Any, str]]:
    """The same without each of its parts, with each of another type, and with one more; and what is said."""
    spoiled: list[tuple[Any, str]] = [
        ([], "it is a list"),
        ({}, "without"),
        (saved | {"more": 1}, "with 'more'"),
    ]
    for key in saved:
        if key not in optional:
            spoiled.append(({k: v for k, v in saved.items() if k != key}, f"without '{key}'"))
        spoiled.append((saved | {key: "text"}, f"'{key}' is a str and not a "))
    for field, named in saved.get("synapses", {}).items():
        others = {k: v for k, v in saved["synapses"].items() if k != field}
        spoiled.append((saved | {"synapses": others}, f"in 'synapses': without '{field}'"))
        words = dict.fromkeys(named, "text")
        spoiled.append((saved | {"synapses": others | {field: words}}, f"'{field}' of .* is a str"))
    return spoiled


@any_rule
def test_a_spoiled_state_is_refused_and_the_rule_is_as_before(rule: str) -> None:
    (trainer, memory), (_, other) = learned(rule), learned(rule, epochs=1)
    kept, network = copy.deepcopy(state(memory)), weights(trainer.lightning_module)
    for spoiled, said in spoil(other.state_dict(), {**memory.unsaved_before, "seed": -1}):
        with pytest.raises(ValueError, match=rf"no state of {type(memory).__name__}.*{said}"):
            memory.load_state_dict(spoiled)
        assert_same(kept, state(memory))
    assert torch.equal(network, weights(trainer.lightning_module))


@every_boundary
def test_a_spoiled_state_is_refused_and_the_boundaries_are_as_before(kind: str) -> None:
    (_, boundaries), (_, other) = watched(kind), watched(kind)
    kept, saved = copy.deepcopy(boundaries.state_dict()), other.state_dict() | {"task": 7}
    inner = [key for key, value in saved.items() if isinstance(value, dict) and value]
    spoiled = spoil(saved) + [(saved | {key: {"of": 1}}, "no state of .*Error: '") for key in inner]
    if "processes" in saved:
        spoiled.append((saved | {"processes": [{}]}, "no state of .*KeyError"))
    for state_dict, said in spoiled:
        with pytest.raises(ValueError, match=said):
            boundaries.load_state_dict(state_dict)
        assert same(kept, boundaries.state_dict())


@any_rule
def test_the_state_of_another_rule_is_refused(rule: str) -> None:
    """But for rules that keep the very same fields, which a Trainer tells apart by their names."""
    _, memory = learned(rule)
    kept = copy.deepcopy(state(memory))

    def parts(other: Any) -> Any:
        return set(other.state_dict()), set(other.fields)

    foreign = [other for other in map(make, RULES) if parts(other) != parts(memory)]
    assert len(foreign) >= 8
    for other in foreign:
        with pytest.raises(ValueError, match=f"no state of {type(memory).__name__}"):
            memory.load_state_dict(other.state_dict())
        assert_same(kept, state(memory))


class HalfARule(EWC):
    def restore(self, state_dict: dict[str, Any]) -> None:
        super().restore(state_dict)
        if state_dict["tasks"]:
            raise RuntimeError("a mistake of the user's")


def test_a_rule_that_cannot_take_its_state_has_not_taken_half_of_it() -> None:
    rule, other = HalfARule(1.0), learned("ewc")[1]
    with pytest.raises(ValueError, match=r"no state of HalfARule.*a mistake of the user's"):
        rule.load_state_dict(other.state_dict())
    assert (rule.tasks, rule.synapses.known) == (0, False)


def test_a_checkpoint_that_is_cut_short_changes_nothing(tmp_path: Path) -> None:
    trainer, _ = learned("ewc")
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    whole = (tmp_path / "a.ckpt").read_bytes()
    for share in (0, 0.01, 0.5, 0.9, 0.999):
        (tmp_path / "cut.ckpt").write_bytes(whole[: int(share * len(whole))])
        _, memory = learned("ewc")
        model, kept = Net(plain_net()), copy.deepcopy(state(memory))
        before = weights(model)
        with pytest.raises((RuntimeError, EOFError, OSError)):  # torch's
            make_trainer(memory).fit(
                model, loader(*task(0)), ckpt_path=tmp_path / "cut.ckpt", weights_only=True
            )
        assert torch.equal(before, weights(model))
        assert_same(kept, state(memory))


def wider() -> Net:
    return Net(nn.Sequential(nn.Linear(FEATURES, 9), nn.Tanh(), nn.Linear(9, CLASSES)))


@any_rule
def test_state_of_another_architecture_is_refused_before_the_first_step(rule: str) -> None:
    _, memory = learned(rule)
    if not memory.fields:
        return
    model = wider()
    before = weights(model)
    with pytest.raises(
        ValueError, match=r"does not fit this model(.|\n)*net.2.weight: state \(3, 8\), parameter \(3, 9\)"
    ):
        make_trainer(memory).fit(model, loader(*task(0)))
    assert torch.equal(before, weights(model))


def test_a_checkpoint_of_another_architecture(tmp_path: Path) -> None:
    """Lightning restores the network before it asks callbacks, and torch copies what fits before it raises.

    So a rule cannot keep the network from being touched; its own state is as it was.
    """
    trainer, _ = learned("ewc")
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    found = []
    for callbacks in ([], [learned("ewc")[1]]):
        torch.manual_seed(0)
        model = wider()
        kept = [copy.deepcopy(state(memory)) for memory in callbacks]
        with pytest.raises(RuntimeError, match=r"size mismatch for net.0.weight"):
            make_trainer(*callbacks).fit(
                model, loader(*task(0)), ckpt_path=tmp_path / "a.ckpt", weights_only=True
            )
        found.append(weights(model))
        for memory, before in zip(callbacks, kept, strict=True):
            assert_same(before, state(memory))
    assert torch.equal(*found)


def test_a_checkpoint_whose_rule_is_spoiled_trains_nothing(tmp_path: Path) -> None:
    trainer, memory = learned("rwalk")
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    del checkpoint["callbacks"][memory.state_key]["steps"]
    torch.save(checkpoint, tmp_path / "spoiled.ckpt")
    model, again = Net(plain_net()), learned("rwalk")[1]
    kept = copy.deepcopy(state(again))
    with pytest.raises(ValueError, match=r"no state of RWalk.*without 'steps'"):
        make_trainer(again, max_epochs=9).fit(
            model, loader(*task(0)), ckpt_path=tmp_path / "spoiled.ckpt", weights_only=True
        )
    assert_same(kept, state(again))
    assert torch.equal(weights(model), weights(trainer.lightning_module))


@any_rule
def test_an_evaluation_of_an_older_checkpoint_does_not_take_a_rule_back(rule: str, tmp_path: Path) -> None:
    trainer, memory = learned(rule, epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    make_trainer(memory, max_epochs=2).fit(trainer.lightning_module, loader(*task(1)))
    kept = copy.deepcopy(state(memory))
    trainer.predict(
        trainer.lightning_module, DataLoader(task(0)[0], 8), ckpt_path=tmp_path / "a.ckpt", weights_only=True
    )
    assert_same(kept, state(memory))


def test_a_checkpoint_of_the_weights_alone(tmp_path: Path) -> None:
    trainer, _ = learned("ewc")
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    fresh, model = make("ewc"), Net(plain_net())
    x = DataLoader(task(0)[0], 8)
    make_trainer(fresh).predict(model, x, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert torch.equal(weights(model), weights(trainer.lightning_module))
    with pytest.raises(KeyError, match="checkpoint contains only the model"):
        again = make_trainer(fresh, max_epochs=9)
        again.fit(model, loader(*task(0)), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert fresh.tasks == 0 and not fresh.synapses.known


@pytest.fixture
def importance(tmp_path: Path) -> Path:
    learned("ewc")[1].save_importance(tmp_path / "fisher.safetensors")
    return tmp_path / "fisher.safetensors"


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_an_importance_file_that_is_cut_short_is_refused(share: float, importance: Path) -> None:
    whole = importance.read_bytes()
    importance.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(
        ValueError, match=r"fisher.safetensors is no safetensors file, or not the whole of one"
    ):
        EWC(1.0, importance_file=importance)


def test_foreign_importance_files_are_refused(importance: Path, tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {"importance/weight": torch.ones(2)}
    about = {"rule": "EWC", "estimator": "exact", "likelihood": "categorical", "tasks": "1", "offset": "0.0"}
    save_file(tensors, tmp_path / "a", {k: about[k] for k in ("rule", "estimator", "likelihood")})
    with pytest.raises(ValueError, match="not written by `save_importance`"):
        EWC(1.0, importance_file=tmp_path / "a", normalize=None)
    save_file(tensors, tmp_path / "b", about)
    with pytest.raises(ValueError, match="not whole: without anchor/weight"):
        EWC(1.0, importance_file=tmp_path / "b", normalize=None)
    for build in (MAS, RWalk):
        with pytest.raises(ValueError, match="this rule measures"):
            build(1.0, importance_file=importance)
    model = wider()
    before = weights(model)
    with pytest.raises(ValueError, match=r"net.2.weight: state \(3, 8\), parameter \(3, 9\)"):
        make_trainer(EWC(1.0, importance_file=importance)).fit(model, loader(*task(0)))
    assert torch.equal(before, weights(model))
