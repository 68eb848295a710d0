"""The end of a task that fails leaves all that remember without the task, and they go on."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from cl_callbacks import DriftBoundaries, EpochBoundaries, RetentionGuard, SynapticCallback, TaskEvaluation
from tests.every_rule import COUNTING_TASKS, RULES, make, same
from tests.small import Net, loader, make_trainer, task, weights


class Scored(Net):
    """With one validation loader for each of two tasks."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def val_dataloader(self) -> Any:
        return [loader(*task(0)), loader(*task(1))]


class BeforeTheEnd(Callback):
    """Keeps what all that remember have when a task is about to end."""

    def on_task_ending(self, trainer: Any, pl_module: Any, task: int) -> None:
        self.found = everything(trainer.callbacks, pl_module)


def everything(callbacks: list[Any], module: Net) -> dict[str, Any]:
    states = {type(c).__name__: c.state_dict() for c in callbacks}
    return copy.deepcopy({"weights": weights(module), "buffers": dict(module.named_buffers()), **states})


def have_fail(rule: SynapticCallback, after: bool) -> None:
    """Lets the next end of a task run out of memory, when the rule has consolidated it or before."""
    consolidate = rule.consolidate

    def fail(*arguments: Any) -> bool:
        if after:
            consolidate(*arguments)
        raise torch.OutOfMemoryError("CUDA out of memory")

    rule.consolidate = fail  # type: ignore[method-assign]


def assert_all_or_none(rules: list[Any], failing: int, after: bool) -> None:
    """One task that ends, one whose end fails, and the same objects in another Trainer."""
    before, boundaries, evaluation = BeforeTheEnd(), EpochBoundaries(1), TaskEvaluation("val_acc")
    callbacks, module = [before, *rules, boundaries, evaluation], Scored()
    trainer = make_trainer(*callbacks)
    trainer.fit(module, loader(*task(0)))
    have_fail(rules[failing], after)
    trainer.fit_loop.max_epochs += 1
    with pytest.raises(torch.OutOfMemoryError):
        trainer.fit(module, loader(*task(1)))
    found = everything(trainer.callbacks, module)
    for name, kept in before.found.items():
        assert same(found[name], kept), name
    assert (boundaries.task, boundaries.task_is_open, boundaries.looking_back) == (1, True, False)
    assert len(evaluation.record.ends) == 1
    del rules[failing].consolidate
    make_trainer(*callbacks).fit(module, loader(*task(1)))
    assert boundaries.task == len(evaluation.record.ends) == len(evaluation.record.begun) == 2
    for rule in rules:
        assert rule.next_task == 2
        assert rule.tasks in (0, 2)
    assert weights(module).isfinite().all()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_that_fails(rule: str, after: bool) -> None:
    memory = make(rule)
    assert_all_or_none([memory], 0, after)
    assert memory.tasks == (2 if rule in COUNTING_TASKS else 0)


THREES = [
    ("ewc", "si", "mas"),
    ("kfac", "rwalk", "l2sp"),
    ("si", "merging", "ewc"),
    ("er", "lwf", "ewc each"),
    ("rwalk", "merging", "der"),
    ("mesu", "er past", "merging steps"),
    ("benna-fusi", "streaming path", "mas mean"),
]


@pytest.mark.slow
@pytest.mark.parametrize("failing", range(3))
@pytest.mark.parametrize("three", THREES, ids=" + ".join)
def test_one_of_three_rules_that_fails(three: tuple[str, ...], failing: int) -> None:
    assert_all_or_none([make(rule) for rule in three], failing, after=True)


@pytest.mark.parametrize("failing", [0, 1])
def test_the_weights_that_a_guard_has_drawn_back_are_as_they_were(failing: int) -> None:
    guard = RetentionGuard("val_acc", "max", tolerance=0.0, order=[0, 1])
    assert_all_or_none([make("ewc"), guard], failing, after=True)


def test_a_task_that_begins_anew_with_other_boundaries_is_the_same_task() -> None:
    """As after an error with the default boundaries, of which each Trainer has its own."""
    rule, evaluation, module = make("ewc"), TaskEvaluation("val_acc"), Scored()
    guard = RetentionGuard("val_acc", "max", tolerance=1.0)
    have_fail(rule, after=True)
    with pytest.raises(torch.OutOfMemoryError):
        make_trainer(rule, guard, evaluation).fit(module, loader(*task(0)))
    del rule.consolidate
    for index in range(2):
        make_trainer(rule, guard, evaluation).fit(module, loader(*task(index)))
        assert evaluation.record.begun == list(range(index + 1))
        assert sorted(guard.learned) == list(range(index + 1))
    assert len(evaluation.record.ends) == rule.tasks == guard.tasks == 2


def test_a_failing_evaluation_leaves_the_rules_without_the_task() -> None:
    class Failing(TaskEvaluation):
        def _add_row(self, *arguments: Any) -> None:
            raise RuntimeError("a metric's own")

    rule, before, module = make("ewc"), BeforeTheEnd(), Scored()
    with pytest.raises(RuntimeError, match="own"):
        make_trainer(before, rule, Failing("val_acc")).fit(module, loader(*task(0)))
    assert same(everything([rule], module)["EWC"], before.found["EWC"])
    assert rule.tasks == rule.next_task == 0


def test_a_boundary_that_is_found_late_and_fails_leaves_the_present_weights() -> None:
    class Late(DriftBoundaries):
        """Ends the task three batches late, when the sixth has been trained on."""

        def see(self, trainer: Any, batch: int, value: float) -> None:
            self.trained = weights(trainer.lightning_module)
            self._onset = max(0, batch - 2)
            if batch == 5:
                self.found.append(None)  # type: ignore[arg-type]
                self.found.pop()
                self.end(trainer, as_of=self._as_of_onset(trainer))

    boundaries = Late(min_task_batches=2, check_every_n_batches=1, snapshot_every_n_batches=1)
    rules, module = [make("si"), make("merging"), make("ewc"), make("er")], Net()
    states: list[Any] = []

    class BeforeTheBatch(Callback):
        def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
            states[:] = [copy.deepcopy(rule.synapses.state_dict()) for rule in rules]

    have_fail(rules[2], after=True)
    with pytest.raises(torch.OutOfMemoryError):
        make_trainer(BeforeTheBatch(), *rules, boundaries, max_epochs=3).fit(module, loader(*task(0)))
    assert torch.equal(weights(module), boundaries.trained)
    assert [rule.tasks for rule in rules] == [0] * 4
    assert boundaries.task == 0
    assert not boundaries.looking_back
    for rule, state in zip(rules, states, strict=True):
        assert same(rule.synapses.state_dict(), state), rule
