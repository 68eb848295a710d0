"""Dark experience replay: outputs are remembered beside the samples."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import Unpack

from cl_callbacks.functional.replay import stored_output_loss
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import NON_NEGATIVE
from cl_callbacks.rules.rehearsal.replay_rule import ReplayRule
from cl_callbacks.rules.rehearsal.sample_memory import Drawn
from cl_callbacks.rules.rule_options import ReplayOptions
from cl_callbacks.tensors.random_numbers import mixed_seed
from cl_callbacks.training.quiet_step import quiet_step


class DarkExperienceReplay(ReplayRule):
    r"""Keeps the outputs that the network had for remembered samples when it saw them: DER++.

    To the gradient on the task's batch is added that of

    .. math:: \alpha\,\mathrm{mean}\,\bigl(z(x') - z'\bigr)^2 + \beta\,L(x'', y''),

    with two independent draws :math:`x'` and :math:`x''` from the memory. :math:`z'` are the outputs for
    :math:`x'` in training mode, before the step with which it entered, and stay what they were. The mean is
    over samples and outputs; if a head has grown since, over the outputs that there were. :math:`L` is the
    module's own ``training_step``. With :math:`\beta=0` this is DER.

    How outputs are read is ``outputs``, which may be overridden. All else is as in
    :class:`~cl_callbacks.ExperienceReplay`: **real samples are kept, on the CPU and in checkpoints**;
    ``save_samples=False`` keeps them out of these.

    Source: Buzzega et al. 2020 (arXiv 2004.07211), who use :math:`\alpha` from 0.1 to 1 and :math:`\beta`
    from 0.5 to 1.

    Args:
        memory: number of samples to keep, over all processes.
        alpha: :math:`\alpha`, at least 0.
        beta: :math:`\beta`, at least 0; with both 0 training is as without the rule, bit for bit.
        options: ``batch_size`` (of each draw), ``every_n_steps``, ``select``, ``max_bytes``, ``past_only``,
            ``save_samples``, ``seed`` and others: see
            :class:`~cl_callbacks.rules.rehearsal.replay_rule.ReplayRule`.

    Raises:
        ValueError: an argument that cannot work, at construction.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(
        ...     callbacks=[DarkExperienceReplay(500, alpha=0.5)], logger=False, enable_checkpointing=False)
    """

    dial = "alpha"

    @checked(alpha=NON_NEGATIVE, beta=NON_NEGATIVE)
    def __init__(
        self, memory: int = 500, *, alpha: float = 0.5, beta: float = 0.5, **options: Unpack[ReplayOptions]
    ) -> None:
        super().__init__(memory, **options)
        self.alpha, self.beta = alpha, beta

    @property
    def is_due(self) -> bool:
        """Whether the next step adds the gradient."""
        return (self.alpha > 0 or self.beta > 0) and super().is_due

    def beside(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> Tensor | None:
        """The outputs for a batch as it is trained on, before the step."""
        seed = mixed_seed(self.seed, self.samples.next_number, trainer.global_rank)
        with quiet_step(trainer, pl_module, seed), torch.no_grad():
            outputs = self._outputs(pl_module, batch)
        rows = self._read(batch).count
        if len(outputs) != rows:
            raise ValueError(
                f"{type(self).__name__} keeps outputs beside each sample, and `outputs` returned "
                f"{len(outputs)} rows for a batch of {rows} samples: override `outputs(pl_module, batch)` of "
                f"the rule to return one row per sample."
            )
        return outputs

    def extra_loss(self, trainer: Trainer, pl_module: LightningModule) -> Tensor | None:
        """The distance from stored outputs, and the loss on other samples."""
        losses = [(self.alpha, self._distance(pl_module))] if self.alpha > 0 else []
        if self.beta > 0:
            losses.append((self.beta, self.replayed_loss(self.drawn(stream=1))))
        found = [factor * loss for factor, loss in losses if loss is not None]
        return torch.stack(found).sum() if found else None

    def try_samples(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, part: Drawn
    ) -> Tensor | None:
        """Reads the outputs too."""
        beside = self.beside(trainer, pl_module, batch)
        self._beside_bytes = 0 if beside is None else beside[0].nbytes
        loss = super().try_samples(trainer, pl_module, batch, part)
        outputs = self._outputs(pl_module, part.batch)
        return loss if loss is None else loss + stored_output_loss(outputs, outputs.detach())

    def _outputs(self, pl_module: LightningModule, batch: Any) -> Tensor:
        return self.read_batch(pl_module, batch)[0]

    def _distance(self, pl_module: LightningModule) -> Tensor | None:
        found = [
            part.share * stored_output_loss(self._outputs(pl_module, part.batch), part.extra)
            for part in self.drawn()
            if part.extra is not None
        ]
        return torch.stack(found).sum() if found else None
