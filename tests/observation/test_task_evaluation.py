"""The task matrix as TaskEvaluation measures it."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.utils.data import DataLoader

from cl_callbacks import (
    EWC,
    BatchBoundaries,
    DriftBoundaries,
    EpochBoundaries,
    FitBoundaries,
    TaskEvaluation,
    TaskSequence,
)
from cl_callbacks.functional.task_matrix import average_accuracy, forgetting
from cl_callbacks.guards.whole_file import whole_file
from tests.processes import train_together
from tests.settings.processes import fsdp2
from tests.small import Net, loader, make_trainer, plain_net, task, weights

TASKS = 3


class Scored(Net):
    """Counts its right answers, and remembers at which weights."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.at: list[Tensor] = []

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        x, y = batch
        outputs = self(x)
        self.log("val_acc", (outputs.argmax(1) == y).float().mean())
        self.log("val_loss", F.cross_entropy(outputs, y))

    def on_validation_start(self) -> None:
        self.at.append(weights(self))


def sequence(**options: Any) -> TaskSequence:
    data = [dict.fromkeys(("train", "validation"), loader(*task(k)).dataset) for k in range(TASKS)]
    return TaskSequence(data, **({"batch_size": 8} | options))


def fit(
    *callbacks: Callback,
    model: LightningModule | None = None,
    data: TaskSequence | None = None,
    **options: Any,
) -> Trainer:
    seed_everything(0, verbose=False)
    options = {"max_epochs": 2 * TASKS, "reload_dataloaders_every_n_epochs": 1} | options
    trainer = make_trainer(*callbacks, num_sanity_val_steps=0, **options)
    trainer.fit(model or Scored(), data or sequence())
    return trainer


class Unshuffled(TaskSequence):
    """Whose order needs no random numbers."""

    def __init__(self) -> None:
        super().__init__(sequence().tasks, batch_size=8)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(super().train_dataloader().dataset, batch_size=8)


def accuracies(model: Scored, at: Tensor) -> list[float]:
    """By hand, at given weights."""
    other = Scored()
    other.load_state_dict(model.state_dict())  # with the buffers
    torch.nn.utils.vector_to_parameters(at, other.parameters())
    other.eval()
    with torch.no_grad():
        pairs = [task(k) for k in range(TASKS)]
        return [(other(x).argmax(1) == y).float().mean().item() for x, y in pairs]


class AtEnds(Callback):
    """What a user would measure by hand at the end of each task."""

    def __init__(self) -> None:
        self.rows: list[list[float]] = []

    def on_task_end(self, trainer: Trainer, pl_module: Any, task: int) -> None:
        self.rows.append(accuracies(pl_module, weights(pl_module)))


@pytest.mark.parametrize("every", [1, 2, 5], ids=lambda n: f"validation every {n} epochs")
def test_the_matrix_is_what_one_would_measure_by_hand(every: int) -> None:
    by_hand, evaluation = AtEnds(), TaskEvaluation("val_acc")
    model = Scored()
    start = weights(model)
    fit(evaluation, EpochBoundaries(2), by_hand, model=model, check_val_every_n_epoch=every)
    assert evaluation.matrix.shape == (TASKS + 1, TASKS)
    torch.testing.assert_close(evaluation.matrix[1:], torch.tensor(by_hand.rows).double())
    fresh = Scored()
    torch.nn.utils.vector_to_parameters(start, fresh.parameters())
    assert evaluation.matrix[0].tolist() == pytest.approx(accuracies(fresh, start))
    assert evaluation.record.ends == [6, 12, 18]


def test_a_validation_at_the_tasks_end_is_not_repeated() -> None:
    model = Scored()
    fit(TaskEvaluation(untrained=False), EpochBoundaries(2), model=model, check_val_every_n_epoch=2)
    assert len(model.at) == TASKS


def test_training_goes_on_as_if_nobody_had_looked() -> None:
    plain, watched = Scored(), Scored()
    watched.load_state_dict(plain.state_dict())
    fit(EWC(10.0), EpochBoundaries(2), model=plain, check_val_every_n_epoch=5)
    fit(TaskEvaluation(), EWC(10.0), EpochBoundaries(2), model=watched, check_val_every_n_epoch=5)
    assert torch.equal(weights(plain), weights(watched))


def test_results_are_the_fields_figures() -> None:
    evaluation = TaskEvaluation()
    fit(evaluation, EpochBoundaries(2))
    results = evaluation.results()
    assert results["average"] == average_accuracy(evaluation.matrix).item()
    assert results["forgetting"] == forgetting(evaluation.matrix).item()
    assert not any(math.isnan(value) for value in results.values())


