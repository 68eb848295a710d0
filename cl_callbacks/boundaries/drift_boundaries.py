"""Tasks that end when the data have changed, which nobody declares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from cl_callbacks.boundaries.monitored_boundaries import MonitoredBoundaries
from cl_callbacks.boundaries.recent_batches import RecentBatches
from cl_callbacks.boundaries.signals import signal_of
from cl_callbacks.boundaries.snapshots import Snapshots
from cl_callbacks.boundaries.trace import Trace
from cl_callbacks.drift.cusum import CUSUM
from cl_callbacks.drift.plateau import Plateau
from cl_callbacks.drift.rise_monitor import Detector, RiseMonitor
from cl_callbacks.guards.arguments import integer, positive
from cl_callbacks.training import log_keys
from cl_callbacks.training.log import is_due, log
from cl_callbacks.training.progress import say


class Boundary(NamedTuple):
    """A boundary that was found. Batches are counted over the whole training.

    Attributes:
        task: that it ends.
        batch: with which the change was found.
        onset: the first batch after the change, by estimate.
    """

    task: int
    batch: int
    onset: int

    @property
    def delay(self) -> int:
        """How many batches after its onset the change was found."""
        return self.batch - self.onset


class DriftBoundaries(MonitoredBoundaries):
    r"""A task ends when the training loss rises for good: the data have changed.

    The loss of each batch, before the update that it makes, is ranked among the recent ones, and the rank, as
    a number of standard deviations, goes to a change detector, whose alarms count if the loss has risen (see
    :class:`~cl_callbacks.drift.rise_monitor.RiseMonitor`). Nobody needs to declare anything.

    An alarm comes some steps after the change, when the network has begun to learn the new data. Therefore
    the task ends as of the onset of the change: on ``on_task_end``, weights and buffers are those of the
    last snapshot before it, what rules have gathered (the path of
    :class:`~cl_callbacks.rules.consolidation.synaptic_intelligence.SynapticIntelligence`) is what they had
    then, and rules that measure on data get the last samples from before it. Then training goes on from the
    present weights. So no rule needs access to data of an earlier task, and none is measured on the
    next one's.

    Changes that a listener makes to weights in ``on_task_end`` are therefore undone (make them in
    ``on_task_start``).

    What is learned after the last boundary stays an open task, with which the next fit goes on. Found
    boundaries are logged, ``cl/boundary`` (the task that ended), ``cl/boundary_onset`` and
    ``cl/boundary_delay`` in batches, and ``cl/drift/score`` is the evidence for a change. Beside the
    training there are two snapshots of weights and buffers, and on the CPU the recent samples; all of it
    is in checkpoints, the recent samples of every process, so that a resumed run goes on bit for bit. With
    another number of processes some of these samples are lost.

    Args:
        detector: gets normal scores; default: :class:`~cl_callbacks.drift.cusum.CUSUM`. Any with
            ``update(x)`` and ``drift_detected`` will do, such as ``river.drift.ADWIN()``.
        monitor: ``"loss"`` that ``training_step`` returns; ``"feature_shift"``, the distance of the
            features from where they usually are, for shifts that the loss misses; or a key that the module
            logs in each training step.
        mode: ``"min"`` for values that are the better the lower they are, ``"max"`` for the others.
        min_task_batches: so many batches after a boundary only tell what is usual in the new task; none
            ends in them.
        snapshot_every_n_batches: batches between snapshots, which are taken when values are read: up to so
            many of the old task's last steps do not count.
        recent_samples: how many samples from before a change to keep, per process, and as many since; use
            at least the ``samples`` of the rules.
        recent_bytes: that these may take at most.
        check_every_n_batches: the device is waited for once in so many batches; a change is found up to so
            many later.
        feature_layer: name of the module whose input are the features; default: the last ``nn.Linear``.

    Attributes:
        found: the boundaries so far.
        trace: batch, value and evidence for a change over the training so far.

    Raises:
        ValueError: an argument that cannot work, at construction.
        TypeError: a detector that is none.
        MisconfigurationException: in training, when there is nothing to watch: no loss, a key that is not
            logged, a layer that does not run.

    Example:
        >>> from cl_callbacks.drift import CUSUM
        >>> DriftBoundaries(CUSUM(threshold=20.0), min_task_batches=200).found
        []
    """

    def __init__(
        self,
        detector: Detector | None = None,
        *,
        monitor: str = "loss",
        mode: Literal["min", "max"] = "min",
        min_task_batches: int = 50,
        snapshot_every_n_batches: int = 10,
        recent_samples: int = 500,
        recent_bytes: float = 2**28,
        check_every_n_batches: int = 5,
        feature_layer: str | None = None,
    ) -> None:
        super().__init__(signal_of(monitor, feature_layer), check_every_n_batches)
        if isinstance(detector, Plateau):
            raise ValueError("Plateau finds where a loss comes to rest, not a change: use PlateauBoundaries")
        if mode not in ("min", "max"):
            raise ValueError(f"mode={mode!r} is neither 'min' nor 'max'")
        if feature_layer is not None and monitor != "feature_shift":
            raise ValueError(f"feature_layer is for monitor='feature_shift', not for {monitor!r}")
        self.detector, self.monitor, self.mode, self.feature_layer = detector, monitor, mode, feature_layer
        if integer("min_task_batches", min_task_batches, least=2) < check_every_n_batches:
            raise ValueError(
                f"check_every_n_batches={check_every_n_batches} must not exceed "
                f"min_task_batches={min_task_batches}, or two tasks would end at once"
            )
        self.min_task_batches = min_task_batches
        self.rise = RiseMonitor(detector, warm_up=min_task_batches, logarithm=mode == "min")
        self.snapshot_every_n_batches = integer("snapshot_every_n_batches", snapshot_every_n_batches, least=1)
        self.found: list[Boundary] = []
        self.trace = Trace()
        self.recent_samples = integer("recent_samples", recent_samples, least=1)
        self.recent_bytes = positive("recent_bytes", recent_bytes, endless=True)
        self._recent = RecentBatches(self.recent_samples, self.recent_bytes, device="cpu")
        self._snapshots = Snapshots()
        self._onset = 0

    @property
    def recent_batches(self) -> Iterable[Any]:
        """What rules measure on at the end of a task."""
        return self._recent

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the batch, and at first the network as it is."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._snapshots.latest < 0:
            self._snapshots.take(trainer, pl_module, self._batches)
        self._recent.append(batch, number=self._batches)
        if self._recent.seen == 1:
            self._say_what_is_kept(trainer)

    def _say_what_is_kept(self, trainer: Trainer) -> None:
        kept, wanted = self._recent.capacity, self._recent.samples
        say(
            trainer,
            f"DriftBoundaries keeps up to {kept} samples from before a change and as many since, on the CPU "
            f"in at most {self._recent.max_bytes / 2**20:.0f} MiB.",
        )
        if kept < wanted:
            rank_zero_warn(
                f"recent_bytes has room for {kept} of the {wanted} recent_samples that rules may measure on."
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks for a change, and takes a snapshot now and then."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if not self._unread:  # all values have been seen
            if self._batches - self._snapshots.latest >= self.snapshot_every_n_batches:
                self._snapshots.take(trainer, pl_module, self._batches)
            self._look_back()
        if is_due(trainer):
            log(trainer, {log_keys.DRIFT_SCORE: self.rise.score})

    def see(self, trainer: Trainer, batch: int, value: float) -> None:
        """Ends the task if the values have risen for good."""
        self.rise.update(value if self.mode == "min" else -value)
        self.trace.add(batch, value, self.rise.score)
        if self.rise.age == 0:
            self._onset = batch + 1
        if self.rise.drift_detected:
            boundary, score = Boundary(self.task, self._batches - 1, self._onset), self.rise.score
            self.found.append(boundary)
            self.end(trainer, as_of=self._as_of_onset(trainer))
            self._log(trainer, boundary, score)

    def progress_bar_items(self) -> dict[str, str]:
        """With the evidence for a change: in per cent of an alarm, if the detector says it so."""
        detector, score = self.rise.detector, f"{self.rise.score:.1f}"
        if isinstance(detector, CUSUM):
            score = f"{detector.sum / detector.threshold:.0%}"
        return super().progress_bar_items() | {"drift": score}

    def task_summary(self, task: int) -> str | None:
        """How the end was found."""
        if not self.found or self.found[-1].task != task:
            return None
        onset, delay = self.found[-1].onset, self.found[-1].delay
        return f"data changed near batch {onset}, found {delay} later"

    def _look_back(self) -> None:
        """Keeps what there would have to be if a change has begun at the present estimate."""
        self._recent.divide(self._onset)
        self._snapshots.prune(self._onset)

    @contextmanager
    def _as_of_onset(self, trainer: Trainer) -> Iterator[None]:
        self._look_back()
        with self._snapshots.rewound(trainer, trainer.lightning_module):
            yield
        self._recent.forget_before(self._onset)
        self._snapshots.take(trainer, trainer.lightning_module, self._batches)
        self.rise.restart()
        self._onset = self._batches

    def _log(self, trainer: Trainer, boundary: Boundary, score: float) -> None:
        log(
            trainer,
            {
                log_keys.BOUNDARY: boundary.task,
                log_keys.BOUNDARY_ONSET: boundary.onset,
                log_keys.BOUNDARY_DELAY: boundary.delay,
                log_keys.DRIFT_SCORE: score,
            },
        )

    def state_dict(self) -> dict[str, Any]:
        """With all that is needed to find a change that has begun before the checkpoint."""
        return super().state_dict() | {
            "rise": self.rise.state_dict(),
            "found": [list(boundary) for boundary in self.found],
            "trace": self.trace.state_dict(),
            "snapshots": self._snapshots.state_dict(),
            "onset": self._onset,
        }

    def process_state(self) -> dict[str, Any]:
        """With the recent samples, of which each process has its own."""
        return super().process_state() | {"recent": self._recent.state_dict()}

    def restore_process(self, state_dict: dict[str, Any]) -> None:
        """Goes on with this process's samples."""
        super().restore_process(state_dict)
        self._recent.load_state_dict(state_dict["recent"])

    def restore(self, state_dict: dict[str, Any]) -> None:
        """Goes on in the task in which the checkpoint was written."""
        super().restore(state_dict)
        self.rise.load_state_dict(state_dict["rise"])
        self.found = [Boundary(*found) for found in state_dict["found"]]
        self.trace.load_state_dict(state_dict["trace"])
        self._snapshots.load_state_dict(state_dict["snapshots"])
        self._onset = state_dict["onset"]
