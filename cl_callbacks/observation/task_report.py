"""Reports the task matrix to loggers, in files and figures, and on the terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_warn

from cl_callbacks.boundaries.drift_boundaries import DriftBoundaries
from cl_callbacks.boundaries.task_boundaries import boundaries_of
from cl_callbacks.guards.once import first_time
from cl_callbacks.guards.safe_names import file_name, readable
from cl_callbacks.observation.figures.labels import row_names
from cl_callbacks.observation.pictures import log_figure
from cl_callbacks.observation.task_files import write_csv, write_json
from cl_callbacks.observation.task_record import TaskRecord
from cl_callbacks.observation.task_table import task_table
from cl_callbacks.observation.thinning import MOST_TASKS, evenly
from cl_callbacks.observation.wandb_run import define_task_axis, log_artifact, log_table
from cl_callbacks.training import log_keys
from cl_callbacks.training.log import log, log_folder, offer, unless_it_fails

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHARE_OF_DRAWING = 0.01
_MOST_CHARACTERS = 100
"""Of a task's name, in keys and files."""


class TaskReport:
    """Reports a :class:`~cl_callbacks.observation.task_record.TaskRecord`.

    Args:
        record: the scores.
        monitor: name of the score.
        names: names of the tasks; ``None`` for their numbers.

    Attributes:
        name: that tells keys and files from those of another report of the same Trainer; may be empty.
    """

    def __init__(self, record: TaskRecord, monitor: str, names: Sequence[str] | None) -> None:
        self.name = ""
        self.record, self.monitor = record, monitor
        self._names = [readable(str(name), _MOST_CHARACTERS) for name in names or []]
        self._drawn_at, self._drawing = 0.0, 0.5
        self._written: tuple[Path, Any] | None = None  # the latest file, and what tells it from another

    @property
    def names(self) -> list[str]:
        """Name of each column of the matrix: the task's name, or else its number."""
        return self._names_of(self.record)

    def _names_of(self, record: TaskRecord) -> list[str]:
        given, taken = dict(enumerate(self._names)), set(self._names)
        return [
            given.get(task, f"task {task}" if str(task) in taken else str(task)) for task in record.columns
        ]

    def key(self, metric: str) -> str:
        """Log key of a metric by task."""
        return log_keys.task(metric, self.name)

    def begin(self, trainer: Trainer) -> None:
        """Sets the x axis of per-task metrics in W&B."""
        self._drawn_at = time.monotonic()
        if trainer.is_global_zero:
            offer(trainer, define_task_axis)

    def log_task(self, trainer: Trainer, index: int, more: Mapping[str, float] | None = None) -> None:
        """Logs all metrics, and ``more`` by key, and writes the files at a task's end; draws if that is due.

        The ``index`` of the task is the number of tasks that ended before.
        """
        results = {name: value for name, value in self.record.results().items() if not math.isnan(value)}
        values = {**results, **self._logged(self.record.of_tasks(self.names))}
        found = {self.key(name): value for name, value in values.items()}
        log(trainer, {log_keys.TASK_INDEX: index, **found, **(more or {})})
        self.write(trainer)
        if time.monotonic() - self._drawn_at > self._drawing / _SHARE_OF_DRAWING:
            self.draw(trainer)

    def _logged(self, values: dict[str, float]) -> dict[str, float]:
        """The values of at most 100 tasks, evenly spaced, since loggers take a curve for each."""
        names = self.names
        shown = {names[column] for column in evenly(len(names), MOST_TASKS)}
        return {key: value for key, value in values.items() if key.partition("/")[2] in shown}

    def line(self) -> str:
        """Summary in one line: the average, and the task that was forgotten most."""
        average, worst = self.record.results()["average"], self.record.worst()
        if math.isnan(average):
            return ""
        text = f"{self.name} average {average:.3f}".strip()
        if worst is None:
            return text
        return f"{text} · worst forgetting {worst[1]:.3f} (task {self.names[worst[0]]})"

    def monitored(self, record: TaskRecord) -> dict[str, float]:
        """All metrics of a record by key, as callbacks that monitor one look them up; NaN if not defined."""
        names = self._names_of(record)
        found = dict.fromkeys((f"forgetting/{name}" for name in names), math.nan)
        (latest,) = record.ordered([record.rows.get(max(record.rows, default=0), [])])
        found |= {f"score/{name}": score for name, score in zip(names, latest, strict=True)}
        found |= record.of_tasks(names) | record.results()
        return {self.key(name): value for name, value in found.items()}

    def print_table(self) -> None:
        """Prints the matrix and its summary metrics."""
        from rich.console import Console
        from rich.markup import escape

        console = Console()
        title = escape(f"{readable(self.monitor)} on each task (column) after learning each (row)")
        rows, scores = self.record.stripes()
        console.print(
            task_table(torch.tensor(scores, dtype=torch.float64), self.names, title, self.record.order, rows)
        )
        results = {name.replace("_", " "): value for name, value in self.record.results().items()}
        known = [f"{name} {value:.3f}" for name, value in results.items() if not math.isnan(value)]
        console.print(" · ".join(known), highlight=False)

    def write(self, trainer: Trainer) -> None:
        """Writes the matrix into the log folder, if there is one, from rank 0."""
        folder = log_folder(trainer) if trainer.is_global_zero else None
        if folder is not None:
            with unless_it_fails(trainer, f"{self._file_name}.json"):
                self._warn_of_another_writer(trainer)
                file = self._files(folder)[0]
                self._written = file, _identity(file)

    def _warn_of_another_writer(self, trainer: Trainer) -> None:
        if self._written is None:
            return
        file, own = self._written
        if _identity(file) not in (own, None) and first_time(trainer, f"written by another: {file}"):
            rank_zero_warn(
                f"{file.name} in {file.parent} is written by another training, too: each replaces the whole "
                f"file, and the last one wins. Give each a log folder of its own."
            )

    def draw(self, trainer: Trainer) -> None:
        """Logs the figures, and the matrix as a W&B table, if there is a log folder."""
        if not trainer.is_global_zero or log_folder(trainer) is None:
            return
        start = time.monotonic()
        with unless_it_fails(trainer, f"figures of {self.monitor}"):
            for key, figure in self.figures(trainer).items():
                log_figure(trainer, key, figure)
        offer(trainer, self._log_table)
        self._drawn_at = time.monotonic()
        self._drawing = self._drawn_at - start

    def _log_table(self, logger: Logger) -> None:
        numbers, rows = self.record.tasks_learned, self.record.table()
        names, shown = self.names, evenly(len(self.names), MOST_TASKS)
        after = row_names(numbers, names, self.record.order)
        table = [[name, *(row[i] for i in shown)] for name, row in zip(after, rows, strict=True)]
        log_table(logger, self.key("table"), ["after", *(names[i] for i in shown)], table)

    def figures(self, trainer: Trainer) -> dict[str, Figure]:
        """Figures by log key: the task matrix, task curves, and with DriftBoundaries loss and drift score."""
        from cl_callbacks.observation.figures import accuracy_matrix, loss_and_drift, task_curves

        record, names = self.record, self.names
        rows, matrix = record.stripes()
        mode: Literal["max", "min"] = "max" if record.higher_is_better else "min"
        steps = [step for step, _ in record.curve]
        scores = record.ordered([scores for _, scores in record.curve])
        common: dict[str, Any] = {"names": names, "order": record.order}
        drawn = {
            self.key("matrix"): accuracy_matrix(matrix, mode=mode, title=self.monitor, rows=rows, **common),
            self.key("curves"): task_curves(steps, scores, record.ends, monitor=self.monitor, **common),
        }
        boundaries = boundaries_of(trainer)
        if isinstance(boundaries, DriftBoundaries) and boundaries.trace.points:
            batches, losses, evidence = zip(*boundaries.trace.points, strict=True)
            found, onsets = [b.batch for b in boundaries.found], [b.onset for b in boundaries.found]
            drawn[log_keys.DRIFT_FIGURE] = loss_and_drift(batches, losses, evidence, found, onsets)
        return drawn

    def log_artifact(self, trainer: Trainer, states: Mapping[str, Any]) -> None:
        """Logs the matrix and the rules' states as a W&B artifact, from rank 0."""
        if trainer.is_global_zero:
            with unless_it_fails(trainer, "artifact"), TemporaryDirectory() as folder:
                files = self._files(Path(folder))
                torch.save(dict(states), Path(folder) / "rules.pt")
                files.append(Path(folder) / "rules.pt")
                offer(trainer, lambda logger: log_artifact(logger, files, self.name))

    def _files(self, folder: Path) -> list[Path]:
        """Writes the matrix as JSON and as CSV; the folder is created if needed."""
        folder.mkdir(parents=True, exist_ok=True)
        as_json, as_csv = (folder / file_name(self._file_name, ending) for ending in (".json", ".csv"))
        write_json(as_json, self.record, {"monitor": self.monitor, "names": self.names})
        write_csv(as_csv, self.record, self.names)
        return [as_json, as_csv]

    @property
    def _file_name(self) -> str:
        return "_".join(filter(None, ("task_matrix", self.name)))


def _identity(file: Path) -> tuple[int, int] | None:
    """What tells a file from one that has been put in its place; ``None`` if there is none."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns
