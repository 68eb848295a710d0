"""Which validation loader is whose, where tasks are not learned in the loaders' order."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cl_callbacks import BatchBoundaries, EpochBoundaries, TaskEvaluation, TaskSequence, functional
from cl_callbacks.observation.task_record import TaskRecord
from tests.references import task_matrix as reference
from tests.small import Net, loader, make_trainer

TASKS, SAMPLES = 3, 32
X = torch.rand(TASKS * SAMPLES, 6, generator=torch.Generator().manual_seed(0))


class Told(Net):
    """Knows one task, that of the latest batch; what it knew before fades. No training, so no noise."""

    def __init__(self) -> None:
        super().__init__(net=nn.Linear(6, 3))
        self.register_buffer("known", torch.full((TASKS,), 0.1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        number = int(batch[1][0])
        self.known[:] = 0.9 * self.known.clone() + 0.01
        self.known[number] = 0.9
        return super().training_step((batch[0], batch[1] % 3), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        score = self.known[int(batch[1][0])]
        self.log("val_acc", score)
        self.log("val_loss", 1 - score)


def data_of(number: int) -> DataLoader:
    rows = slice(number * SAMPLES, (number + 1) * SAMPLES)
    return loader(X[rows], torch.full((SAMPLES,), number), batch_size=SAMPLES)


def fits(evaluation: TaskEvaluation, order: list[int], loaders: list[int], **options: Any) -> Trainer:
    """One fit for each task of an order."""
    model, trainer = Told(), make_trainer(evaluation, num_sanity_val_steps=0, **options)
    for task in order:
        trainer.fit(model, data_of(task), [data_of(k) for k in loaders])
        trainer.fit_loop.max_epochs += 1
    return trainer


def expected(order: list[int | None], loaders: int, sign: float = 1.0) -> dict[str, float]:
    """The figures by hand: of the scores in the loaders' order."""
    known, rows = torch.full((loaders,), 0.1).double(), []
    for task in [None, *order]:
        known = known if not rows else 0.9 * known + 0.01
        if task is not None:
            known[task] = 0.9
        rows.append((known if sign > 0 else 1 - known).tolist())
    found = reference.in_order(rows, order, sign)
    return {name.removesuffix("_accuracy"): value for name, value in found.items()}


ORDERS = [[0, 1, 2], [2, 0, 1], [1, 0], [2, 1, 0], [2, 0], [0, 1, 0, 1], [1, 1, 0], [2, 0, 1, 2, 0], [1]]


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("monitor", ["val_acc", "val_loss"])
def test_a_declared_order_gives_the_figures_by_hand(order: list[int], monitor: str) -> None:
    mode, sign = ("max", 1.0) if monitor == "val_acc" else ("min", -1.0)
    evaluation = TaskEvaluation(monitor, mode, order=order, table=False)  # type: ignore[arg-type]
    fits(evaluation, order, [0, 1, 2])
    found = {
        name: pytest.approx(value, nan_ok=True, abs=1e-6) for name, value in evaluation.results().items()
    }
    assert expected(order, TASKS, sign) == found
    columns = [*dict.fromkeys(order), *sorted({0, 1, 2} - set(order))]
    assert evaluation.report.names == [str(column) for column in columns]
    assert evaluation.matrix.shape == (max(len(order), TASKS) + 1, TASKS)


@pytest.mark.parametrize("order", [[2, 0, 1], [1, 0], [2, 1, 0], [0, 1, 0], [0, 1, 0, 2], [0, 2]], ids=str)
def test_another_order_than_that_of_the_loaders_is_noticed_and_may_be_told_afterwards(
    order: list[int],
) -> None:
    evaluation = TaskEvaluation(table=False)
    with pytest.warns(match=r"they seem to come in another: in task .* order=\[…\]"):
        trainer = fits(evaluation, order, [0, 1, 2])
    assert math.isnan(trainer.callback_metrics["cl_task/average"])
    with pytest.raises(ValueError, match=r"set the attribute `order`"):
        evaluation.results()
    evaluation.order = order
    found = {
        name: pytest.approx(value, nan_ok=True, abs=1e-6) for name, value in evaluation.results().items()
    }
    assert expected(order, TASKS) == found


def test_related_tasks_that_are_still_to_come_may_improve_more() -> None:
    """As with images that are rotated a little more in each task."""
    rows = [[0.1, 0.1, 0.1], [0.95, 0.93, 0.5], [0.93, 0.96, 0.75], [0.8, 0.93, 0.97]]
    for order, sentence in (
        ([0, 1, 2], None),
        ([2, 1, 0], "the score on loader 0 improved, not that on 2"),
    ):
        record = TaskRecord(higher_is_better=True)
        record.assumed, record.ends = True, [1, 2, 3]
        for learned, row in enumerate(rows):
            if learned:
                record.begin(learned - 1)
            record.keep(learned, [row[order.index(loader)] for loader in range(3)])
        assert (record.mismatch() is None) if sentence is None else sentence in str(record.mismatch())


@pytest.mark.parametrize(("order", "loaders"), [([0, 1, 2], [0, 1, 2]), ([0, 1], [0, 1, 2]), ([0], [0])])
def test_the_loaders_order_needs_no_word(order: list[int], loaders: list[int]) -> None:
    evaluation = TaskEvaluation(table=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*TaskEvaluation.*")
        fits(evaluation, order, loaders)
    found = {
        name: pytest.approx(value, nan_ok=True, abs=1e-6) for name, value in evaluation.results().items()
    }
    assert expected(order, len(loaders)) == found


def test_more_tasks_than_loaders_are_not_guessed() -> None:
    evaluation = TaskEvaluation(table=False)
    with pytest.warns(
        match="nobody says which were learned again: forgetting, backward transfer and learning"
    ):
        fits(evaluation, [0, 0, 0], [0])
    results = evaluation.results()
    assert results["average"] == pytest.approx(0.9)
    assert all(math.isnan(results[name]) for name in ("forgetting", "backward_transfer", "learning"))
    assert evaluation.matrix.shape == (4, 1)
    declared = TaskEvaluation(table=False, order=[0, None, 0])
    fits(declared, [0, 1, 0], [0])
    assert declared.results()["learning"] == pytest.approx(0.9)
    assert math.isnan(declared.results()["forgetting"])  # the only task was just learned


def test_a_task_without_a_loader_makes_others_be_forgotten() -> None:
    evaluation = TaskEvaluation(table=False, order=[0, None])
    fits(evaluation, [0, 2], [0, 1])
    assert evaluation.results()["forgetting"] == pytest.approx(0.9 - (0.81 + 0.01))


class Sequence(TaskSequence):
    """The tasks as data; ``current_task`` may be set."""

    def __init__(self, **options: Any) -> None:
        tasks = [dict.fromkeys(("train", "validation"), data_of(k).dataset) for k in range(TASKS)]
        super().__init__(tasks, batch_size=SAMPLES, **options)


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_the_data_module_says_which_task_it_trains_on(order: list[int]) -> None:
    evaluation, data, model = TaskEvaluation(table=False), Sequence(), Told()
    trainer = make_trainer(evaluation, num_sanity_val_steps=0)
    for task in order:
        data.current_task = task
        trainer.fit(model, data)
        trainer.fit_loop.max_epochs += 1
        trainer.should_stop = False
    found = {
        name: pytest.approx(value, nan_ok=True, abs=1e-6) for name, value in evaluation.results().items()
    }
    assert expected(order, TASKS) == found


def test_more_boundaries_than_tasks_of_the_data() -> None:
    """Each task of the sequence is divided in two."""
    evaluation = TaskEvaluation(table=False)
    options = {"max_epochs": 2 * TASKS, "reload_dataloaders_every_n_epochs": 1, "num_sanity_val_steps": 0}
    make_trainer(evaluation, EpochBoundaries(1), **options).fit(Told(), Sequence(epochs_per_task=2))
    assert evaluation.record.order == [0, 0, 1, 1, 2, 2]
    assert evaluation.matrix.shape == (7, 3)
    found = {name: pytest.approx(value, abs=1e-6) for name, value in evaluation.results().items()}
    assert expected([0, 0, 1, 1, 2, 2], TASKS) == found


def stream(numbers: list[int]) -> DataLoader:
    rows = torch.cat([X[:SAMPLES] for _ in numbers])
    labels = torch.tensor(numbers).repeat_interleave(SAMPLES)
    return loader(rows, labels, batch_size=SAMPLES)


@pytest.mark.parametrize("order", ORDERS[:-3], ids=str)
def test_numbers_in_the_batches(order: list[int]) -> None:
    evaluation = TaskEvaluation(table=False)
    trainer = make_trainer(evaluation, BatchBoundaries(key=1), num_sanity_val_steps=0)
    trainer.fit(Told(), stream(order), [data_of(k) for k in range(TASKS)])
    found = {
        name: pytest.approx(value, nan_ok=True, abs=1e-6) for name, value in evaluation.results().items()
    }
    assert expected(order, TASKS) == found


def test_numbers_in_the_batches_that_are_of_no_loader_are_refused_before_their_first_step() -> None:
    trainer = make_trainer(TaskEvaluation(), BatchBoundaries(key=1), num_sanity_val_steps=0)
    with pytest.raises(MisconfigurationException, match=r"task number 2, and there are 2 .* order=\[…\]"):
        trainer.fit(Told(), stream([0, 2]), [data_of(0), data_of(1)])
    assert trainer.global_step == 1
    told = TaskEvaluation(order=[0, 1], table=False)  # the second loader has the data of the task number 2
    trainer = make_trainer(told, BatchBoundaries(key=1), num_sanity_val_steps=0)
    trainer.fit(Told(), stream([0, 2]), [data_of(0), data_of(2)])
    assert told.results()["average"] == pytest.approx((0.82 + 0.9) / 2)


def test_an_order_that_does_not_fit_is_refused_before_a_step() -> None:
    with pytest.raises(MisconfigurationException, match="names the validation loader 3, and there are 3"):
        fits(TaskEvaluation(order=[0, 3]), [0], [0, 1, 2])
    late = TaskEvaluation(order=[0, 1], table=False)
    with pytest.raises(MisconfigurationException, match=r"begins after the 2 of order=\[0, 1\]"):
        fits(late, [0, 1, 2], [0, 1, 2])
    assert len(late.record.ends) == 2
    with pytest.raises(MisconfigurationException, match="the data module trains on task 0"):
        make_trainer(TaskEvaluation(order=[1]), num_sanity_val_steps=0).fit(Told(), Sequence())
    for wrong in ([-1], [0.5], ["a"], [True]):
        with pytest.raises(ValueError, match="order must"):
            TaskEvaluation(order=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 tasks have begun"):
        late.order = [0]


def test_a_resumed_run_keeps_the_order(tmp_path: Path) -> None:
    class Data(LightningDataModule):
        """Another data module than this package's, which says what it trains on."""

        current_task = 0

        def train_dataloader(self) -> DataLoader:
            self.current_task = [2, 0, 1][self.trainer.current_epoch]
            return data_of(self.current_task)

        def val_dataloader(self) -> list[DataLoader]:
            return [data_of(k) for k in range(TASKS)]

    def trainer(evaluation: TaskEvaluation, epochs: int) -> Trainer:
        checkpoint = ModelCheckpoint(tmp_path, save_last=True, save_on_train_epoch_end=True)
        options = {"reload_dataloaders_every_n_epochs": 1, "num_sanity_val_steps": 0, "max_epochs": epochs}
        return make_trainer(evaluation, EpochBoundaries(1), checkpoint, enable_checkpointing=True, **options)

    trainer(TaskEvaluation(table=False), 2).fit(Told(), Data())
    resumed = TaskEvaluation(table=False)
    trainer(resumed, 3).fit(Told(), Data(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert resumed.record.begun == [2, 0, 1]
    found = {name: pytest.approx(value, abs=1e-6) for name, value in resumed.results().items()}
    assert expected([2, 0, 1], TASKS) == found


def test_files_and_table_of_a_task_that_is_learned_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation, logger = TaskEvaluation(order=[1, 0, 1], names=["red", "green"]), CSVLogger(tmp_path)
    fits(evaluation, [1, 0, 1], [0, 1], logger=logger)
    written = json.loads((tmp_path / "lightning_logs" / "version_0" / "task_matrix.json").read_text())
    assert (written["names"], written["order"]) == (["green", "red"], [0, 1, 0])
    assert len(written["matrix"]) == 4
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "green" in line or "red" in line]
    assert [row[:2] for row in rows if row[0] in "01"] == [["0", "green"], ["1", "red"], ["0", "green"]]
    assert list((tmp_path / "lightning_logs" / "version_0" / "figures").glob("*.png"))
    order = written["order"]
    assert functional.forgetting(evaluation.matrix, order=order).item() == evaluation.results()["forgetting"]
