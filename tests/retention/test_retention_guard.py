"""The guard on a module whose scores are known functions of its weights."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from cl_callbacks import (
    EWC,
    L2SP,
    Cascade,
    RetentionGuard,
    SynapticIntelligence,
    TaskEvaluation,
    WeightMerging,
)
from tests.every_rule import same
from tests.processes import train_together
from tests.resumable import Resumable
from tests.retention.scripted import TARGETS, Scripted, fit
from tests.small import Net, loader, make_trainer, task, weights

LEAST = 1 / 64  # what is left of the interval after 8 validations


def guard(tolerance: float = 0.36, **options: Any) -> RetentionGuard:
    return RetentionGuard("score", "max", tolerance, **options)


def closed_form(tolerance: float) -> float:
    """(1 - a)^2 (t_1 - t_0)^2 = tolerance."""
    return 1 - math.sqrt(tolerance) / abs(TARGETS[1] - TARGETS[0])


def scores(model: Scripted) -> list[float]:
    return [model.score(k).item() for k in range(len(TARGETS))]


@pytest.mark.parametrize("tolerance", [0.0, 0.01, 0.36, 3.9])
def test_weights_are_drawn_back_just_far_enough(tolerance: float) -> None:
    model, rule = Scripted(), guard(tolerance)
    fit(rule, model=model)
    (decision,) = rule.decisions
    share = closed_form(tolerance)
    assert share - 1e-6 <= decision["share"] <= share + LEAST
    assert model.shared.item() == pytest.approx(TARGETS[1] + decision["share"] * (TARGETS[0] - TARGETS[1]))
    assert decision["lost"] == pytest.approx(4.0)
    assert decision["lost_after"] == pytest.approx(1 - scores(model)[0], abs=1e-6)
    assert decision["lost_after"] <= tolerance + 1e-5


def test_heads_that_no_task_before_has_trained_stay() -> None:
    model = Scripted()
    fit(guard(), model=model)
    assert [head.item() for head in model.heads] == [1.0, 1.0, 0.0]


def test_of_a_matrix_only_the_rows_behind_the_last_trained_one_are_new() -> None:
    class Wide(Scripted):
        """Task 0 trains one weight of the second row, task 1 all others."""

        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Parameter(torch.full((3, 2), 5.0, dtype=torch.float64))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            used = torch.zeros(3, 2)
            used[1, 0] = 1
            if int(batch[0][0]):
                used = 1 - used
            return super().training_step(batch, batch_idx) + 0.5 * ((self.wide - 1) ** 2 * used).sum()

    model, rule = Wide(), guard()
    fit(rule, model=model)
    back = 1 + 4 * rule.decisions[0]["share"]
    expected = torch.tensor([[back, back], [1.0, back], [1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(model.wide.detach(), expected)


def test_the_new_task_counts_as_learned_with_what_it_has_afterwards() -> None:
    model, rule = Scripted(), guard()
    fit(rule, model=model)
    assert rule.learned == {0: pytest.approx(1.0), 1: pytest.approx(scores(model)[1], abs=1e-6)}


def test_every_old_task_is_held_and_no_smaller_share_would_do() -> None:
    model, rule = Scripted(), guard(1.0)
    fit(rule, model=model, max_epochs=2)
    before, learned = model.shared.item(), dict(rule.learned)
    model, rule = Scripted(), guard(1.0)
    fit(rule, model=model, max_epochs=3)
    shares = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    shared = TARGETS[2] + shares * (before - TARGETS[2])
    lost = [learned[k] - (1 - (shared - TARGETS[k]) ** 2) for k in range(2)]
    least = shares[torch.stack(lost).amax(0) <= 1.0].min().item()
    assert least - 1e-4 <= rule.decisions[1]["share"] <= least + LEAST


def test_within_the_tolerance_training_is_the_same_bit_for_bit() -> None:
    class Scored(Net):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("score", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def trained(*callbacks: Callback) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model, data = Scored(), [loader(*task(k)) for k in range(2)]
        trainer = make_trainer(*callbacks, EWC(10.0), num_sanity_val_steps=0)
        for k in range(2):
            trainer.fit_loop.max_epochs = k + 1
            trainer.fit(model, loader(*task(k), shuffle=True), data)
        return dict(model.state_dict())

    rule = guard(1.0)
    assert same(trained(), trained(rule))
    assert [decision["share"] for decision in rule.decisions] == [0.0]


@pytest.mark.parametrize("validations", [2, 3, 5])
def test_no_more_validations_than_allowed(validations: int, tmp_path: Path) -> None:
    model, rule = Scripted(), guard(0.01, validations=validations)
    fit(rule, model=model, logger=CSVLogger(tmp_path))
    # One before the first step, and one at the end of the first task, which has none before it.
    assert model.validations == 2 + validations == 2 + rule.decisions[0]["validations"]
    assert rule.decisions[0]["lost_after"] <= 0.01
    logged = next(tmp_path.rglob("metrics.csv")).read_text()
    assert all(f"cl/guard/{key}" in logged for key in ("lost", "lost_after", "share", "validations"))


def test_old_weights_that_hold_no_more_are_said_to() -> None:
    class Forgetful(Scripted):
        """Its first score falls by 1 when a second task was learned, whatever the weights are."""

        def score(self, k: int) -> Tensor:
            return super().score(k) - float(k == 0 and self.trainer.current_epoch > 0)

    model, rule = Forgetful(), guard()
    with pytest.warns(UserWarning, match="no share of the old weights that was tried keeps score"):
        fit(rule, model=model)
    assert rule.decisions[0]["share"] == 1.0  # where the loss is least
    assert model.shared.item() == TARGETS[0]


def test_a_validation_that_fails_leaves_the_weights_as_they_were() -> None:
    class Failing(Scripted):
        def on_validation_start(self) -> None:
            super().on_validation_start()
            if self.validations == 4:
                raise RuntimeError("no more")

    model = Failing()
    with pytest.raises(RuntimeError, match="no more"):
        fit(guard(), model=model)
    assert model.shared.item() == TARGETS[1]


@pytest.mark.parametrize("first", [True, False], ids=["guard first", "guard last"])
def test_other_rules_meet_the_weights_that_the_guard_leaves(first: bool) -> None:
    rule, model = guard(), Scripted()
    l2, path, evaluation = L2SP(0.0), SynapticIntelligence(0.0), TaskEvaluation("score", table=False)
    others: list[Callback] = [l2, path, evaluation]
    fit(*([rule, *others] if first else [*others, rule]), model=model)
    assert rule.decisions[0]["share"] > 0
    for other in (l2, path):
        anchors = dict(zip(other.synapses.view.names, other.synapses.view["anchor"], strict=True))
        torch.testing.assert_close(anchors["shared"], model.shared.detach())
    assert evaluation.matrix[2].tolist() == pytest.approx(scores(model), abs=1e-6)


@pytest.mark.parametrize("first", [True, False], ids=["guard first", "guard last"])
def test_merged_weights_are_judged_and_drawn_back(first: bool) -> None:
    rule, merging, model = guard(0.5), WeightMerging(), Scripted()
    callbacks: list[Callback] = [rule, merging] if first else [merging, rule]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*begun anew.*")
        fit(*callbacks, model=model, max_epochs=3)
    merged = (TARGETS[0] + TARGETS[1]) / 2
    assert rule.decisions[0]["lost"] == pytest.approx((merged - TARGETS[0]) ** 2)
    old = dict(zip(merging.synapses.view.names, merging.synapses.view["old"], strict=True))
    assert torch.equal(old["shared"], model.shared.detach())


def test_strengths_are_raised_for_the_tasks_to_come() -> None:
    ewc, l2, model = EWC(3.0, normalize=None), L2SP(1e-9), Scripted()
    rule = guard(action="strengthen", rules=["l2_sp"], factor=4.0)
    fit(rule, l2, model=model, max_epochs=2)
    assert l2.strength == 4e-9 == rule.decisions[0]["strength/l2_sp"]
    assert model.shared.item() == pytest.approx(TARGETS[1])  # not repaired
    with pytest.raises(MisconfigurationException, match=r"rules=lwf are not.*there are ewc, l2_sp"):
        fit(guard(action="strengthen", rules=["lwf"]), ewc, L2SP(1.0))


def test_the_training_is_stopped() -> None:
    model, rule = Scripted(), guard(action="stop")
    with pytest.warns(UserWarning, match="the training is stopped"):
        trainer = fit(rule, model=model, max_epochs=3)
    assert trainer.current_epoch == 2
    assert model.shared.item() == TARGETS[1]
    with pytest.warns(UserWarning, match="this fit ends before its first step"):
        trainer.fit(model)
    assert trainer.global_step == 2


def test_statistics_are_drawn_back_if_tasks_before_have_used_them() -> None:
    class Normed(Scripted):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.own = nn.BatchNorm1d(1, momentum=1.0), nn.BatchNorm1d(1, momentum=1.0)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            k = int(batch[0][0])
            self.used(torch.tensor([[1.0], [3.0]]) + 4 * k)
            if k:
                self.own(torch.tensor([[1.0], [3.0]]))
            return super().training_step(batch, batch_idx)

    model, rule = Normed(), guard(exclude="used|own")
    fit(rule, model=model)
    assert model.used.running_mean.item() == 6.0  # excluded
    model, rule = Normed(), guard()
    fit(rule, model=model)
    share = rule.decisions[0]["share"]
    assert model.used.running_mean.item() == pytest.approx(6.0 - share * 4.0)
    assert model.own.running_mean.item() == 2.0


class InSteps(Scripted):
    """Half of the way in each step; can be resumed in mid-epoch."""

    def __init__(self) -> None:
        super().__init__(steps=32)

    def train_dataloader(self) -> Any:
        return Resumable(super().train_dataloader().dataset)


@pytest.mark.parametrize("at", [8, 20], ids=["at the end of a task", "within a later task"])
@pytest.mark.parametrize("action", ["interpolate", "strengthen"])
def test_resumes_exactly(action: Any, at: int, tmp_path: Path) -> None:
    def run(resumed: Path | None) -> tuple[Any, ...]:
        if at == 8:  # when the task has ended, and not after its last step
            when: dict[str, Any] = {"every_n_epochs": 1, "save_on_train_epoch_end": True}
        else:
            when = {"every_n_train_steps": at}
        saving = [] if resumed else [ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, **when)]
        model, rule, l2 = InSteps(), guard(0.01, action=action), L2SP(0.5)
        options: dict[str, Any] = {"max_epochs": 3, "enable_checkpointing": resumed is None}
        fit(rule, l2, *saving, model=model, resumed=resumed, **options)
        return weights(model), rule.state_dict(), l2.strength

    whole = run(None)
    again = run(next(tmp_path.glob(f"step={at}.ckpt")))
    assert torch.equal(whole[0], again[0])
    assert same(whole[1]["synapses"], again[1]["synapses"])
    for part in ("decisions", "scores", "strengths"):  # scores with those learned, and the open task
        assert whole[1][part] == again[1][part]
    assert whole[2] == again[2]
    assert len(whole[1]["decisions"]) == 2


def in_two_processes(rank: int, folder: Path) -> None:
    model, rule = Scripted(apart=0.5), guard(0.36)
    fit(rule, model=model, max_epochs=3, strategy="ddp_find_unused_parameters_true", devices=2)
    torch.save([weights(model), rule.decisions], folder / f"{rank}.pt")


def test_two_processes_decide_alike(tmp_path: Path) -> None:
    train_together(2, in_two_processes, tmp_path)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    alone, rule = Scripted(), guard(0.36)  # a common distance from the target changes no loss
    fit(rule, model=alone, max_epochs=3)
    torch.testing.assert_close(found[0][0], weights(alone), rtol=0, atol=1e-6)


# -- what cannot work ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tolerance": -0.1}, "tolerance must be a finite number, at least 0"),
        ({"tolerance": math.nan}, "tolerance must be a finite number, at least 0"),
        ({"action": "pray"}, "action must be 'interpolate', 'strengthen' or 'stop'"),
        ({"rules": ["ewc"]}, "rules is for action='strengthen'"),
        ({"rules": "ewc", "action": "strengthen"}, "rules must be a list, each a text"),
        ({"factor": 1.0}, "factor must be a finite number above 1"),
        ({"validations": 1}, "validations must be a whole number, at least 2"),
        ({"order": ["0"]}, "order must be a list, each a whole number, at least 0"),
    ],
)
def test_arguments_that_cannot_work(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        guard(**options)
    with pytest.raises(ValueError, match="mode must be 'max' or 'min'"):
        RetentionGuard("score", "best", 0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("callbacks", "options", "sentence"),
    [
        ([guard()], {"limit_val_batches": 0}, "and there is none: give `fit` one validation loader per task"),
        ([RetentionGuard("val_f1", "max", 0.1)], {}, "logs no 'val_f1/dataloader_idx_0'; it logs score"),
        ([guard(), guard(name="other")], {}, "this Trainer has two"),
        ([guard(), Cascade(3, parameters="matrix")], {}, "averages are none of the values"),
        ([guard(action="strengthen")], {}, "none is in the callback list; there are none"),
        ([guard(action="strengthen"), EWC(0.0)], {}, "ewc of action='strengthen' has strength=0"),
        ([guard(order=[0, 5])], {}, "is number 5, counted from 0"),
    ],
)
def test_trainers_that_cannot_work(callbacks: list[Callback], options: dict[str, Any], sentence: str) -> None:
    class Untrained(Scripted):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(4, 4))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise AssertionError("it is too late")

    with pytest.raises(MisconfigurationException, match=sentence):
        fit(*callbacks, model=Untrained(), **options)


def test_tasks_in_another_order_than_the_loaders_are_noticed() -> None:
    class Backwards(Scripted):
        def __init__(self) -> None:
            super().__init__(targets=(1.0, -3.0, -0.5))

        def score(self, k: int) -> Tensor:
            return super().score(len(TARGETS) - 1 - k)

    model, rule = Backwards(), guard()
    with pytest.warns(UserWarning, match="the score on another loader improved, not that on loader 0"):
        fit(rule, model=model)
    assert not rule.learned
    model, rule = Backwards(), guard(order=[2, 1, 0])
    fit(rule, model=model)
    assert rule.decisions[0]["loader"] == 2
    assert rule.decisions[0]["share"] > 0


def test_each_fit_may_bring_the_loader_of_its_task() -> None:
    class Growing(Scripted):
        """One fit for each task, with the loaders of the tasks so far."""

        fits = 0

        def train_dataloader(self) -> Any:
            return loader(torch.tensor([float(self.fits - 1)]))

        def val_dataloader(self) -> Any:
            return super().val_dataloader()[: self.fits]

    model, rule = Growing(), guard()
    trainer = make_trainer(rule, num_sanity_val_steps=0)
    for number in (1, 2):
        model.fits = trainer.fit_loop.max_epochs = number
        trainer.fit(model)
    assert rule.decisions[0]["share"] > 0
    assert set(rule.learned) == {0, 1}


def test_a_task_without_a_loader_is_said_to_be_unguarded() -> None:
    class Few(Scripted):
        def val_dataloader(self) -> Any:
            return super().val_dataloader()[:1]

    model, rule = Few(), RetentionGuard("score", "max", 0.36)
    with pytest.warns(UserWarning, match="task 1 begins, and there are 1 validation loaders"):
        fit(rule, model=model)
    assert rule.decisions[0]["share"] > 0
