"""Task boundaries where a detector finds that the data have changed."""

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
from cl_callbacks.boundaries.transaction import Revert
from cl_callbacks.drift.cusum import CUSUM
from cl_callbacks.drift.plateau import Plateau
from cl_callbacks.drift.rise_monitor import Detector, RiseMonitor
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import AT_LEAST_ONE, ENDLESS, Bounds
from cl_callbacks.training import log_keys
from cl_callbacks.training.log import is_due, log
from cl_callbacks.training.progress import say


class Boundary(NamedTuple):
    """A boundary that was found. Batches are counted over the whole training.

    Attributes:
        task: the task that ended.
        batch: the batch at which the change was found.
        onset: estimate of the first batch after the change.
    """

    task: int
    batch: int
    onset: int

    @property
    def delay(self) -> int:
        """Number of batches from the onset to the batch at which the change was found."""
        return self.batch - self.onset


class DriftBoundaries(MonitoredBoundaries):
    r"""A task ends when the training loss rises for good: the data have changed.

    The loss of each batch, before the update that it makes, is ranked among the recent ones, and the rank, as
    a number of standard deviations, goes to a change detector, whose alarms count if the loss has risen (see
    :class:`~cl_callbacks.drift.rise_monitor.RiseMonitor`). The data need no task labels.

    An alarm comes some steps after the change, when the network has begun to learn the new data. Therefore
    the task ends as of the onset of the change: on ``on_task_end``, weights and buffers are those of the
    last snapshot before it, what rules have accumulated (such as the path integral of
    :class:`~cl_callbacks.rules.consolidation.synaptic_intelligence.SynapticIntelligence`) is reset to its
    value there, and rules that measure on data get the last samples from before it. Then training continues
    from the current weights. So no rule needs access to data of an earlier task, and none is measured on the
    next one's.

    By as much as a callback moves weights in ``on_task_end``, the current ones move too; changes to buffers
    are lost (make them in ``on_task_start``).

    The task that is open at the end of the fit continues in the next fit. Boundaries are logged as
    ``cl/boundary`` (the task that ended), ``cl/boundary_onset`` and ``cl/boundary_delay`` in batches, and
    ``cl/drift/score`` is the evidence for a change. Memory: two snapshots of weights and buffers, and on the
    CPU the recent samples. All of it is saved in checkpoints, with the recent samples of every process, so
    that a resumed run gives bit-identical results. With another number of processes some of these samples
    are lost.

    Args:
        detector: change detector for normal scores; default: :class:`~cl_callbacks.drift.cusum.CUSUM`. Any
            object with ``update(x)`` and ``drift_detected`` works, such as ``river.drift.ADWIN()``.
        monitor: ``"loss"``, as returned by ``training_step``; ``"feature_shift"``, the distance of the
            features from their running mean, for shifts that the loss misses; or a key that the module
            logs in each training step.
        mode: ``"min"`` if lower values are better, ``"max"`` if higher ones are.
        min_task_batches: number of batches after a boundary that calibrate the detector for the new task;
            no task ends within them.
        snapshot_every_n_batches: batches between snapshots, which are taken when values are read: up to this
            many of the last steps of a task are missing from its consolidated weights.
        recent_samples: number of samples to keep from before a change, per process, and as many from after
            it; use at least the ``samples`` of the rules.
        recent_bytes: upper limit of their memory, in bytes.
        check_every_n_batches: batches between two reads of values from the device, each of which waits for
            it; a change is found up to this many batches later.
        feature_layer: name of the module whose input are the features; default: the last ``nn.Linear``.
        independent: whether losses are taken to be independent of each other, as those of shuffled data are,
            instead of measuring it. For tasks of less than some 150 batches, which look like a period.

    Attributes:
        found: the boundaries so far.
        trace: batch, value and evidence for a change over the training so far.

    Raises:
        ValueError: an invalid argument, at construction.
        TypeError: a detector without ``update`` and ``drift_detected``.
        MisconfigurationException: in training, when there is nothing to watch: no loss, a key that is not
            logged, a layer that does not run.

    Example:
        >>> from cl_callbacks.drift import CUSUM
        >>> DriftBoundaries(CUSUM(threshold=20.0), min_task_batches=200).found
        []
    """

    @checked(
        min_task_batches=Bounds(least=2),
        snapshot_every_n_batches=AT_LEAST_ONE,
        recent_samples=AT_LEAST_ONE,
        recent_bytes=ENDLESS,
        check_every_n_batches=AT_LEAST_ONE,
    )
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
        independent: bool = False,
    ) -> None:
        super().__init__(signal_of(monitor, feature_layer), check_every_n_batches)
        if isinstance(detector, Plateau):
            raise ValueError("Plateau finds where a loss comes to rest, not a change: use PlateauBoundaries")
        if feature_layer is not None and monitor != "feature_shift":
            raise ValueError(f"feature_layer is for monitor='feature_shift', not for {monitor!r}")
        self.detector, self.monitor, self.mode, self.feature_layer = detector, monitor, mode, feature_layer
        if min_task_batches < check_every_n_batches:
            raise ValueError(
                f"check_every_n_batches={check_every_n_batches} must not exceed "
                f"min_task_batches={min_task_batches}, or two tasks would end at once"
            )
        self.min_task_batches = min_task_batches
        self.independent = independent
        self.rise = RiseMonitor(
            detector, warm_up=min_task_batches, logarithm=mode == "min", independent=independent
        )
        self.snapshot_every_n_batches = snapshot_every_n_batches
        self.found: list[Boundary] = []
        self.trace = Trace()
        self.recent_samples, self.recent_bytes = recent_samples, recent_bytes
        self._recent = RecentBatches(self.recent_samples, self.recent_bytes, device="cpu")
        self._snapshots = Snapshots()
        self._onset = 0

    @property
    def recent_batches(self) -> Iterable[Any]:
        """Samples on which rules measure at the end of a task."""
        return self._recent

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds out who reads the recent batches."""
        super().on_train_start(trainer, pl_module)
        self._recent.keep_for(trainer, pl_module, self)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keeps a copy of the batch; before the first one, also takes a snapshot of the network."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._snapshots.latest < 0:
            self._snapshots.take(trainer, pl_module, self._batches)
        self._recent.append(batch, number=self._batches)
        if self._recent.wanted and self._recent.seen == 1:
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
        """Looks for a change, and takes a snapshot if one is due."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if not self._unread:  # all values have been seen
            if self._batches - self._snapshots.latest >= self.snapshot_every_n_batches:
                self._snapshots.take(trainer, pl_module, self._batches)
            self._prune()
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
        """Adds the evidence for a change; for CUSUM, in per cent of its threshold."""
        detector, score = self.rise.detector, f"{self.rise.score:.1f}"
        if isinstance(detector, CUSUM):
            score = f"{min(1.0, self.rise.score / detector.threshold):.0%}"
        return super().progress_bar_items() | {"drift": score}

    def task_summary(self, task: int) -> str | None:
        """Says near which batch the data changed, and how much later this was found."""
        if not self.found or self.found[-1].task != task:
            return None
        onset, delay = self.found[-1].onset, self.found[-1].delay
        return f"data changed near batch {onset}, found {delay} later"

    def _prune(self) -> None:
        """Keeps the samples and snapshots that are needed if the task ends at the estimated onset."""
        self._recent.divide(self._onset)
        self._snapshots.prune(self._onset)

    @contextmanager
    def _as_of_onset(self, trainer: Trainer) -> Iterator[None]:
        self._prune()
        with self._snapshots.rewound(trainer, trainer.lightning_module):
            yield
        self._recent.forget_before(self._onset)
        self._snapshots.take(trainer, trainer.lightning_module, self._batches)
        self.rise.restart()
        self._onset = self._batches

    def reversal(self) -> Revert:
        """Also forgets the boundary at which a task could not end."""
        revert, found = super().reversal(), [b for b in self.found if b.task != self.task]

        def forget() -> None:
            revert()
            self.found = found

        return forget

    def _log(self, trainer: Trainer, boundary: Boundary, score: float) -> None:
        where = {log_keys.BOUNDARY_ONSET: boundary.onset, log_keys.BOUNDARY_DELAY: boundary.delay}
        log(trainer, {log_keys.BOUNDARY: boundary.task, log_keys.DRIFT_SCORE: score} | where)

    def state_dict(self) -> dict[str, Any]:
        """Adds what is needed to find a change that began before the checkpoint."""
        return super().state_dict() | {
            "rise": self.rise.state_dict(),
            "found": [list(boundary) for boundary in self.found],
            "trace": self.trace.state_dict(),
            "snapshots": self._snapshots.state_dict(),
            "onset": self._onset,
        }

    def process_state(self) -> dict[str, Any]:
        """Adds this process's recent samples."""
        return super().process_state() | {"recent": self._recent.state_dict()}

    def restore_process(self, state_dict: dict[str, Any]) -> None:
        """Restores this process's recent samples."""
        super().restore_process(state_dict)
        self._recent.load_state_dict(state_dict["recent"])

    def restore(self, state_dict: dict[str, Any]) -> None:
        """Restores the detector, the boundaries found so far and the snapshots."""
        super().restore(state_dict)
        self.rise.load_state_dict(state_dict["rise"])
        self.found = [Boundary(*found) for found in state_dict["found"]]
        self.trace.load_state_dict(state_dict["trace"])
        self._snapshots.load_state_dict(state_dict["snapshots"])
        self._onset = state_dict["onset"]
