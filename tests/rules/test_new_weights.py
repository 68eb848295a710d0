"""New weights under the names of those that a rule remembers: every rule says so, once."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from cl_callbacks import EWC, MESU, EpochBoundaries, SynapticCallback
from tests.every_rule import RULES, WITHOUT_STATE, every_rule, make
from tests.small import CLASSES, FEATURES, Net, loader, make_trainer, task

HIDDEN, RANK = 16, 4

# Without state of weights nothing holds a new one to an old one.
remembering_rule = pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in WITHOUT_STATE])


class Adapter(nn.Module):
    """A frozen layer with a change of low rank, of which the second matrix begins at 0."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.begin()

    def begin(self) -> None:
        self.a = nn.Linear(self.layer.in_features, RANK, bias=False)
        self.b = nn.Linear(RANK, self.layer.out_features, bias=False)
        nn.init.zeros_(self.b.weight)

    def merge(self) -> None:
        with torch.no_grad():
            self.layer.weight += self.b.weight @ self.a.weight
        self.begin()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.b(self.a(x))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(),
                         nn.Linear(HIDDEN, CLASSES))  # fmt: skip


def model_of(net: nn.Module | None = None) -> Net:
    return Net(net or network(), lambda p: torch.optim.Adam([q for q in p if q.requires_grad], lr=3e-3))


def said(rule: SynapticCallback, model: Net, trainer: Any = None, **options: Any) -> list[str]:
    """What a fit says of new weights."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = trainer or make_trainer(rule, **options)
        trainer.fit(model, loader(*task(rule.tasks)))
    found = [str(w.message) for w in caught]
    return [text for text in found if "neither those with which the last task ended" in text]


def reset(model: Net) -> None:
    model.net[2].reset_parameters()


def replace(model: Net) -> None:
    model.net[2] = nn.Linear(HIDDEN, HIDDEN)


@pytest.mark.parametrize("change", [reset, replace])
@remembering_rule
def test_a_layer_that_is_begun_anew_between_fits(rule: str, change: Callable[[Net], None]) -> None:
    model, memory = model_of(), make(rule)
    assert said(memory, model) == []
    change(model)
    (found,) = said(memory, model)
    kind = type(memory).__name__
    assert found.startswith(f"{kind}: net.2.weight")
    assert "net.0" not in found
    assert f"another {kind}" in found
    assert said(memory, model) == []


@pytest.mark.parametrize("rule", ["ewc", "si", "kfac", "streaming path", "benna-fusi", "mesu"])
def test_an_adapter_that_is_merged_and_begun_anew(rule: str) -> None:
    net = network()
    net[2] = Adapter(net[2])
    model, memory = model_of(net), make(rule)
    assert said(memory, model, max_epochs=5) == []
    x, _ = task(0)
    before = model(x)
    model.net[2].merge()
    torch.testing.assert_close(model(x), before)
    (found,) = said(memory, model)
    assert "net.2.a.weight, net.2.b.weight" in found


@pytest.mark.parametrize("rule", ["ewc", "bgd", "cascade"])
def test_a_layer_that_is_begun_anew_when_a_task_begins(rule: str) -> None:
    class Anew(Net):
        def on_task_start(self, trainer: Any, pl_module: Any, task: int) -> None:
            if task == 1:
                self.net[2].reset_parameters()

    model, memory = Anew(network()), make(rule)
    (found,) = said(memory, model, trainer=make_trainer(memory, EpochBoundaries(2), max_epochs=6))
    assert "net.2.weight" in found


@every_rule
def test_ordinary_fits_say_nothing(rule: str) -> None:
    model, memory = model_of(), make(rule)
    for _ in range(3):  # in another Trainer each time
        assert said(memory, model) == []
    twin = model_of()
    twin.load_state_dict(model.state_dict())
    assert said(memory, twin) == []  # a new module with the old weights
    assert said(memory, twin.double(), precision="64-true") == []


@every_rule
def test_the_best_checkpoint_of_a_task_is_not_new(rule: str, tmp_path: Path) -> None:
    model, memory = model_of(), make(rule)
    for index in range(2):
        saving = ModelCheckpoint(tmp_path / str(index), "{epoch}", save_top_k=-1, save_weights_only=True)
        trainer = make_trainer(memory, saving, max_epochs=10, enable_checkpointing=True)
        assert said(memory, model, trainer) == []
        first = torch.load(tmp_path / str(index) / "epoch=0.ckpt", weights_only=True)
        model.load_state_dict(first["state_dict"])
    assert said(memory, model) == []


@every_rule
def test_a_resumed_training_says_nothing(rule: str, tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, save_last=True, save_top_k=0)
    trainer = make_trainer(make(rule), EpochBoundaries(1), saving, max_epochs=2, enable_checkpointing=True)
    trainer.fit(model_of(), loader(*task(0)))
    memory = make(rule)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer(memory, EpochBoundaries(1), max_epochs=4).fit(
            model_of(), loader(*task(0)), ckpt_path=tmp_path / "last.ckpt", weights_only=True
        )
    assert not [w for w in caught if "neither those" in str(w.message)]


@pytest.mark.parametrize(
    "rule", ["ewc", "ewc each", "si", "mas", "rwalk", "kfac", "streaming path", "benna-fusi"]
)
def test_restored_state_beside_other_weights_is_said(rule: str) -> None:
    model, memory, again = model_of(), make(rule), make(rule)
    assert said(memory, model) == []
    again.load_state_dict(copy.deepcopy(memory.state_dict()))
    torch.manual_seed(1)
    reset(model)
    (found,) = said(again, model)
    assert "net.2.weight" in found


def test_an_importance_file_beside_other_weights_is_said(tmp_path: Path) -> None:
    model, memory = model_of(), EWC()
    assert said(memory, model) == []
    memory.save_importance(tmp_path / "importance.safetensors")
    assert said(EWC(importance_file=tmp_path / "importance.safetensors"), model) == []
    torch.manual_seed(1)
    reset(model)
    assert len(said(EWC(importance_file=tmp_path / "importance.safetensors"), model)) == 1


def test_a_new_name_and_strict_false_are_the_remedy() -> None:
    model, memory = model_of(), MESU(strict=False)
    assert said(memory, model) == []
    model.net.add_module("5", nn.Linear(CLASSES, CLASSES))
    model.net[2] = nn.Identity()
    assert said(memory, model) == []
    assert "net.5.weight" in memory.synapses.view.names
