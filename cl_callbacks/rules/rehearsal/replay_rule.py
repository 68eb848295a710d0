"""The base class of rules that remember samples and train on them again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import Unpack

from cl_callbacks.boundaries.transaction import Revert
from cl_callbacks.functional.fisher import sample_losses
from cl_callbacks.gradients.model_outputs import classes_of
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import AT_LEAST_ONE
from cl_callbacks.rules.compatibility import refuse_manual, refuse_own_fetching
from cl_callbacks.rules.rehearsal.extra_loss import LossPull, gradients_of
from cl_callbacks.rules.rehearsal.heads_of_samples import refusing_heads_of_samples
from cl_callbacks.rules.rehearsal.joint_memory import (
    batches_of_one_kind,
    joint_state,
    merge_over_processes,
    restore_joint,
)
from cl_callbacks.rules.rehearsal.sample_memory import Drawn, SampleMemory
from cl_callbacks.rules.rule_options import RuleOptions, Select
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.tensors.containers import map_tensors
from cl_callbacks.tensors.rows import BatchRows, join_rows, read_rows, row_bytes, with_values_of_each
from cl_callbacks.training.arriving_batches import ArrivingBatches
from cl_callbacks.training.lightning_private import is_stepping_batch
from cl_callbacks.training.model_outputs import OutputsOfBatch
from cl_callbacks.training.progress import say
from cl_callbacks.training.quiet import quiet
from cl_callbacks.training.quiet_step import quiet_step, training_loss


class ReplayRule(OutputsOfBatch, LossPull):
    """Base of the rules that keep samples in a :class:`~.sample_memory.SampleMemory`.

    The samples of a batch enter the memory when the step that was made on them is over, so that a draw never
    contains those of the present batch, and a step that is skipped (an overflow, say) leaves none. The memory
    is of batches as ``training_step`` gets them, after the hooks that transfer them.

    Args:
        memory: number of samples to keep.
        batch_size: number of samples to draw for a step, by each process; default: as many as the latest
            batch has.
        max_bytes: limit of the memory of all samples together.
        select: which samples are kept: see :class:`~.sample_memory.SampleMemory`. ``"balanced"`` is by label
            where each sample has a whole number for one, and else by task; ``"loss"`` by the cross-entropy
            of each sample when it comes, for which the network runs once more.
        past_only: whether to draw only samples of tasks that have ended.
        save_samples: whether checkpoints contain the samples. Without them a resumed training begins with an
            empty memory.
        weight, every_n_steps, seed, options: as of :class:`~.extra_loss.LossPull`.

    Raises:
        ValueError: an argument that cannot work, at construction; a batch whose rows cannot be told, a memory
            beyond ``max_bytes``, a ``training_step`` that fails on remembered samples, before the first step.
        MisconfigurationException: manual optimization, or a ``training_step`` that takes ``dataloader_iter``.
    """

    shardable: ClassVar[bool] = True

    @checked(batch_size=AT_LEAST_ONE)
    def __init__(
        self,
        memory: int = 500,
        *,
        batch_size: int | None = None,
        weight: float = 1.0,
        every_n_steps: int = 1,
        select: Select = "reservoir",
        max_bytes: float = 2**28,
        past_only: bool = False,
        save_samples: bool = True,
        seed: int = 0,
        **options: Unpack[RuleOptions],
    ) -> None:
        super().__init__(weight=weight, every_n_steps=every_n_steps, seed=seed, **options)
        self.samples = SampleMemory(memory, max_bytes, select, seed)
        """The samples that are remembered."""
        self.memory, self.max_bytes, self.select = memory, max_bytes, select
        self.batch_size = batch_size
        self.past_only, self.save_samples = past_only, save_samples
        self._latest = 0  # number of samples in the latest batch
        self._beside_bytes = 0  # of what is kept beside a sample
        self._tried = False
        self._as_of: int | None = None
        self._saved: dict[str, Any] | None = None  # until it is known which process this is
        self._arriving: ArrivingBatches | None = None
        self._together: dist.ProcessGroup | None = None  # processes that share weights, and so all forwards

    # -- what a rule uses --------------------------------------------------------------------------

    def drawn(self, stream: int = 0, *, joined: bool = False) -> list[Drawn]:
        """The samples that are drawn for the next step, on the device; the same until it is taken.

        With ``joined`` they are not run by themselves, but within a batch of the task.
        """
        assert self._fitting is not None
        trainer, pl_module = self._fitting
        samples = self.samples.drawn(
            self.batch_size or self._latest, self.steps, stream=stream, past_only=self.past_only
        )
        if self._together is None or joined:
            drawn = self.samples.batches(samples)
        else:
            drawn = batches_of_one_kind(self.samples, samples, self._together)
        for part in drawn:
            part.batch = to_device(part.batch, trainer, pl_module)
            part.extra = None if part.extra is None else to_device(part.extra, trainer, pl_module)
        return drawn

    def one_for_each(self, batch: Any) -> Any:
        """A batch in which samples have what they share one by one, where the module takes it so.

        Not if parameters are sharded: of such a batch, each process would have gradients of other heads.
        """
        assert self._fitting is not None
        names = () if self.is_sharded else getattr(self._fitting[1], "one_per_sample", ())
        return with_values_of_each(batch, names)

    def replayed_loss(self, drawn: list[Drawn]) -> Tensor | None:
        """Mean over samples of the loss that the module's own ``training_step`` has on them."""
        assert self._fitting is not None
        losses = [(part.share, training_loss(*self._fitting, part.batch)) for part in drawn]
        found = [share * loss for share, loss in losses if loss is not None]
        return torch.stack(found).sum() if found else None

    def _losses(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> Tensor:
        """The cross-entropy of each sample of a batch."""
        with quiet(trainer, pl_module), torch.no_grad():
            return sample_losses(*self.read_batch(pl_module, batch))

    def beside(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> Tensor | None:
        """What to keep beside each sample of a batch, ``(N, ...)``; called if one is to be kept."""
        return None

    # -- hooks -------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses modules whose steps cannot be repeated, and takes its part of what was restored."""
        refuse_manual(self, pl_module)
        refuse_own_fetching(self, pl_module)
        super().on_train_start(trainer, pl_module)
        self._tried = False
        self.samples.join(trainer.global_rank, trainer.world_size)
        if self.is_sharded and trainer.world_size > 1:
            self._together = dist.new_group(backend="gloo")  # on the CPU: no device is waited for
        if self._saved is not None:
            restore_joint(self.samples, self._saved)
            self._saved = None
        self._arriving = ArrivingBatches(trainer, lambda batch: batch)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Offers the samples of the batch to the memory; tries on the first batch what will be done later."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        rows = self._read(self.one_for_each(batch))
        self._latest = rows.count
        if not self._tried:
            apart = self.is_sharded and trainer.world_size > 1
            with refusing_heads_of_samples(type(self).__name__, pl_module) if apart else nullcontext():
                self._try(trainer, pl_module, batch, rows)
            self._tried = True
        before = batch if self._arriving is None else self._arriving.read(batch)  # on the CPU, if it was
        groups = classes_of(before, rows.count) if self.select == "balanced" else None
        beside = cache(partial(self.beside, trainer, pl_module, batch))
        if self.is_sharded:
            beside()  # even if no sample of this process is to be kept: all run their forwards together
        self.samples.begin_batch()
        self.samples.offer(
            self.one_for_each(before),
            groups=groups,
            weights=(lambda: self._losses(trainer, pl_module, batch)) if self.select == "loss" else None,
            extra=beside,
        )

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Lets the samples enter after a step was made on them."""
        self.samples.end_batch()
        if self._stepped:
            self.samples.accept()
        elif is_stepping_batch(trainer):
            self.samples.reject()
        super().on_train_batch_end(trainer, *args)

    def consolidate(
        self, trainer: Trainer, pl_module: LightningModule, synapses: SynapseView, task: int
    ) -> bool:
        """Ends the task in the memory, and merges it over processes."""
        self.commit()
        if self._stepped:
            self.samples.accept()
        self.samples.end_task(self._as_of)
        merge_over_processes(self.samples)
        return True

    def on_task_revised(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Does nothing: samples are the same at whatever weights."""

    @property
    def consolidates(self) -> bool:
        """Whether the rule needs the end of a task, to draw only from tasks before."""
        return self.past_only

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets batches arrive as before, and lets go of the other processes."""
        super().teardown(trainer, pl_module, stage)
        if self._together is not None:
            dist.destroy_process_group(self._together)
            self._together = None
        if self._arriving is not None:
            self._arriving.detach()
            self._arriving = None

    def reversal(self) -> Revert:
        """Keeps which samples there are, and of which task each is: samples themselves do not change."""
        rule, samples = self._reversal_to(super().state_dict(), super().restore), self.samples.reversal()

        def revert() -> None:
            rule()
            samples()

        return revert

    # -- boundaries that are found late ------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """The number from which on samples came later."""
        return {"next_number": self.samples.next_number}

    @contextmanager
    def rewound(self, snapshot: dict[str, Any]) -> Iterator[None]:
        """Within, a task that ends does so without the samples that came after the snapshot."""
        self._as_of = snapshot["next_number"]
        try:
            yield
        finally:
            self._as_of = None

    # -- checkpoints -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Adds the samples, if they are to be saved. A collective: all processes must call it."""
        saved = self._saved
        if saved is None and self.save_samples:
            saved = joint_state(self.samples)
        return super().state_dict() | {"samples": saved}

    def restore(self, state_dict: dict[str, Any]) -> None:
        """Restores the samples when the training begins, if they were saved."""
        super().restore(state_dict)
        self._saved = state_dict["samples"]
        if self._saved is not None and len(self._saved["processes"]) == self.samples.processes == 1:
            restore_joint(self.samples, self._saved)
            self._saved = None
        elif self._saved is None and not len(self.samples):
            rank_zero_warn(
                f"{type(self).__name__}: there are no samples in the checkpoint (save_samples=False), so the "
                f"memory begins empty, and nothing of earlier tasks is rehearsed."
            )

    # -- before the first step ---------------------------------------------------------------------

    def _read(self, batch: Any) -> BatchRows:
        try:
            return read_rows(batch)
        except ValueError as error:
            raise ValueError(
                f"{type(self).__name__} remembers single samples, and {error}: let a batch be of tensors, "
                f"lists and dicts with one entry for each sample."
            ) from error

    def _try(self, trainer: Trainer, pl_module: LightningModule, batch: Any, rows: BatchRows) -> None:
        """Trains on some samples of the first batch as if they were remembered, and changes nothing."""
        name, model = type(self).__name__, type(pl_module).__name__
        some = list(range(max(2, -(-rows.count // 2)) if rows.count > 2 else rows.count))
        parameters = [p for p in self.synapses.view.sources if p.requires_grad]
        try:
            part = Drawn(to_device(join_rows(rows.take(some), rows), trainer, pl_module), 1.0)
            with quiet_step(trainer, pl_module, self.seed), self.apart(pl_module):
                loss = self.try_samples(trainer, pl_module, batch, part)
                if loss is not None:
                    gradients_of(loss, parameters)
        except Exception as error:
            raise ValueError(
                f"{name} could not train {model} on {len(some)} of the {rows.count} samples of its first "
                f"batch ({type(error).__name__}: {error}). Remembered samples come in batches of any size, "
                f"of which every tensor has one entry for each sample, and `training_step` returns their "
                f"loss by itself."
            ) from error
        self._say(trainer, rows)

    def try_samples(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, part: Drawn
    ) -> Tensor | None:
        """The loss on some samples of the first batch; what it raises is said before the first step."""
        if self.select == "loss":
            self._losses(trainer, pl_module, batch)
        return self.replayed_loss([part])

    def _say(self, trainer: Trainer, rows: BatchRows) -> None:
        size = row_bytes(rows.take([0])[0]) + self._beside_bytes
        if size * self.memory > self.max_bytes:
            raise ValueError(
                f"{type(self).__name__}: {self.memory} samples of {size} bytes, as the first batch has them, "
                f"take more than max_bytes={self.max_bytes:g}: set memory={int(self.max_bytes // size)}, or "
                f"raise max_bytes."
            )
        if not len(self.samples):
            kept = "and in checkpoints" if self.save_samples else "and not in checkpoints"
            say(
                trainer,
                f"{type(self).__name__} keeps up to {self.memory} samples of some {size} bytes, in at most "
                f"{self.max_bytes / 2**20:.3g} MiB on the CPU {kept}.",
            )


def to_device(batch: Any, trainer: Trainer, pl_module: LightningModule) -> Any:
    """Moves a batch to the device of the training, as the module does, without waiting for it."""
    device = trainer.strategy.root_device
    batch = trainer.precision_plugin.convert_input(batch)
    if device.type != "cpu":
        batch = map_tensors(lambda t: t.pin_memory() if t.is_cpu else t, batch)
    return pl_module.transfer_batch_to_device(batch, device, 0)
