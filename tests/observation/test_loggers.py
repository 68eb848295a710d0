"""What arrives in the loggers, read back from their files."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cl_callbacks import EWC, EpochBoundaries, SynapseStatistics, TaskEvaluation
from tests import wandb_files
from tests.observation.test_task_evaluation import TASKS, Scored, fit
from tests.processes import train_together

BY_TASK = [
    "average",
    "forgetting",
    "backward_transfer",
    "forward_transfer",
    "learning",
    "consolidation_seconds",
    *(f"score/{task}" for task in range(TASKS)),
    *(f"forgetting/{task}" for task in range(TASKS - 1)),
]
OF_SYNAPSES = [
    "frozen_fraction/all",
    "frozen_fraction/net.0",
    *(f"{measure}/{layer}" for measure in ("importance", "plasticity") for layer in ("mean", "q50", "net.0")),
]
HISTOGRAMS = [f"cl_synapses/ewc/{name}" for name in ("plasticity/histogram", "importance/log10_histogram")]
PICTURES = [
    "cl_task/matrix",
    "cl_task/curves",
    "cl_synapses/ewc/importance_by_layer",
    "cl_synapses/ewc/plasticity_by_layer",
]


def run(*loggers: Any, also: Sequence[Callback] = (), **arguments: Any) -> TaskEvaluation:
    evaluation = TaskEvaluation(table=False, **arguments)
    callbacks = [*also, EWC(10.0, samples=8), evaluation, SynapseStatistics(2), EpochBoundaries(2)]
    fit(*callbacks, logger=list(loggers), log_every_n_steps=1)
    return evaluation


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WandbLogger:
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    return WandbLogger(save_dir=tmp_path, offline=True, project="tests")


def check_wandb(folder: Path, evaluation: TaskEvaluation) -> None:
    rows = wandb_files.history(folder)
    by_task = [row for row in rows if "cl_task/average" in row]
    assert [row["cl_task/index"] for row in by_task] == list(range(TASKS))
    assert {key.removeprefix("cl_task/") for key in by_task[-1] if key.startswith("cl_task/")} == {
        "index",
        *BY_TASK,
    }
    assert by_task[-1]["cl_task/average"] == pytest.approx(evaluation.results()["average"])
    current = [(row["trainer/global_step"], row["cl/task"]) for row in rows if "cl/task" in row]
    assert current == sorted(current)  # a staircase, each task as long as it lasted
    assert [step for step, task in current if task == 1][:1] == [6]
    logged = set().union(*rows)
    assert {f"cl_synapses/ewc/{name}" for name in OF_SYNAPSES} <= logged
    assert {f"{key}/_type" for key in HISTOGRAMS} <= logged
    # Pictures and table lie where the run says.
    (files,) = folder.glob("wandb/offline-run-*/files")
    for key in PICTURES:
        (row,) = [row for row in rows if f"{key}/filenames" in row]
        assert imread(files / row[f"{key}/filenames"][0]).shape[0] == row[f"{key}/height"]
    (row,) = [row for row in rows if "cl_task/table/path" in row]
    table = json.loads((files / row["cl_task/table/path"]).read_text())
    assert table["columns"] == ["after", *map(str, range(TASKS))]
    assert [cells[0] for cells in table["data"]] == ["—", *map(str, range(TASKS))]
    assert [cells[1:] for cells in table["data"]] == evaluation.matrix.tolist()
    # What is by task has the task as its axis.
    axes = [record.metric for record in wandb_files.of_kind(folder, "metric")]
    assert ("cl_task/*", "cl_task/index") in [(axis.glob_name, axis.step_metric) for axis in axes]
    # How everything was set.
    settings = wandb_files.config(folder)["cl_callbacks"]
    assert settings["ewc"]["class"] == "EWC"
    assert (settings["ewc"]["strength"], settings["ewc"]["samples"]) == (10.0, 8)
    assert settings["epochboundaries"] == {"class": "EpochBoundaries", "every_n_epochs": 2}


def check_tensorboard(folder: Path, evaluation: TaskEvaluation) -> None:
    events = EventAccumulator(str(folder), {"scalars": 0, "images": 0, "histograms": 0}).Reload()
    assert {f"cl_task/{name}" for name in BY_TASK} <= set(events.Tags()["scalars"])
    assert {f"cl_synapses/ewc/{name}" for name in OF_SYNAPSES} <= set(events.Tags()["scalars"])
    for key in HISTOGRAMS:
        assert len(events.Histograms(key)) >= TASKS - 1
    assert len(events.Scalars("cl_task/average")) == TASKS
    assert events.Scalars("cl_task/average")[-1].value == pytest.approx(evaluation.results()["average"])
    for key in PICTURES:
        (image,) = events.Images(key)
        assert image.width > 200


def check_csv(folder: Path, evaluation: TaskEvaluation) -> None:
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert {f"cl_task/{name}" for name in BY_TASK} <= set(rows[0])
    assert {f"cl_synapses/ewc/{name}" for name in OF_SYNAPSES} <= set(rows[0])
    averages = [float(row["cl_task/average"]) for row in rows if row["cl_task/average"]]
    assert len(averages) == TASKS
    assert averages[-1] == pytest.approx(evaluation.results()["average"])


def check_files(folder: Path) -> None:
    assert (folder / "task_matrix.json").exists()
    assert (folder / "task_matrix.csv").exists()
    for key in PICTURES:
        assert imread(folder / "figures" / f"{key.replace('/', '-')}.png").shape[0] > 200


def test_wandb(offline: WandbLogger, tmp_path: Path) -> None:
    evaluation = run(offline, artifact=True)
    wandb.finish()
    assert wandb_files.run_file(tmp_path).stat().st_size > 32768  # more than one block of the file
    check_wandb(tmp_path, evaluation)
    check_files(next(tmp_path.glob("wandb/offline-run-*/files")))
    artifacts = [record.artifact for record in wandb_files.of_kind(tmp_path, "artifact")]
    (artifact,) = [found for found in artifacts if found.type == "task-matrix"]
    files = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    assert files.keys() == {"rules.pt", "task_matrix.csv", "task_matrix.json"}
    state = torch.load(files["rules.pt"], weights_only=True)
    assert [rule["tasks"] for rule in state.values()] == [TASKS]


def test_tensorboard(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    evaluation = run(logger)
    check_tensorboard(Path(logger.log_dir), evaluation)
    check_files(Path(logger.log_dir))
    assert "strength: 10.0" in (Path(logger.log_dir) / "hparams.yaml").read_text()


def test_tensorboard_shows_the_users_own_hyperparameters(tmp_path: Path) -> None:
    class Tuned(Scored):
        def __init__(self, lr: float = 0.5) -> None:
            super().__init__()
            self.save_hyperparameters()

    logger = TensorBoardLogger(tmp_path)
    fit(EWC(10.0), EpochBoundaries(2), model=Tuned(), logger=logger)
    events = EventAccumulator(str(logger.log_dir)).Reload()
    shown = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"lr" in shown
    assert "cl_callbacks/text_summary" in events.Tags()["tensors"]


def test_a_logger_that_refuses_hyperparameters_keeps_its_metrics(tmp_path: Path) -> None:
    class Refusing(CSVLogger):
        def log_hyperparams(self, params: Any = None) -> None:
            raise RuntimeError("Changing param values is not allowed")

    logger = Refusing(tmp_path)
    with pytest.warns(match="could not be written"):
        evaluation = run(logger)
    check_csv(Path(logger.log_dir), evaluation)


def test_csv(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    evaluation = run(logger)
    check_csv(Path(logger.log_dir), evaluation)
    check_files(Path(logger.log_dir))
    assert "strength: 10.0" in (Path(logger.log_dir) / "hparams.yaml").read_text()


def test_two_at_once(offline: WandbLogger, tmp_path: Path) -> None:
    other = CSVLogger(tmp_path)
    evaluation = run(other, offline)
    wandb.finish()
    check_wandb(tmp_path, evaluation)
    check_csv(Path(other.log_dir), evaluation)
    check_files(Path(other.log_dir))  # beside the first


def test_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not run().matrix.isnan().any()
    assert list(tmp_path.iterdir()) == []


class Killing(Callback):
    """Ends the service of this process's wandb."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            subprocess.run(["pkill", "-9", "-f", f"wandb-core.*--pid {os.getpid()}"], check=True)
            time.sleep(1)  # a call in the very moment of its death may go through


