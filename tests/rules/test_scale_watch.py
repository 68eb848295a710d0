"""What is logged and said of a rule that does nothing, and of one that keeps a task from being learned."""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from cl_callbacks import (
    BGD,
    EWC,
    MESU,
    BennaFusi,
    EpochBoundaries,
    FitBoundaries,
    MetaplasticGate,
    SynapseStatistics,
    SynapticCallback,
)
from cl_callbacks.rules import scale_watch
from cl_callbacks.synapses.view import SynapseView
from tests.every_rule import OWNING, REWRITING, make
from tests.small import Net, fit_tasks, loader, make_trainer, plain_net, task

EPOCHS, BATCHES = 6, 10  # 60 steps for each task


def model() -> Net:
    torch.manual_seed(0)
    return Net(plain_net(), lambda p: torch.optim.Adam(p, lr=0.02))


def said(*callbacks: Any, tasks: Sequence[int] = (0, 1), net: Net | None = None, **options: Any) -> list[str]:
    """What is warned of while tasks are learned, of these rules alone; each fit is a task."""
    net = net or model()
    trainer = make_trainer(*callbacks, **({"max_epochs": EPOCHS} | options))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for index, number in enumerate(tasks):
            if index:
                trainer.fit_loop.max_epochs += options.get("max_epochs", EPOCHS)
            trainer.fit(net, loader(*task(number, 8 * BATCHES)))
    found = [str(w.message) for w in caught]
    return [text for text in found if "hardly does anything" in text or "may keep the network" in text]


# -- a rule that does nothing ------------------------------------------------------------------------


def test_an_inert_rule_is_said_once_with_a_number_to_try_next() -> None:
    rule = EWC(1e-3, normalize=None)
    (text,) = said(rule, tasks=[0, 1, 2])
    match = re.fullmatch(
        r"EWC hardly does anything: in task 1 it pulled with up to (\S+) of the gradient at most, so nothing "
        r"is protected; try strength=(\S+) instead of 0.001.",
        text,
    )
    assert match, text
    reached, advised = float(match[1]), float(match[2])
    assert 0 < reached < 0.01
    assert advised == float(f"{1e-3 * min(100, 0.3 / reached):.0e}")


def test_what_is_advised_is_no_longer_inert() -> None:
    rule = EWC(1e-3, normalize=None)
    for _ in range(4):
        texts = said(rule)
        if not texts:
            break
        rule = EWC(float(texts[0].split("strength=")[1].split()[0]))
    assert not texts and rule.rule_scale.reached is not None and 0.01 < rule.rule_scale.reached < 3


@pytest.mark.parametrize("strength", [0.0, 30.0])
def test_a_strength_that_is_right_or_0_is_not_said(strength: float) -> None:
    assert said(EWC(strength, normalize=None)) == []


def test_the_first_task_says_nothing() -> None:
    assert said(EWC(1e-6, normalize=None), tasks=[0]) == []
    assert said(BennaFusi(coupling=1e-7), tasks=[0]) == []


def test_importance_from_a_file_is_there_in_the_first_task(tmp_path: Path) -> None:
    net, first = model(), EWC(1e-3, normalize=None)
    said(first, tasks=[0], net=net)
    first.save_importance(tmp_path / "fisher")
    assert len(said(EWC(1e-3, importance_file=tmp_path / "fisher", normalize=None), tasks=[1], net=net)) == 1


@pytest.mark.parametrize(
    ("rule", "advice"),
    [
        (EWC(1e-4, proximal=True, normalize=None), "strength=0.01 instead of 0.0001"),
        (BennaFusi(coupling=1e-6), "coupling=0.0001 instead of 1e-06"),
        (MetaplasticGate(0.01), "steepness=1 instead of 0.01"),
    ],
)
def test_rules_that_change_the_update_are_measured_beside_it(rule: SynapticCallback, advice: str) -> None:
    (text,) = said(rule)
    assert re.search(r"in task 1 it changed the update by up to \S+ of it at most", text)
    assert f"; try {advice}." in text


def test_a_rule_without_a_strength_is_said_without_a_number() -> None:
    class Faint(SynapticCallback):
        def pull(self, synapses: SynapseView, gradients: list[Tensor]) -> None:
            torch._foreach_mul_(gradients, 1.001)

    (text,) = said(Faint(name="mine"))
    assert text.startswith("Faint 'mine' hardly") and text.endswith("; try other arguments.")


