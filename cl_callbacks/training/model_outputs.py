"""Mixins of rules that need a model's outputs and labels for a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from cl_callbacks.gradients.model_outputs import Found, as_pair, model_outputs
from cl_callbacks.gradients.per_sample import PerSampleGradients
from cl_callbacks.tensors.shards import group_of
from cl_callbacks.training.quiet import forward_precision, quiet
from cl_callbacks.training.task_batches import refuse_data_read_once

_REMEDY = "override `outputs(pl_module, batch)` of the rule to return (outputs, labels) of your batch"


class OutputsOfBatch(Callback):
    """Mixin of the rules that run a model for its outputs."""

    def outputs(self, pl_module: LightningModule, batch: Any) -> Found:
        """The model's outputs for a batch and the labels, if it has any.

        This is the only method to override for batches of another structure; by default
        :func:`~cl_callbacks.gradients.model_outputs.model_outputs` reads ``(x, y)`` pairs, ``(x, y, task)``,
        single tensors and mappings. The rows of what it returns are the samples: a batch itself is never
        counted, and may be anything, such as packed sequences, a graph, or several batches of different
        sizes.

        Args:
            pl_module: the module, in evaluation mode and in the Trainer's precision.
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
        """Calls :meth:`outputs` in the Trainer's precision; a pair also where that returns only outputs."""
        with forward_precision(pl_module):
            return as_pair(self.outputs(pl_module, batch))

    @property
    def own_outputs(self) -> bool:
        """Whether :meth:`outputs` is overridden."""
        return type(self).outputs is not OutputsOfBatch.outputs or "outputs" in vars(self)

    def read_batch(self, pl_module: LightningModule, batch: Any) -> tuple[Tensor, Tensor | None]:
        """Outputs and labels, which have one row per sample.

        Raises:
            MisconfigurationException: the module has no ``forward``.
            RuntimeError: the outputs cannot be read.
            ValueError: they have no rows, or other ones than the labels.
        """
        name, model = type(self).__name__, type(pl_module).__name__
        try:
            outputs, labels = self.outputs_and_labels(pl_module, batch)
        except Exception as error:
            if _REMEDY in str(error) and not self.own_outputs:
                raise
            if isinstance(error, NotImplementedError) and type(pl_module).forward is LightningModule.forward:
                raise MisconfigurationException(
                    f"{name} needs the outputs of {model} for a batch, and {model} has no `forward`: let it "
                    f"return them for the batch's inputs, or {_REMEDY}."
                ) from None
            why = f"({type(error).__name__}: {error})"
            if isinstance(batch, Mapping):
                why += ", whose entries go to the arguments of `forward` that have their names"
            raise RuntimeError(
                f"`{name}.outputs` failed on a {type(batch).__name__}, a training batch of {model} {why}."
                if self.own_outputs
                else f"{name} could not read the outputs of {model} from its first batch {why}. If its "
                f"forward does not take the batch's inputs, {_REMEDY}"
            ) from error
        source = f"`{name}.outputs` returned" if self.own_outputs else f"{model}.forward returned"
        remedy = "let it return" if self.own_outputs else f"{_REMEDY}, with"
        if not isinstance(outputs, Tensor) or outputs.ndim == 0 or not len(outputs):
            got = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ValueError(f"{source} outputs of {got}: {remedy} one row per sample, (N, ...)")
        if isinstance(labels, Tensor) and labels.ndim and len(labels) != len(outputs):
            raise ValueError(
                f"{source} outputs of shape {tuple(outputs.shape)} for labels of shape "
                f"{tuple(labels.shape)}, and the rows of both are the samples: {remedy} one row per sample "
                f"in each, (N, ...), or the outputs alone if the labels are not needed"
            )
        return outputs, labels


class ReadsOutputs(OutputsOfBatch):
    """Mixin of the rules that measure importance from a model's outputs; tries it on the first batch."""

    reads_task_data: ClassVar[bool] = True
    """Whether the rule reads the task's data again when it ends: boundaries keep recent batches for it."""

    def check_outputs(self, outputs: Tensor, labels: Tensor | None) -> None:
        """Raises an error if the rule does not support these outputs and labels, of the whole first batch."""

    def measured(self, pl_module: LightningModule) -> Sequence[Tensor]:
        """Parameters whose per-sample gradients the rule will measure."""
        return ()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Schedules the check of the outputs for the first batch of this fit."""
        super().on_train_start(trainer, pl_module)
        self._outputs_checked = False

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Tries the measurement before the first step, so that nothing fails when the first task ends."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if not self._outputs_checked:
            if self.reads_task_data:
                refuse_data_read_once(trainer)
            with quiet(trainer, pl_module):
                self.try_batch(pl_module, batch)
            self._outputs_checked = True

    def try_batch(self, pl_module: LightningModule, batch: Any) -> None:
        """Measures on a batch as at the end of a task, and raises what is wrong."""
        outputs, labels = self.read_batch(pl_module, batch)
        if not outputs.requires_grad:
            remedy = "" if self.own_outputs else f", or {_REMEDY}"
            raise ValueError(
                f"the outputs of {type(pl_module).__name__} carry no gradient, so no importance can "
                f"be measured: let its forward run without no_grad and detach{remedy}"
            )
        self.check_outputs(outputs, labels)
        parameters = self.measured(pl_module)
        if not parameters or group_of(parameters) is not None:  # shards need all processes
            return
        names = {id(p): name for name, p in pl_module.named_parameters()}
        named = {names[id(p)]: p for p in parameters}
        try:
            PerSampleGradients(pl_module, named, lambda b: self.outputs_and_labels(pl_module, b)).run(batch)
        except Exception as error:
            raise RuntimeError(
                f"{type(self).__name__} could not compute the per-sample gradients of "
                f"{type(pl_module).__name__} on its first batch ({type(error).__name__}: {error}): leave out "
                f"the parameters that they fail for with `exclude`, or use a rule that needs none, such as "
                f"SynapticIntelligence"
            ) from error