def failing(rank: int, folder: Path, step: int) -> None:
    # With a service of its own, not that of the process that runs the tests.
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        del os.environ[name]
    loggers = WandbLogger(save_dir=folder, offline=True), CSVLogger(folder)
    with (folder / "said").open("w") as said, redirect_stderr(said):
        evaluation = run(*loggers, also=[Killing(step)])
    (folder / "missing").write_text(str(evaluation.matrix.isnan().any().item()))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pkill") is None, reason="kills a process by its name")
@pytest.mark.parametrize("step", [2, 6])  # in mid-task, and where a task ends
def test_a_wandb_that_fails_in_the_middle_does_not_stop_the_training(tmp_path: Path, step: int) -> None:
    train_together(1, failing, tmp_path, step)
    assert (tmp_path / "missing").read_text() == "False"
    assert "WandbLogger has failed (ConnectionResetError" in (tmp_path / "said").read_text()
    # What the other logger and the files were told goes on to the end.
    (metrics,) = tmp_path.glob("lightning_logs/version_0/metrics.csv")
    assert sum(bool(row["cl_task/average"]) for row in csv.DictReader(metrics.open())) == TASKS
    (folder,) = tmp_path.glob("wandb/offline-run-*/files")
    check_files(folder)
    assert all(None not in row for row in json.loads((folder / "task_matrix.json").read_text())["matrix"])
