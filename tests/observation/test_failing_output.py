"""A picture, a file, a name or a logger that fails never ends a training, and is said once."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matplotlib.image import imread

from cl_callbacks import EWC, EpochBoundaries, SynapseStatistics, TaskEvaluation
from cl_callbacks.observation.figures import accuracy_matrix, loss_and_drift, task_curves
from tests.observation.test_task_evaluation import TASKS, Scored, fit
from tests.small import loader, make_trainer, task


def said(record: pytest.WarningsRecorder, text: str = "the training goes on") -> list[str]:
    return [str(warning.message) for warning in record if text in str(warning.message)]


def observed(logger: Any, **options: Any) -> TaskEvaluation:
    evaluation = TaskEvaluation(table=False, artifact=True, **options)
    with warnings.catch_warnings():
        fit(evaluation, EWC(1.0, samples=8), EpochBoundaries(2), SynapseStatistics(2), logger=logger)
    assert len(evaluation.record.ends) == TASKS
    return evaluation


@pytest.mark.parametrize("error", [ValueError("256 colours"), MemoryError(), OSError(28, "full")], ids=repr)
@pytest.mark.parametrize("what", ["figure.Figure.savefig", "figure.Figure.add_subplot"])
def test_a_picture_that_fails(
    what: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(f"matplotlib.{what}", fail)
    with pytest.warns(match="could not be written") as record:
        observed(CSVLogger(tmp_path))
    assert len(set(said(record))) == len(said(record))
    assert not list(tmp_path.rglob("*.part"))
    assert len(list(tmp_path.rglob("task_matrix.json"))) == 1


@pytest.mark.parametrize("where", ["", "figures"])
def test_a_folder_that_cannot_be_written(where: str, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    blocked = Path(logger.log_dir, where or "task_matrix.json")
    if where:  # a file in the place of the folder
        blocked.parent.mkdir(parents=True)
        blocked.write_text("")
    else:  # a folder in the place of the file
        blocked.mkdir(parents=True)
    with pytest.warns(match="could not be written") as record:
        observed(logger)
    assert len(said(record)) == 1


FULL = """
import resource, sys
from lightning.pytorch.loggers import CSVLogger
from tests.observation.test_failing_output import observed
class FullDisk(CSVLogger):
    def log_metrics(self, metrics, step=None):
        if metrics.get("cl_task/index") == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
    def save(self): pass
observed(FullDisk(sys.argv[1]))
"""


def test_a_file_that_cannot_be_written_whole_leaves_the_older_one(tmp_path: Path) -> None:
    """As on a disk that is full after the first task: from then on no file may be longer than 300 bytes."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, check=False, cwd=Path.cwd()
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("task_matrix.json could not be written") == 1
    (file,) = tmp_path.rglob("task_matrix.json")
    assert len(json.loads(file.read_text())["matrix"]) == 2  # of the first task
    assert not list(tmp_path.rglob("*.part"))


class Failing(CSVLogger):
    """Raises wherever this package asks it for something."""

    begun = False

    @property
    def log_dir(self) -> str:
        if self.begun:  # Lightning asks before
            raise ConnectionError("no folder")
        return super().log_dir

    def log_hyperparams(self, params: Any = None, *args: Any, **options: Any) -> None:
        self.begun = True
        raise ConnectionError("no hyperparameters")

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if any(key.startswith("cl") for key in metrics):
            raise ConnectionError("no metrics")

    def save(self) -> None:
        pass


def test_a_logger_that_fails_everywhere(tmp_path: Path) -> None:
    with pytest.warns(match="nothing is logged to it") as record:
        observed([Failing(tmp_path / "a"), CSVLogger(tmp_path / "b")])
    assert len(said(record)) == 2  # hyperparameters, and metrics, with which it is given up
    assert list((tmp_path / "b").rglob("task_matrix.json"))


NAMES = ["=HYPERLINK(1)", "../../nul\0\ud800", "$\\frac$" + "x" * 5000]


@pytest.mark.parametrize("logger", [CSVLogger, TensorBoardLogger])
def test_names_of_any_characters(logger: Any, tmp_path: Path) -> None:
    made = logger(tmp_path / "logs")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*(could not be written|has failed).*")
        evaluation = observed(made, names=NAMES, name="n" * 5000)
    (file,) = Path(made.log_dir).glob("task_matrix*.csv")
    header = next(csv.reader(file.open(encoding="utf-8")))
    assert header[1] == "'=HYPERLINK(1)"
    assert [len(name) <= 100 for name in evaluation.report.names] == [True] * TASKS
    assert len(list(Path(made.log_dir, "figures").glob("*.png"))) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"logs"}


@pytest.mark.parametrize("name", ["../../up", "nul\0", "\ud800", "r" * 5000])
def test_rules_with_names_of_any_characters(name: str, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "logs")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*(could not be written|has failed).*")
        fit(EWC(1.0, samples=8, name=name), EpochBoundaries(2), SynapseStatistics(2), logger=logger)
    assert len(list(Path(logger.log_dir, "figures").glob("*importance_by_layer*.png"))) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"logs"}


def test_more_loaders_than_a_colour_map_has_colours(tmp_path: Path) -> None:
    loaders, logger = [loader(*task(0)) for _ in range(260)], CSVLogger(tmp_path)
    evaluation = TaskEvaluation(table=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*could not be written.*")
        trainer = make_trainer(
            evaluation, EpochBoundaries(1), max_epochs=2, num_sanity_val_steps=0, logger=logger
        )
        trainer.fit(Scored(), loaders[0], loaders)
    assert {f"cl_task/score/{k}" for k in range(260)} <= trainer.callback_metrics.keys()
    rows = list(csv.DictReader((Path(logger.log_dir) / "metrics.csv").open()))
    assert sum(key.startswith("cl_task/score/") for key in rows[0]) <= 100
    for key in ("matrix", "curves"):
        assert imread(Path(logger.log_dir, "figures", f"cl_task-{key}.png")).shape[0] > 200


@pytest.mark.parametrize("tasks", [257, 1000])
def test_figures_of_many_tasks_are_thinned(tasks: int, tmp_path: Path) -> None:
    scores = np.random.default_rng(0).random((tasks + 1, tasks))
    steps, ends = np.arange(tasks + 1), np.arange(1, tasks + 1)
    figures = [
        accuracy_matrix(scores),
        accuracy_matrix(scores[::7], rows=range(0, tasks + 1, 7), names=[f"n{k}" for k in range(tasks)]),
        task_curves(steps, scores, ends),
        loss_and_drift(steps, steps, steps, ends, ends - 1),
    ]
    for index, figure in enumerate(figures):
        figure.savefig(tmp_path / f"{index}.png")
        assert sum(len(axes.lines) for axes in figure.axes) <= 500
    for figure in figures[:2]:
        image = figure.axes[0].images[0]
        assert max(image.get_array().shape) <= 512
        assert image.get_extent() == [-0.5, tasks - 0.5, tasks + 0.5, -0.5]


def test_rows_that_were_left_out_are_drawn_like_the_one_before() -> None:
    matrix = [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]
    figure = accuracy_matrix(matrix, rows=[0, 1, 4], order=[0, 1, 0, 1])
    lines = np.asarray(figure.axes[0].images[0].get_array())
    assert lines[:, 0].tolist() == [0.1, 0.3, 0.3, 0.3, 0.5]
    for rows in ([0, 1], [1, 2, 3], [0, 2, 2]):
        with pytest.raises(ValueError, match="rows must be rising numbers from 0"):
            accuracy_matrix(matrix, rows=rows)
