"""Layers that are on several devices train and are measured as on one."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cl_callbacks import (
    EWC,
    MAS,
    BennaFusi,
    EpochBoundaries,
    KFACLaplace,
    PlateauBoundaries,
    SynapseStatistics,
    TaskEvaluation,
    fisher_information,
)
from cl_callbacks.compiled.kernels import FusedCall
from cl_callbacks.functional.path_integral import min_max
from cl_callbacks.tensors.blocks import in_blocks
from cl_callbacks.tensors.devices import stacked
from cl_callbacks.tensors.shards import extremes
from tests.every_rule import OWNING, RULES, make, state
from tests.pretend_device.device import DEVICE
from tests.pretend_device.two_devices import AT_HOME, PLACES, Apart, Places, staying
from tests.settings.processes import EXACT_LABELS
from tests.settings.training import Tasks
from tests.small import loader, task

HERE: Places = (f"{DEVICE}:0", f"{DEVICE}:0")
two_devices = pytest.mark.parametrize("places", PLACES.values(), ids=PLACES.keys())
Found = dict[str, Tensor]


class Scored(Tasks):
    """With the validation data of the first task."""

    def val_dataloader(self) -> DataLoader:
        return loader(*task(0))


def train(places: Places, *callbacks: Callback, epochs: int = 3) -> Found:
    """Weights, and state of all rules."""
    model = Apart(places)
    ran = staying(places)(
        *callbacks, precision="64-true", max_epochs=epochs, reload_dataloaders_every_n_epochs=1
    )
    ran.fit(model, Scored())
    return found_in(model, *callbacks)


def found_in(model: nn.Module, *callbacks: Any) -> Found:
    found = {f"weights/{name}": p.detach() for name, p in model.named_parameters()}
    for k, callback in enumerate(callbacks):
        if hasattr(callback, "synapses"):
            found |= {f"{k}{path}": value for path, value in state(callback).items()}
    return {path: value.cpu().double() for path, value in found.items()}


def assert_alike(found: Found, expected: Found) -> None:
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert value.isfinite().all(), path
        scale = 1e-9 * float(value.abs().max()) if value.numel() else 0.0
        torch.testing.assert_close(found[path], value, rtol=0, atol=scale, msg=path)


def exact(rule: str, **options: Any) -> Any:
    """Without labels that are drawn: each device draws others."""
    return make(rule, **({"estimator": "exact"} if rule in EXACT_LABELS else {}), **options)


def watched(rule: str, **options: Any) -> list[Callback]:
    evaluation = TaskEvaluation("val_acc")
    return [exact(rule, **options), EpochBoundaries(1), SynapseStatistics(every_n_steps=2), evaluation]


DRAWING = [*OWNING, "shrink", "shrink steps"]


@cache
def at_home(rule: str) -> Found:
    return train(AT_HOME, *watched(rule))


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in DRAWING])
@two_devices
def test_every_rule_is_as_on_one_device(rule: str, places: Places) -> None:
    assert_alike(train(places, *watched(rule)), at_home(rule))


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in DRAWING])
def test_so_it_is_with_its_state_elsewhere(rule: str) -> None:
    assert_alike(train(PLACES["two of them"], *watched(rule, state_device="cpu")), at_home(rule))


@pytest.mark.parametrize("rule", DRAWING)
@pytest.mark.parametrize("options", [{}, {"state_device": "cpu"}], ids=["beside", "on the CPU"])
def test_rules_that_draw_for_each_device_do_the_same_twice(rule: str, options: dict[str, Any]) -> None:
    first, second = (train(PLACES["two of them"], *watched(rule, **options)) for _ in range(2))
    assert_alike(second, first)


GATES = ["ewc", "kfac", "kfac list", "streaming path", "metaplastic"]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("places", [HERE, PLACES["two of them"]], ids=["one device", "two devices"])
def test_a_rule_with_its_state_elsewhere_gates_another(gate: str, places: Places) -> None:
    def rules(**options: Any) -> list[Callback]:
        gating = exact(gate, **options)
        flow = BennaFusi(3, 0.2, gated_by=gating.name, **options)
        return [gating, flow, EpochBoundaries(1), SynapseStatistics(every_n_steps=1)]

    assert_alike(train(places, *rules(state_device="cpu")), train(AT_HOME, *rules()))


@pytest.mark.parametrize("exclude", [(), "second.*bias", "second.*weight"])
def test_proximal_steps_of_layers(exclude: Any) -> None:
    """With and without their biases, which are the last column of a layer's matrix."""

    def rules(**options: Any) -> list[Callback]:
        layers = KFACLaplace(5.0, estimator="exact", proximal=True, exclude=exclude, **options)
        return [layers, EpochBoundaries(1), SynapseStatistics(every_n_steps=1)]

    expected = train(AT_HOME, *rules())
    for options in ({}, {"state_device": "cpu"}):
        assert_alike(train(PLACES["two of them"], *rules(**options)), expected)