def test_a_loss_is_better_when_it_is_lower() -> None:
    evaluation = TaskEvaluation("val_loss", mode="min")
    fit(evaluation, EpochBoundaries(2))
    assert evaluation.results()["forgetting"] == forgetting(evaluation.matrix, False).item()
    assert evaluation.results()["forgetting"] != forgetting(evaluation.matrix).item()


def test_one_fit_for_each_task() -> None:
    by_hand, evaluation, model = AtEnds(), TaskEvaluation(table=False), Scored()
    trainer = make_trainer(by_hand, evaluation, num_sanity_val_steps=0)
    loaders = [loader(*task(k)) for k in range(TASKS)]
    for index in range(TASKS):
        trainer.fit(model, loaders[index], loaders)
        trainer.fit_loop.max_epochs += 1
    torch.testing.assert_close(evaluation.matrix[1:], torch.tensor(by_hand.rows).double())
    assert not evaluation.matrix[0].isnan().any()


def test_a_task_that_early_stopping_ends_has_its_row() -> None:
    class Stopping(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            trainer.should_stop = trainer.global_step == 2

    by_hand, evaluation = AtEnds(), TaskEvaluation(table=False)
    stop = EarlyStopping("train_loss", patience=1, check_on_train_epoch_end=True, min_delta=100.0)
    fit(evaluation, stop, by_hand, FitBoundaries())
    assert evaluation.matrix[1].tolist() == pytest.approx(by_hand.rows[0])
    assert evaluation.matrix[2:].isnan().all()


def test_a_boundary_that_is_found_late_is_scored_as_of_then() -> None:
    class Loud(Scored):
        """Its loss rises for good at batch 120."""

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            noise = torch.rand(1, generator=torch.Generator().manual_seed(batch_idx)).item()
            return loss * 0.01 + (10.0 if batch_idx >= 120 else 1.0) + 0.1 * noise

    by_hand, evaluation = AtEnds(), TaskEvaluation(table=False)
    boundaries = DriftBoundaries(min_task_batches=40, recent_samples=8)
    data = [loader(*task(k)) for k in range(TASKS)]
    model, trainer = Loud(), make_trainer(evaluation, boundaries, by_hand, num_sanity_val_steps=0)
    trainer.fit(model, DataLoader(loader(*task(0, samples=400)).dataset, batch_size=2), data)
    assert [found.task for found in boundaries.found] == [0]
    rows = [*by_hand.rows, accuracies(model, weights(model))]  # the second task is never known to have ended
    torch.testing.assert_close(evaluation.matrix[1:3], torch.tensor(rows).double())
    assert len(evaluation.record.ends) == 1
    # The boundary is no point of the curve: its weights are of no present step.
    assert [step for step, _ in evaluation.record.curve] == [0, 200]


def test_names_of_the_modules_own(tmp_path: Path) -> None:
    class Named(Scored):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            score = (self(batch[0]).argmax(1) == batch[1]).float().mean()
            self.log(f"task {dataloader_idx} score", score, add_dataloader_idx=False)

    usual, named = TaskEvaluation(), TaskEvaluation("task {task} score", names=["red", "green", "blue"])
    model, other, logger = Scored(), Named(), CSVLogger(tmp_path)
    other.load_state_dict(model.state_dict())
    fit(usual, EpochBoundaries(2), model=model)
    fit(named, EpochBoundaries(2), model=other, logger=logger)
    assert torch.equal(usual.matrix, named.matrix)
    assert "cl_task/score/green" in (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()[0]


def test_tasks_may_come_in_any_order() -> None:
    """Rows are by how many were learned, columns in the order of learning."""
    evaluation, model, order = TaskEvaluation(table=False), Scored(), [2, 0, 1]
    parts = [(*task(k), torch.full((24,), k)) for k in order]
    stream = loader(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
    trainer = make_trainer(evaluation, BatchBoundaries(key=2), num_sanity_val_steps=0)
    trainer.fit(model, stream, [loader(*task(k)) for k in range(TASKS)])
    by_hand = accuracies(model, weights(model))
    assert evaluation.matrix[-1].tolist() == pytest.approx([by_hand[k] for k in order])
    assert not evaluation.matrix.isnan().any()
    assert evaluation.report.names == ["2", "0", "1"]
    assert evaluation.results()["average"] == pytest.approx(sum(by_hand) / TASKS)


def test_a_new_trainer_for_each_task() -> None:
    by_hand, evaluation, model = AtEnds(), TaskEvaluation(table=False), Scored()
    loaders = [loader(*task(k)) for k in range(TASKS)]
    for index in range(TASKS):
        make_trainer(by_hand, evaluation, num_sanity_val_steps=0).fit(model, loaders[index], loaders)
    torch.testing.assert_close(evaluation.matrix[1:], torch.tensor(by_hand.rows).double())


def test_a_disk_that_is_full_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    evaluation, logger = TaskEvaluation(table=False), CSVLogger(tmp_path)
    monkeypatch.setattr(Path, "write_text", full)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.warns(match=r"task_matrix.json could not be written \(OSError"):
        fit(evaluation, EpochBoundaries(2), logger=logger)
    assert not evaluation.matrix.isnan().any()


def test_a_gap_in_the_modules_own_names_is_refused() -> None:
    class Gap(Scored):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log(f"score_{2 * dataloader_idx}", 0.5, add_dataloader_idx=False)

    with pytest.raises(MisconfigurationException, match="logs no 'score_1'"):
        fit(TaskEvaluation("score_{task}"), model=Gap())


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = TaskEvaluation(names=["[cat]", "[/INST]", "3"])
    for learned in (1, 2, 3):
        evaluation.record.begin(learned - 1)
        evaluation.record.keep(learned, [0.5, 0.25, 0.75, 1.0])
    evaluation.report.print_table()
    printed = capsys.readouterr().out
    assert "0 [cat]" in printed and "1 [/INST]" in printed
    assert evaluation.report.names == ["[cat]", "[/INST]", "3", "task 3"]  # no two alike


def test_files_beside_the_log(tmp_path: Path) -> None:
    evaluation, logger = TaskEvaluation(names=["red", "green", "blue"]), CSVLogger(tmp_path)
    fit(evaluation, EpochBoundaries(2), logger=logger)
    found = json.loads((Path(logger.log_dir) / "task_matrix.json").read_text())
    assert torch.equal(torch.tensor(found["matrix"], dtype=torch.float64), evaluation.matrix)
    assert found["results"] == pytest.approx(evaluation.results())
    assert (found["monitor"], found["names"]) == ("val_acc", ["red", "green", "blue"])
    rows = list(csv.reader((Path(logger.log_dir) / "task_matrix.csv").open()))
    assert rows[0] == ["tasks_learned", "red", "green", "blue"]
    assert [float(cell) for cell in rows[-1]] == [3.0, *evaluation.matrix[-1].tolist()]


@pytest.mark.parametrize("shared", [False, True])
def test_another_training_that_writes_the_same_file_is_said_once(
    tmp_path: Path, shared: bool, recwarn: pytest.WarningsRecorder
) -> None:
    logger = CSVLogger(tmp_path)

    class Another(Callback):
        def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
            file = Path(logger.log_dir) / "task_matrix.json"
            if file.exists() and shared:
                with whole_file(file) as part:
                    part.write_text("{}")

    fit(TaskEvaluation(table=False), EpochBoundaries(2), Another(), logger=logger)
    said = [str(w.message) for w in recwarn if "written by another training" in str(w.message)]
    assert len(said) == shared
    assert json.loads((Path(logger.log_dir) / "task_matrix.json").read_text())["matrix"]


def test_a_run_that_breaks_off_leaves_its_rows(tmp_path: Path) -> None:
    class Breaking(Scored):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if self.trainer.current_epoch == 3:
                raise ZeroDivisionError
            return super().training_step(batch, batch_idx)

    logger = CSVLogger(tmp_path)
    with pytest.raises(ZeroDivisionError):
        fit(TaskEvaluation(), EpochBoundaries(2), model=Breaking(), logger=logger)
    matrix = json.loads((Path(logger.log_dir) / "task_matrix.json").read_text())["matrix"]
    assert None not in matrix[1]
    assert len(matrix) == 2


def test_the_table_is_printed_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = TaskEvaluation()
    fit(evaluation, EpochBoundaries(2))
    printed = capsys.readouterr().out
    assert "val_acc on each task" in printed
    assert f"average {evaluation.results()['average']:.3f}" in printed


def test_a_resumed_run_has_the_whole_matrix(tmp_path: Path) -> None:
    whole, first, second = TaskEvaluation(), TaskEvaluation(), TaskEvaluation()
    model = Scored()
    start = {name: t.clone() for name, t in model.state_dict().items()}
    fit(whole, EpochBoundaries(2), model=model)

    def again(evaluation: TaskEvaluation, **options: Any) -> None:
        fresh = Scored()
        fresh.load_state_dict(start)
        seed_everything(0, verbose=False)
        checkpoint = ModelCheckpoint(tmp_path, save_last=True, every_n_epochs=1)
        trainer = make_trainer(
            evaluation,
            EpochBoundaries(2),
            checkpoint,
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,
            enable_checkpointing=True,
            max_epochs=options["max_epochs"],
        )
        trainer.fit(fresh, sequence(), ckpt_path=options.get("ckpt_path"), weights_only=True)

    again(first, max_epochs=3)
    assert sorted(first.record.rows) == [0, 1]
    again(second, max_epochs=2 * TASKS, ckpt_path=tmp_path / "last.ckpt")
    assert sorted(second.record.rows) == [0, 1, 2, 3]
    assert torch.equal(second.matrix[:2], whole.matrix[:2])
    assert second.record.ends == whole.record.ends
    assert [step for step, _ in second.record.curve] == [step for step, _ in whole.record.curve]


def test_resumed_from_a_tasks_last_validation(tmp_path: Path) -> None:
    """Where Lightning's own loop would go on behind the validation that wrote the checkpoint."""
    whole, second = TaskEvaluation(table=False), TaskEvaluation(table=False)
    model = Scored(net=plain_net())  # without dropout, whose random numbers no checkpoint has
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_acc/dataloader_idx_0", save_top_k=-1)
    options = {"check_val_every_n_epoch": 2, "enable_checkpointing": True}
    fit(whole, EpochBoundaries(2), checkpoint, model=model, data=Unshuffled(), **options)
    seed_everything(0, verbose=False)
    trainer = make_trainer(
        second,
        EpochBoundaries(2),
        max_epochs=2 * TASKS,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        check_val_every_n_epoch=2,
    )
    first = tmp_path / "epoch=1-step=6.ckpt"
    trainer.fit(Scored(net=plain_net()), Unshuffled(), ckpt_path=first, weights_only=True)
    assert torch.equal(second.matrix[1:], whole.matrix[1:])


def test_a_state_of_something_else_is_refused_whole() -> None:
    evaluation = TaskEvaluation()
    evaluation.record.rows = {0: [0.5]}
    with pytest.raises(ValueError, match="no state of TaskRecord"):
        evaluation.load_state_dict({"rows": {1: [0.1]}})
    assert evaluation.record.rows == {0: [0.5]}


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="mode must be 'max' or 'min'"):
        TaskEvaluation(mode="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="names must be a list"):
        TaskEvaluation(names="abc")
    with pytest.raises(MisconfigurationException, match="there is none"):
        fit(TaskEvaluation(), model=Net())
    with pytest.raises(MisconfigurationException, match="there is none"):
        fit(TaskEvaluation(), limit_val_batches=0)
    with pytest.raises(MisconfigurationException, match=r"logs no 'val_f1/dataloader_idx_0'.*val_acc"):
        fit(TaskEvaluation("val_f1"))


class Sharded(Scored):
    """Its parameters are in two parts under FSDP2."""

    def __init__(self) -> None:
        super().__init__(net=plain_net())

    def configure_model(self) -> None:
        for module in (self.net[0], self.net[2], self.net):
            fully_shard(module, mesh=self.device_mesh["data_parallel"])

    def on_validation_start(self) -> None:
        """Does not look at the weights, of which each process has a part."""


def _together(rank: int, folder: Path) -> None:
    for kind, strategy, model in (("ddp", "ddp", Scored()), ("fsdp2", fsdp2(), Sharded())):
        evaluation = TaskEvaluation(artifact=True, table=False)  # of states that each has a part of
        fit(
            evaluation,
            EWC(10.0, samples=8, estimator="sampled"),
            EpochBoundaries(2),
            model=model,
            devices=2,
            strategy=strategy,
            check_val_every_n_epoch=5,
            logger=CSVLogger(folder, name=f"{kind}{rank}"),
        )
        torch.save(evaluation.matrix, folder / f"{kind}{rank}.pt")


@pytest.mark.slow
def test_two_processes_have_the_same_matrix(tmp_path: Path) -> None:
    train_together(2, _together, tmp_path)
    for kind in ("ddp", "fsdp2"):
        first, second = (torch.load(tmp_path / f"{kind}{rank}.pt") for rank in (0, 1))
        assert not first.isnan().any()
        assert torch.equal(first, second)
        # Each has half of 24 samples: the mean is that of all.
        torch.testing.assert_close(first * 24, (first * 24).round(), atol=1e-4, rtol=0)
    written = tmp_path.rglob("task_matrix.json")
    assert sorted(file.relative_to(tmp_path).parts[0] for file in written) == ["ddp0", "fsdp20"]