# -- a rule that keeps a task from being learned -----------------------------------------------------


def test_a_paralysing_rule_is_said_once_with_a_number_to_try_next() -> None:
    (text,) = said(EWC(1e6, normalize=None), tasks=[0, 1, 2])
    assert re.fullmatch(
        r"EWC may keep the network from learning: the loss of task 1 does not fall \(\S+ at its beginning, "
        r"\S+ now, where tasks before it ended at \S+\), and it pulled with up to \S+ of the gradient; "
        r"try strength=100000 instead of 1e\+06\.",
        text,
    )


def test_a_proximal_rule_paralyses_too() -> None:
    (text,) = said(EWC(1e6, proximal=True, normalize=None))
    assert "the loss of task 1 does not fall" in text and "it changed the update" in text


def test_a_task_that_is_known_already_is_no_paralysis() -> None:
    assert said(EWC(1e6, normalize=None), tasks=[0, 0, 0], max_epochs=20) == []


def test_a_task_that_is_not_learned_for_another_reason_is_not_the_rules() -> None:
    class Stuck(Net):
        def on_train_start(self) -> None:
            for group in self.optimizers().param_groups:
                group["lr"] = 0.02 if self.current_epoch < EPOCHS else 0.0

    torch.manual_seed(0)
    stuck = Stuck(plain_net(), lambda p: torch.optim.Adam(p, lr=0.02))
    assert said(EWC(30.0, normalize=None), net=stuck) == []


def test_a_task_too_short_to_tell_says_nothing() -> None:
    assert said(EWC(1e6, normalize=None), max_epochs=4) == []


def test_a_boundary_found_late_tells_nothing_of_the_loss() -> None:
    """The latest batches are of the next task already."""

    class Late(FitBoundaries):
        def end(self, trainer: Any, as_of: Any = None) -> None:
            super().end(trainer, nullcontext())

    assert said(EWC(1e6, normalize=None), Late()) == []
    assert len(said(EWC(1e-3, normalize=None), Late())) == 1


def test_a_width_in_units_of_the_layer_is_what_advice_names() -> None:
    assert MESU(relative_std=0.01).advice(0.1) == "try relative_std=0.03 instead of 0.01"
    assert BGD(0.1).advice(0.1) == "try initial_std=0.3 instead of 0.1"


@pytest.mark.parametrize(("prior", "count"), [(1e-4, 1), (0.2, 0)])
def test_a_rule_that_owns_the_update_is_judged_by_its_first_task(prior: float, count: int) -> None:
    texts = said(MESU(1000, prior), tasks=[0], max_epochs=2 * EPOCHS)
    assert len(texts) == count
    if texts:
        assert "the loss of task 0 does not fall" in texts[0]
        assert texts[0].endswith("try prior_std=0.0003 instead of 0.0001.")


def test_a_stream_without_boundaries_need_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_watch, "FIRST_LOOK_STEPS", 55)
    seen: list[int] = []
    monkeypatch.setattr(scale_watch, "rank_zero_warn", lambda text: seen.append(trainer.global_step))
    trainer = make_trainer(MESU(1000, 1e-4), max_epochs=10)
    trainer.fit(model(), loader(*task(0, 8 * BATCHES)))
    assert seen == [55]


def test_a_rule_that_acts_from_the_beginning_is_judged_by_its_first_task_too() -> None:
    (text,) = said(make("streaming path", 1e3), tasks=[0])
    assert "the loss of task 0 does not fall" in text and "try strength=100 instead of 1000" in text


@pytest.mark.parametrize("rule", [*REWRITING, *OWNING, "rwalk", "kfac", "streaming fisher"])
def test_nothing_is_said_of_rules_that_work(rule: str) -> None:
    assert said(make(rule), tasks=[0, 1, 2]) == []


def test_after_a_task_too_short_to_tell_there_is_no_level() -> None:
    """The second may be one that is known already."""
    rule = MESU(1000, 1e-4)
    assert said(rule, tasks=[0], max_epochs=1) == []
    assert said(rule, tasks=[0]) == []


# -- logs --------------------------------------------------------------------------------------------


