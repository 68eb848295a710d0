"""Every rule under every setting comes to the same on the pretend device as on the CPU."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.every_rule import RULES, every_rule
from tests.pretend_device import trainings
from tests.pretend_device.device import DEVICE, trainer_on
from tests.pretend_device.trainings import Outcome, assert_alike, on_the_cpu

DRAWING = ["bgd", "mesu", "mesu chain", "mesu draws"]
OFFLOADED: dict[str, dict[str, Any]] = {
    "state beside the weights": {},
    "state on the CPU": {"state_device": "cpu"},
    "state on another device": {"state_device": f"{DEVICE}:1"},
}
settings = pytest.mark.parametrize("options", OFFLOADED.values(), ids=OFFLOADED.keys())


@cache
def on_cpu(setting: str, rule: str) -> Outcome:
    return getattr(trainings, setting)(rule, on_the_cpu)


@every_rule
@settings
def test_one_fit(rule: str, options: dict[str, Any]) -> None:
    assert_alike(trainings.one_fit(rule, trainer_on, **options), on_cpu("one_fit", rule))


@every_rule
def test_fits_in_a_row(rule: str) -> None:
    assert_alike(trainings.fits_in_a_row(rule, trainer_on), on_cpu("fits_in_a_row", rule))


@every_rule
@settings
def test_statistics_and_evaluation_in_mid_task(rule: str, options: dict[str, Any]) -> None:
    found = trainings.statistics_and_evaluation(rule, trainer_on, **options)
    assert_alike(found, on_cpu("statistics_and_evaluation", rule))


@every_rule
@settings
def test_a_checkpoint_in_mid_task(rule: str, options: dict[str, Any], tmp_path: Path) -> None:
    found = trainings.saved(rule, trainer_on, tmp_path / "a.ckpt", **options)
    assert_alike(found, trainings.saved(rule, on_the_cpu, tmp_path / "b.ckpt"))


@every_rule
@pytest.mark.parametrize("there", [True, False], ids=["to the CPU", "from the CPU"])
def test_a_training_moves(rule: str, there: bool, tmp_path: Path) -> None:
    first, then = (trainer_on, on_the_cpu) if there else (on_the_cpu, trainer_on)
    found = trainings.resumed(rule, first, then, tmp_path / "a.ckpt", state_device="cpu")
    assert_alike(found, trainings.resumed(rule, on_the_cpu, on_the_cpu, tmp_path / "b.ckpt"))


@pytest.mark.parametrize("rule", DRAWING)
def test_predictions_at_samples_of_the_weights(rule: str) -> None:
    assert_alike(trainings.predictions(rule, trainer_on), on_cpu("predictions", rule))


def test_every_rule_is_here() -> None:
    assert set(DRAWING) < set(RULES)