@two_devices
@pytest.mark.parametrize("there", [True, False], ids=["to one device", "from one device"])
def test_a_checkpoint_does_not_know_where_the_layers_were(
    places: Places, there: bool, tmp_path: Path
) -> None:
    def resumed(first: Places, then: Places) -> Found:
        path = tmp_path / "a.ckpt"
        rules = [EWC(5.0), KFACLaplace(1.0, estimator="exact")]
        begun = staying(first)(*rules, EpochBoundaries(2), max_epochs=3, precision="64-true")
        begun.fit(Apart(first), Tasks())
        begun.save_checkpoint(path)
        rules, model = [EWC(5.0), KFACLaplace(1.0, estimator="exact")], Apart(then)
        ran = staying(then)(*rules, EpochBoundaries(2), max_epochs=5, precision="64-true")
        ran.fit(model, Tasks(), ckpt_path=path, weights_only=True)
        return found_in(model, *rules)

    first, then = (places, AT_HOME) if there else (AT_HOME, places)
    assert_alike(resumed(first, then), resumed(AT_HOME, AT_HOME))


@two_devices
def test_hard_samples_are_taken_from_batches_of_another_device(places: Places) -> None:
    found, expected = (
        train(where, MAS(1.0), PlateauBoundaries(hard_samples=5), epochs=2) for where in (places, AT_HOME)
    )
    assert_alike(found, expected)


@two_devices
def test_fisher_information(places: Places) -> None:
    x, y = task(0)
    found, expected = (fisher_information(Apart(where), [(x.double(), y)]) for where in (places, AT_HOME))
    assert_alike({name: t.cpu() for name, t in found.items()}, expected)


def test_what_is_brought_together_is_on_the_first_device() -> None:
    values = [torch.tensor(float(i), device=f"{DEVICE}:{i % 2}") for i in range(3)]
    assert stacked(values).device == values[0].device
    assert stacked(values).tolist() == [0.0, 1.0, 2.0]
    least, greatest = extremes(values, None)
    assert [t.tolist() for t in min_max(values, least, greatest)] == [0.0, 0.5, 1.0]


def test_a_block_is_of_one_device() -> None:
    parameters = [torch.ones(2, device=f"{DEVICE}:{i}") for i in (0, 0, 1, 0)]
    assert [[p.device.index for p in block] for block in in_blocks(parameters)] == [[0, 0], [1], [0]]


def test_numbers_of_a_compiled_operation_are_beside_its_tensors() -> None:
    tensors = [torch.ones(2, device=f"{DEVICE}:{i}") for i in (0, 1, 0)]

    def add_(values: list[Tensor], shares: list[float]) -> None:
        torch._foreach_add_(values, shares)

    call = FusedCall(add_, {"values": tensors, "shares": [1.0, 2.0, 3.0]}, ["shares"])
    _, shares = call.tensors()
    assert [s.device for s in shares] == [t.device for t in tensors]
    assert [s.item() for s in shares] == [1.0, 2.0, 3.0]
