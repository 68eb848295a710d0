"""Mixins of rules that need a model's outputs and labels for a batch."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cl_callbacks.gradients.model_outputs import Found, as_pair, model_outputs
from cl_callbacks.tensors.batches import count_samples, take_samples
from cl_callbacks.training.quiet import quiet

_REMEDY = "override `outputs(pl_module, batch)` of the rule to return (outputs, labels) of your batch"


class OutputsOfBatch(Callback):
    """Mixin of the rules that run a model for its outputs."""

    def outputs(self, pl_module: LightningModule, batch: Any) -> Found:
        """The model's outputs for a batch and the labels, if it has any.

        This is the only method to override for batches of another structure; by default
        :func:`~cl_callbacks.gradients.model_outputs.model_outputs` reads ``(x, y)`` pairs, single tensors
        and mappings.

        Args:
            pl_module: the module, in evaluation mode.
            batch: a training batch, on the device.

        Returns:
            Outputs ``(N, ...)``, one row per sample, alone or with labels (``None`` if there are none).

        Example:
            >>> class OnPairs(ReadsOutputs):
            ...     def outputs(self, pl_module, batch):
            ...         left, right, labels = batch
            ...         return pl_module(left, right), labels
        """
        return model_outputs(pl_module, batch, _REMEDY)

    def outputs_and_labels(self, pl_module: LightningModule, batch: Any) -> tuple[Tensor, Tensor | None]:
        """Calls :meth:`outputs`, and returns a pair also where that returns only outputs."""
        return as_pair(self.outputs(pl_module, batch))


class ReadsOutputs(OutputsOfBatch):
    """Mixin of the rules that measure importance from a model's outputs; checks these at the first batch."""

    def check_outputs(self, outputs: Tensor, labels: Tensor | None) -> None:
        """Raises an error if the rule does not support these outputs and labels, of the whole first batch."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Schedules the check of the outputs for the first batch of this fit."""
        super().on_train_start(trainer, pl_module)
        self._outputs_checked = False

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Checks the outputs before the first step, not only when the first task ends.

        That they have a row for each sample is seen on two samples, what the labels say on all.
        """
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if not self._outputs_checked:
            with quiet(trainer, pl_module):
                few = take_samples(batch, slice(0, 2))
                outputs = self._probe(pl_module, few)
                if not outputs.requires_grad:
                    raise ValueError(
                        f"the outputs of {type(pl_module).__name__} carry no gradient, so no importance can "
                        f"be measured: let its forward run without no_grad and detach, or {_REMEDY}"
                    )
                with torch.no_grad():
                    self.check_outputs(*self.outputs_and_labels(pl_module, batch))
            self._outputs_checked = True

    def _probe(self, pl_module: LightningModule, few: Any) -> Tensor:
        try:
            outputs, _ = self.outputs_and_labels(pl_module, few)
        except Exception as error:
            if _REMEDY in str(error):
                raise
            raise RuntimeError(
                f"{type(self).__name__} could not read the outputs of {type(pl_module).__name__} from its "
                f"first batch ({type(error).__name__}: {error}). If its forward does not take the batch's "
                f"inputs, {_REMEDY}"
            ) from error
        if outputs.ndim == 0 or len(outputs) != count_samples(few):
            raise ValueError(
                f"{count_samples(few)} samples gave outputs of shape {tuple(outputs.shape)}: outputs need "
                f"one row per sample, and most tensors of a batch one entry per sample; {_REMEDY}"
            )
        return outputs