def rows(logger: CSVLogger) -> list[dict[str, str]]:
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        return list(csv.DictReader(file))


def test_the_ratio_is_logged_by_step_by_task_and_by_layer(tmp_path: Path) -> None:
    logger, rule, chain = CSVLogger(tmp_path), EWC(30.0, name="memory", normalize=None), BennaFusi()
    statistics = SynapseStatistics(every_n_steps=None)
    trainer = make_trainer(
        rule, chain, statistics, EpochBoundaries(1), logger=logger, log_every_n_steps=2, max_epochs=2,
    )  # fmt: skip
    trainer.fit(model(), loader(*task(0, 8 * BATCHES)))
    found = rows(logger)
    steps = [int(row["step"]) for row in found if row["cl/pull_ratio/memory"]]
    assert steps == list(range(1, 2 * BATCHES, 2))
    of_second = [float(row["cl/pull_ratio/memory"]) for row in found if row["cl/pull_ratio/memory"]][5:]
    tasks = [float(row["cl_task/pull_ratio/memory"]) for row in found if row["cl_task/pull_ratio/memory"]]
    assert tasks[0] == 0.0
    assert tasks[1] >= max(of_second) > 0
    assert [row for row in found if row["cl_task/update_ratio/benna_fusi"]]
    layers = statistics.latest["memory"]["pull_ratio"]
    assert list(layers) == ["all", "net.0", "net.2"]
    assert layers["all"]["ratio"] == pytest.approx(of_second[-1], rel=1e-5)
    low, high = sorted(layers[layer]["ratio"] for layer in ("net.0", "net.2"))
    assert low < layers["all"]["ratio"] < high
    row = next(row for row in reversed(found) if row["cl_synapses/memory/pull_ratio/net.0"])
    assert float(row["cl_synapses/memory/pull_ratio/all"]) == pytest.approx(of_second[-1], rel=1e-5)
    assert "update_ratio" in statistics.latest["benna_fusi"]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_1_2_4_8_of_a_task_are_measured(accumulate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    keep = scale_watch.ScaleWatch._keep

    def count(watch: Any, trainer: Any, measured: Any) -> None:
        if measured.changes_of(watch.rules[0]):
            kept.append(trainer.global_step)
        keep(watch, trainer, measured)

    monkeypatch.setattr(scale_watch.ScaleWatch, "_keep", count)
    trainer = make_trainer(
        EWC(1.0, normalize=None),
        EpochBoundaries(1),
        accumulate_grad_batches=accumulate,
        log_every_n_steps=1000,
        max_epochs=2,
    )
    trainer.fit(model(), loader(*task(0, 40 * accumulate)))
    assert kept == [1, 2, 4, 6, 7, 9]


# -- resumed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["EWC(1e-3)", "EWC(1e6)", "MESU(1000, 1e-4)"])
def test_of_a_task_resumed_in_the_middle_nothing_is_said(rule: str, tmp_path: Path) -> None:
    ahead = 1 if rule.startswith("EWC") else 0
    boundaries = {"every_n_epochs": 2 * EPOCHS} if not ahead else {"every_n_epochs": EPOCHS}
    keep = ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=1, save_top_k=-1)
    options: dict[str, Any] = {"max_epochs": 2 * EPOCHS, "enable_checkpointing": True}
    make_trainer(eval(rule), EpochBoundaries(**boundaries), keep, **options).fit(
        model(), loader(*task(0, 8 * BATCHES))
    )
    trainer = make_trainer(eval(rule), EpochBoundaries(**boundaries), **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checkpoint = tmp_path / f"epoch={EPOCHS * ahead}.ckpt"
        trainer.fit(model(), loader(*task(1, 8 * BATCHES)), ckpt_path=checkpoint, weights_only=True)
    texts = [str(w.message) for w in caught]
    assert not [text for text in texts if "hardly" in text or "may keep" in text]


def test_a_restored_owner_is_not_judged_without_a_level() -> None:
    """Its first task here may be one that it knows."""
    rule = MESU(1000, 1e-4)
    fit_tasks(model(), rule, tasks=1)
    again = MESU(1000, 1e-4)
    again.load_state_dict(rule.state_dict())
    assert said(again, tasks=[0]) == []
