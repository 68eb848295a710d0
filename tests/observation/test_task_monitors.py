"""ModelCheckpoint and EarlyStopping that monitor what TaskEvaluation measures; several TaskEvaluations."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn import functional as F

from cl_callbacks import BatchBoundaries, EpochBoundaries, FitBoundaries, TaskEvaluation, TaskSequence
from tests.small import Net, loader, make_trainer, plain_net, task

TASKS = 3


class Scored(Net):
    """Without randomness, so that its scores can be measured again."""

    def __init__(self) -> None:
        super().__init__(net=plain_net(), optimizer=lambda p: torch.optim.Adam(p, lr=3e-2))
        self.validations = 0

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        x, y = batch
        self.log("val/acc", (self(x).argmax(1) == y).float().mean())
        self.log("val/loss", F.cross_entropy(self(x), y))

    def on_validation_start(self) -> None:
        self.validations += 1


def sequence() -> TaskSequence:
    data = [dict.fromkeys(("train", "validation"), loader(*task(k)).dataset) for k in range(TASKS)]
    return TaskSequence(data, batch_size=8, shuffle_seed=0)


def fit(*callbacks: Callback, ckpt_path: Path | None = None, data: Any = None, **options: Any) -> Trainer:
    options = {
        "max_epochs": 2 * TASKS,
        "reload_dataloaders_every_n_epochs": 1,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
    } | options
    trainer = make_trainer(*callbacks, **options)
    torch.manual_seed(0)
    trainer.fit(Scored(), data or sequence(), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def average(path: str | Path, learned: int) -> float:
    """By hand: the mean accuracy of a saved network on the first tasks."""
    model: LightningModule = Scored()
    model.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    with torch.no_grad():
        hits = [(model(x).argmax(1) == y).float().mean() for x, y in map(task, range(learned))]
    return torch.stack(hits).mean().item()


def saved(checkpoint: ModelCheckpoint) -> dict[Path, float]:
    return {Path(path): float(score) for path, score in checkpoint.best_k_models.items()}


MODES: dict[str, dict[str, Any]] = {
    "epochs": {},
    "validations": {"check_val_every_n_epoch": 2},
    "within epochs": {"val_check_interval": 0.4},
    "epochs between validations": {"check_val_every_n_epoch": 4, "save_on_train_epoch_end": True},
}


@pytest.mark.parametrize("first", [True, False], ids=["boundaries first", "evaluation first"])
@pytest.mark.parametrize("mode", MODES)
def test_checkpoints_are_saved_under_the_average_of_their_own_weights(
    mode: str, first: bool, tmp_path: Path
) -> None:
    options = dict(MODES[mode])
    own = {"save_on_train_epoch_end": options.pop("save_on_train_epoch_end", None)}
    checkpoint = ModelCheckpoint(
        tmp_path, "{epoch}-{step}", monitor="cl_task/average", mode="max", save_top_k=-1, **own
    )
    callbacks = [EpochBoundaries(2), TaskEvaluation("val/acc", table=False)]
    fit(checkpoint, *(callbacks if first else callbacks[::-1]), **options)
    found = saved(checkpoint)
    assert len(found) == {"epochs": 6, "validations": 3, "within epochs": 18}.get(mode, 6)
    for path, score in found.items():
        epoch = int(path.name.partition("=")[2].partition("-")[0])
        assert score == pytest.approx(average(path, 1 + epoch // 2)), path
    best = max(found.values())
    assert float(checkpoint.best_model_score or 0) == pytest.approx(best)


def test_the_best_two_and_a_resumed_run(tmp_path: Path) -> None:
    def checkpoints(folder: Path) -> list[ModelCheckpoint]:
        best = ModelCheckpoint(
            folder, "{epoch}", monitor="cl_task/average", mode="max", save_top_k=2, save_last=True
        )
        return [best, ModelCheckpoint(folder, "every-{epoch}", save_top_k=-1)]

    whole, first, second = (TaskEvaluation("val/acc", table=False) for _ in range(3))
    kept = checkpoints(tmp_path / "whole")
    fit(EpochBoundaries(2), whole, *kept)
    again = checkpoints(tmp_path / "again")
    fit(EpochBoundaries(2), first, *again, max_epochs=3)
    resumed = checkpoints(tmp_path / "again")
    fit(EpochBoundaries(2), second, *resumed, ckpt_path=tmp_path / "again" / "every-epoch=2.ckpt")
    assert torch.equal(second.matrix, whole.matrix)
    assert [score for score in saved(resumed[0]).values()] == [score for score in saved(kept[0]).values()]
    assert [p.name for p in saved(resumed[0])] == [p.name for p in saved(kept[0])]


def test_of_tasks_that_end_with_the_fit(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, "{step}", monitor="cl_task/average", mode="max", save_top_k=-1)
    evaluation = TaskEvaluation("val/acc", table=False)
    trainer = make_trainer(
        FitBoundaries(), evaluation, checkpoint, enable_checkpointing=True, num_sanity_val_steps=0
    )
    model, loaders = Scored(), [loader(*task(k)) for k in range(TASKS)]
    for index in range(TASKS):
        trainer.fit(model, loaders[index], loaders)
        found = float(trainer.callback_metrics["cl_task/average"])
        assert found == pytest.approx(evaluation.results()["average"])
        trainer.fit_loop.max_epochs += 1
    assert len(saved(checkpoint)) == TASKS
    for learned, (path, score) in enumerate(saved(checkpoint).items(), 1):
        assert score == pytest.approx(average(path, learned))


def test_of_tasks_whose_numbers_are_in_the_batches() -> None:
    parts = [(*task(k), torch.full((24,), k)) for k in (1, 0)]
    stream = loader(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
    evaluation, looks = TaskEvaluation("val/acc", table=False), []

    class Look(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
            scores = evaluation.record.curve[-1][1]
            learned = [scores[1]] if trainer.global_step <= 3 else scores[:2]
            looks.append((float(trainer.callback_metrics["cl_task/average"]), sum(learned) / len(learned)))

    trainer = make_trainer(
        evaluation, BatchBoundaries(key=2), Look(), num_sanity_val_steps=0, val_check_interval=1
    )
    trainer.fit(Scored(), stream, [loader(*task(k)) for k in range(2)])
    assert len(looks) == 6
    assert [seen for seen, _ in looks] == pytest.approx([by_hand for _, by_hand in looks])


@pytest.mark.parametrize("options", [{}, {"check_val_every_n_epoch": 2}], ids=["epochs", "validations"])
def test_early_stopping_finds_it_wherever_it_stands_in_the_list(options: dict[str, Any]) -> None:
    looks: list[float] = []

    class Stop(EarlyStopping):
        def _run_early_stopping_check(self, trainer: Trainer) -> None:
            looks.append(float(trainer.callback_metrics[self.monitor]))
            super()._run_early_stopping_check(trainer)

    stop = Stop("cl_task/average", mode="max", patience=100)
    evaluation = TaskEvaluation("val/acc", table=False)
    trainer = fit(stop, evaluation, EpochBoundaries(2), **options)
    assert trainer.callbacks.index(stop) > trainer.callbacks.index(evaluation)  # type: ignore[attr-defined]
    curve = evaluation.record.curve[1:]  # after that before training
    by_hand = [sum(scores[: 1 + (step - 1) // 6]) / (1 + (step - 1) // 6) for step, scores in curve]
    assert looks == pytest.approx(by_hand)
    stopping = EarlyStopping("cl_task/average", mode="max", patience=1, min_delta=1.0)
    assert fit(stopping, EpochBoundaries(2), TaskEvaluation("val/acc", table=False)).current_epoch == 2


def test_what_is_not_defined_yet_is_no_number() -> None:
    seen: list[dict[str, float]] = []

    class Look(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
            seen.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("cl_")})

    fit(TaskEvaluation("val/acc", table=False, names=["a", "b", "c"]), EpochBoundaries(2), Look())
    assert len({tuple(keys) for keys in seen}) == 1
    assert {"cl_task/average", "cl_task/learning", "cl_task/score/c", "cl_task/forgetting/a"} <= seen[
        0
    ].keys()
    assert math.isnan(seen[0]["cl_task/forgetting"]) and not math.isnan(seen[2]["cl_task/forgetting"])
    assert not math.isnan(seen[0]["cl_task/score/c"])


def test_monitors_that_cannot_work_are_refused_before_a_step() -> None:
    for monitor, sentence in (
        (ModelCheckpoint(monitor="cl_task/averge"), "the nearest is 'cl_task/average'"),
        (ModelCheckpoint(monitor="cl_task/score/7"), "no such metric"),
        (ModelCheckpoint(monitor="cl_task/average", every_n_train_steps=2), "with every_n_epochs"),
        (EarlyStopping("cl_task/forgetting"), "check_finite=False"),
    ):
        callbacks = [TaskEvaluation("val/acc", table=False), EpochBoundaries(2), monitor]
        trainer = make_trainer(*callbacks, enable_checkpointing=True, num_sanity_val_steps=0, max_epochs=6,
            reload_dataloaders_every_n_epochs=1)  # fmt: skip
        with pytest.raises(MisconfigurationException, match=sentence):
            trainer.fit(Scored(), sequence())
        assert trainer.global_step == 0
    fit(
        TaskEvaluation("val/acc"), EpochBoundaries(2), EarlyStopping("cl_task/forgetting", check_finite=False)
    )


def test_a_score_that_is_not_logged_is_found_in_the_sanity_check() -> None:
    evaluation = TaskEvaluation("val_f1", untrained=False)
    trainer = make_trainer(evaluation, EpochBoundaries(2), reload_dataloaders_every_n_epochs=1)
    with pytest.raises(MisconfigurationException, match="logs no 'val_f1/dataloader_idx_0'"):
        trainer.fit(Scored(), sequence())
    assert trainer.global_step == 0


# -- several in one Trainer --------------------------------------------------------------------------------


def test_accuracy_and_loss_of_every_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = CSVLogger(tmp_path)
    scores, losses = TaskEvaluation("val/acc"), TaskEvaluation("val/loss", mode="min")
    alone = [TaskEvaluation("val/acc", table=False), TaskEvaluation("val/loss", mode="min", table=False)]
    best = ModelCheckpoint(tmp_path / "best", monitor="cl_task/val_loss/average", mode="min")
    fit(EpochBoundaries(2), scores, losses, best, logger=logger)
    for one, same in zip(alone, (scores, losses), strict=True):
        fit(EpochBoundaries(2), one)
        assert torch.equal(one.matrix, same.matrix)
        assert one.results() == same.results()
    folder = Path(logger.log_dir)
    for file, evaluation in (("task_matrix", scores), ("task_matrix_val_loss", losses)):
        found = json.loads((folder / f"{file}.json").read_text())
        assert torch.tensor(found["matrix"], dtype=torch.float64).equal(evaluation.matrix)
        assert (folder / f"{file}.csv").is_file()
    told = (folder / "hparams.yaml").read_text()
    assert "taskevaluation:" in told and "taskevaluation 2:" in told and "val/loss" in told
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    last = {key: value for row in rows for key, value in row.items() if value}
    assert float(last["cl_task/average"]) == pytest.approx(scores.results()["average"])
    assert float(last["cl_task/val_loss/average"]) == pytest.approx(losses.results()["average"])
    assert float(last["cl_task/val_loss/score/2"]) == pytest.approx(losses.matrix[-1, -1].item())
    assert {file.name for file in (folder / "figures").glob("cl_task-*.png")} == {
        f"cl_task-{name}.png" for name in ("matrix", "curves", "val_loss-matrix", "val_loss-curves")
    }
    assert best.best_model_score is not None and best.best_model_score.isfinite()
    printed = capsys.readouterr().out
    assert "val/acc on each task" in printed and "val/loss on each task" in printed


def test_several_share_one_validation() -> None:
    options = {"check_val_every_n_epoch": 10, "max_epochs": 2 * TASKS}
    counts = []
    for callbacks in (
        [TaskEvaluation("val/acc", table=False)],
        [TaskEvaluation("val/acc", table=False), TaskEvaluation("val/loss", "min", table=False)],
    ):
        trainer = fit(EpochBoundaries(2), *callbacks, **options)
        counts.append(trainer.lightning_module.validations)
    assert counts[0] == counts[1] == TASKS + 1


def test_names_tell_them_apart(tmp_path: Path) -> None:
    named = TaskEvaluation("val/acc", name="mine", table=False)
    plain, other = TaskEvaluation("val/acc", table=False), TaskEvaluation("val/loss", "min", table=False)
    logger = CSVLogger(tmp_path)
    fit(named, plain, other, EpochBoundaries(2), logger=logger)
    assert [e.report.name for e in (named, plain, other)] == ["mine", "", "val_loss"]
    files = {path.name for path in Path(logger.log_dir).glob("*.json")}
    assert files == {"task_matrix.json", "task_matrix_mine.json", "task_matrix_val_loss.json"}
    with pytest.raises(MisconfigurationException, match=r"same keys, 'cl_task/val_loss/average'.*name="):
        fit(plain, TaskEvaluation("val/loss"), TaskEvaluation("val_loss"), EpochBoundaries(2))
    for wrong in ("a/b", "", "a b"):
        with pytest.raises(ValueError, match="name is for keys and files" if wrong else "leave name out"):
            TaskEvaluation(name=wrong)


def test_several_are_restored_each_from_its_own_state(tmp_path: Path) -> None:
    def evaluations() -> list[TaskEvaluation]:
        return [TaskEvaluation("val/acc", table=False), TaskEvaluation("val/loss", "min", table=False)]

    first, second = evaluations(), evaluations()
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    fit(EpochBoundaries(2), *first, checkpoint, max_epochs=4)
    fit(EpochBoundaries(2), *second, ckpt_path=tmp_path / "last.ckpt")
    for before, after in zip(first, second, strict=True):
        assert torch.equal(after.matrix[:3], before.matrix[:3])
        assert not after.matrix.isnan().any()
