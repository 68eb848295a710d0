"""Experience replay: remembered samples are learned again beside the new ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from typing_extensions import Unpack

from cl_callbacks.guards.arguments import checked
from cl_callbacks.rules.rehearsal.replay_rule import ReplayRule
from cl_callbacks.rules.rule_options import ReplayOptions
from cl_callbacks.rules.rule_scale import ActsOn
from cl_callbacks.tensors.rows import alike, join_rows, pad_rows, read_rows
from cl_callbacks.training.lightning_private import is_stepping_batch
from cl_callbacks.training.shadow_method import ShadowMethod


class ExperienceReplay(ReplayRule):
    r"""Trains on remembered samples beside those of the task: rehearsal.

    In every optimizer step the gradient of the module's own loss on samples that are drawn from a memory is
    added to that on the task's batch :math:`B`,

    .. math:: g = \nabla_\theta L(B) + w\,\nabla_\theta L(M), \qquad M \subset \text{memory}.

    The memory is a sample of all batches so far, those of the present task among them, so that no boundaries
    are needed; ``past_only=True`` draws from tasks that have ended. A task that is found to have ended late
    (:class:`~cl_callbacks.DriftBoundaries`) has the samples from before the change.

    ``training_step`` runs once more in each step for :math:`L(M)`, in training mode and without a trace: it
    logs nothing, metrics and random numbers of the training stay as they are, and BatchNorm normalises the
    remembered samples by their own statistics and does not keep them. With ``joined=True`` the remembered
    samples are appended to each batch that ``training_step`` gets instead, which costs less: the loss is then
    the mean over both (where both have as many, half of the sum above), what is logged includes them, and
    BatchNorm's statistics are of old and new samples together.

    **Real samples are kept, on the CPU and in checkpoints**; ``save_samples=False`` keeps them out of these.

    Source: Chaudhry et al. 2019, on tiny episodic memories (arXiv 1902.10486).

    Args:
        memory: number of samples to keep, over all processes.
        weight: :math:`w`, at least 0; 0 leaves training as it is, bit for bit.
        joined: whether to append the samples to the batches of the task, for which ``weight`` is 1 or 0.
        options: ``batch_size``, ``every_n_steps``, ``select``, ``max_bytes``, ``past_only``,
            ``save_samples``, ``seed`` and others: see
            :class:`~cl_callbacks.rules.rehearsal.replay_rule.ReplayRule`.

    Raises:
        ValueError: an argument that cannot work, at construction.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[ExperienceReplay(500)], logger=False, enable_checkpointing=False)
    """

    saved: ClassVar[tuple[str, ...]] = ("steps", "joins")

    @checked()
    def __init__(
        self,
        memory: int = 500,
        *,
        weight: float = 1.0,
        joined: bool = False,
        **options: Unpack[ReplayOptions],
    ) -> None:
        super().__init__(memory, weight=weight, **options)
        if joined and weight not in (0, 1):
            raise ValueError(
                f"weight={weight:g}: samples that are joined to a batch count as much as each of its own: "
                f"use joined=False, or another batch_size"
            )
        if joined and (self.parameters or self.exclude):
            raise ValueError(
                "samples that are joined to a batch train all weights: use joined=False with parameters or "
                "exclude"
            )
        self.joined = joined
        self.joins = 0
        """Number of batches before the present one that samples were joined to for the next step."""
        self._has_joined = False
        self._shadow: ShadowMethod | None = None

    @property
    def acts_on(self) -> ActsOn | None:
        """The gradient, unless samples are joined to batches."""
        return None if self.joined else super().acts_on

    def extra_loss(self, trainer: Trainer, pl_module: LightningModule) -> Tensor | None:
        """The loss on samples from the memory."""
        return self.replayed_loss(self.drawn())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wraps ``training_step`` where samples are joined to its batches."""
        super().on_train_start(trainer, pl_module)
        if self.joined:
            self._refuse_others(trainer)
            self._shadow = ShadowMethod(pl_module, "training_step", self._joined_step)
            self._shadow.attach()

    def _refuse_others(self, trainer: Trainer) -> None:
        others = [
            type(rule).__name__
            for rule in trainer.callbacks  # type: ignore[attr-defined]
            if rule is not self and (getattr(rule, "weight_noise", None) or getattr(rule, "joined", False))
        ]
        if others:
            raise MisconfigurationException(
                f"{type(self).__name__}(joined=True) changes the batches of `training_step`, which "
                f"{others[0]} runs in a way of its own: use joined=False."
            )

    def _joined_step(self, training_step: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any) -> Any:
        if super().is_due:
            for part in self.drawn(stream=self.joins, joined=True):
                batch = join_batches(self.one_for_each(batch), part.batch)
            self._has_joined = True
        return training_step(batch, *args, **kwargs)

    @property
    def is_due(self) -> bool:
        """Whether the next step adds a gradient; never where samples are joined to batches."""
        return not self.joined and super().is_due

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Counts batches of the next step anew, whether this one was taken or skipped."""
        super().on_train_batch_end(trainer, *args)
        self.joins = 0 if is_stepping_batch(trainer) else self.joins + self._has_joined
        self._has_joined = False

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restores the module's own ``training_step``."""
        super().teardown(trainer, pl_module, stage)
        if self._shadow is not None:
            self._shadow.detach()
            self._shadow = None


def join_batches(batch: Any, remembered: Any) -> Any:
    """Appends the samples of a batch to another one on the same device.

    Raises:
        ValueError: samples that do not fit into one batch.

    Example:
        >>> import torch
        >>> join_batches([torch.ones(1, 2), ["a"]], [torch.zeros(1, 2), ["b"]])
        [tensor([[1., 1.],
                [0., 0.]]), ['a', 'b']]
    """
    own, others = read_rows(batch), read_rows(remembered)
    rows = own.take(range(own.count)) + others.take(range(others.count))
    rows = pad_rows(rows, own.paths)
    if len(alike(rows, own)) > 1:
        raise ValueError(
            "ExperienceReplay(joined=True): remembered samples and those of this batch have other shapes, or "
            "differ in what a batch has once for all of its samples: use joined=False, which trains on them "
            "in batches of their own."
        )
    return join_rows(rows, own)
