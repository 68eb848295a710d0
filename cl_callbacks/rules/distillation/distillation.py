"""Distillation: the outputs for new data are held to those of the network before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from typing_extensions import Unpack

from cl_callbacks.compiled.one_thread import eagerly
from cl_callbacks.data.multi_head import MultiHead
from cl_callbacks.functional.distillation import Direction, distillation_loss, positions_with_label
from cl_callbacks.functional.labels import IGNORED
from cl_callbacks.functional.likelihood import Likelihood, Reading, check_likelihood, decide_reading
from cl_callbacks.gradients.model_outputs import Found, as_pair, names_task
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import POSITIVE
from cl_callbacks.guards.few import few
from cl_callbacks.guards.once import first_time
from cl_callbacks.rules.compatibility import refuse_own_fetching
from cl_callbacks.rules.distillation.batch_gradients import BatchGradients
from cl_callbacks.rules.distillation.teachers import AdaptersOff, GivenModule, LastTask
from cl_callbacks.rules.rule_options import RuleOptions
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.training.model_outputs import OutputsOfBatch
from cl_callbacks.training.progress import say
from cl_callbacks.training.quiet import forward_precision
from cl_callbacks.training.quiet_step import quiet_step

On = Literal["outputs", "features"]


class Distillation(OutputsOfBatch, BatchGradients):
    r"""Holds the outputs for new data to those of the network at the end of the latest task: LwF.

    To the gradient of each batch :math:`B` of the task is added that of

    .. math:: \lambda\,T^2\,\mathrm{KL}\bigl(\mathrm{softmax}(z'(x)/T)\,\|\,\mathrm{softmax}(z(x)/T)\bigr),
              \qquad x \in B,

    a mean over samples, with the outputs :math:`z` of the network and :math:`z'` of a teacher. No data of
    earlier tasks are kept. The network runs once more for each batch, in training mode and without a trace,
    and the teacher in evaluation mode. What is not a classifier has another divergence: see
    :func:`~cl_callbacks.functional.distillation_loss`. With ``on="features"`` it is the mean squared distance
    of what a module within the network returns.

    The teacher ``"last_task"`` is the network itself with the weights and buffers of the latest boundary;
    kept, and saved in checkpoints, are buffers and the weights that are trained (of adapters, those alone).
    Before the first task has ended nothing is added. ``"adapters_off"`` is the network without its ``peft``
    adapters, from the first step on and without a copy.

    How outputs are read is ``outputs``. Where each task has a head of its own, those of all heads are to
    be compared, as is done with :class:`~cl_callbacks.MultiHead` and by
    :class:`~cl_callbacks.SequentialFineTuner`. Other modules tell them by a method
    ``outputs_of_all_heads(batch)``, such as ``(N, heads, classes)``, alone or with labels; or override
    ``outputs``. Heads that no task has trained are left out. Weights that the task's loss does
    not reach, such as the heads of earlier tasks, stay as they are.

    Sources: Li & Hoiem 2016, learning without forgetting (arXiv 1606.09282); Hinton et al. 2015 (1503.02531).

    Args:
        strength: :math:`\lambda`, at least 0; 0 leaves training as it is, bit for bit.
        temperature: :math:`T`, above 0.
        on: ``"outputs"`` or ``"features"``.
        teacher: ``"last_task"``, ``"adapters_off"``, or a module, which nobody trains and which is not saved.
        feature_layer: name of the module whose output (the first, if there are several) are the features.
        direction: ``"forward"`` as above, or ``"reverse"`` with both sides exchanged.
        likelihood: what outputs parametrise: ``"categorical"``, ``"bernoulli"`` or ``"gaussian"``; by default
            categorical if the labels are classes, and refused if they are not.
        class_dim: dimension of the classes, 1 or -1, where the shape of the labels leaves it open.
        ignore_index: label of positions that do not count, such as those of a prompt.
        seed: of the random numbers of the network's further run.
        options: of every rule: see :class:`~cl_callbacks.SynapticCallback`.

    Raises:
        ValueError: an argument that cannot work, at construction; outputs that cannot be read, before the
            first step; outputs that depend on weights which the teacher does not have, before the task's.
        MisconfigurationException: a teacher that is trained, no adapters, manual optimization.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[Distillation()], logger=False, enable_checkpointing=False)
    """

    saved: ClassVar[tuple[str, ...]] = ("steps", "trained")
    shardable: ClassVar[bool] = True

    @checked(temperature=POSITIVE)
    def __init__(
        self,
        strength: float = 1.0,
        *,
        temperature: float = 2.0,
        on: On = "outputs",
        teacher: Literal["last_task", "adapters_off"] | nn.Module = "last_task",
        feature_layer: str | None = None,
        direction: Direction = "forward",
        likelihood: Likelihood | None = None,
        class_dim: int | None = None,
        ignore_index: int = IGNORED,
        seed: int = 0,
        **options: Unpack[RuleOptions],
    ) -> None:
        super().__init__(strength, seed=seed, **options)
        check_likelihood(likelihood, class_dim)
        if (on == "features") != (feature_layer is not None):
            raise ValueError(
                f"on={on!r} with feature_layer={feature_layer!r}: features are the output of a module, which "
                f"feature_layer names, and on='outputs' has no use for it"
            )
        if on == "features" and (likelihood, class_dim, direction) != (None, None, "forward"):
            raise ValueError("features are compared by their squared distance: leave out how to read outputs")
        self.temperature = temperature
        self.on, self.feature_layer, self.direction = on, feature_layer, direction
        self.likelihood, self.class_dim = likelihood, class_dim
        self.ignore_index = ignore_index
        self.teacher = teacher
        self._teacher = _teacher_of(teacher)
        self.trained: dict[str, bool] = {}
        """Names of the parameters that have been stepped so far, as keys."""
        self._latest: SynapseView | None = None
        self._reading = Reading()
        # Which outputs the teacher has, along the last dimension and in all others; None for all of them.
        self._columns: Tensor | None = None
        self._places: Tensor | None = None
        self._tried = False
        self._unprepared = True

    # -- the loss ----------------------------------------------------------------------------------

    def batch_loss(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> Tensor | None:
        """The divergence from the teacher on a batch."""
        if not self._teacher.is_there:
            return None
        with torch.no_grad(), eagerly(), self._teacher.network(pl_module) as network:
            old, _ = self._look(trainer, network, batch)
        if self._unprepared:
            self._find_known(old)
            self._unprepared = False
        return self._divergence(*self._look(trainer, pl_module, batch), old)

    def _look(self, trainer: Trainer, network: Any, batch: Any) -> tuple[Tensor, Tensor | None]:
        """Outputs with the classes last, or features, and the labels."""
        with trainer.precision_plugin.train_step_context():
            if self.feature_layer is not None:
                with _output_of(network, self.feature_layer) as found:
                    self.outputs(network, batch)
                return found[-1], None
            outputs, labels = self.read_batch(network, batch)
        if self._reading.likelihood == "categorical":
            outputs = outputs.movedim(self._reading.class_dim, -1)
        return outputs, labels

    def outputs_and_labels(self, pl_module: LightningModule, batch: Any) -> tuple[Tensor, Tensor | None]:
        """Outputs and labels: those of all heads, if the module tells them and the rule does not."""
        if not self.own_outputs:
            with forward_precision(pl_module):
                found = _of_all_heads(pl_module, batch)
            if found is not None:
                return as_pair(found)
        return super().outputs_and_labels(pl_module, batch)

    def _divergence(self, new: Tensor, labels: Tensor | None, old: Tensor) -> Tensor:
        if self.on == "features":
            return distillation_loss(new, old, likelihood="gaussian")
        mask = positions_with_label(new, labels, self._reading)
        if self._columns is not None:
            new, old = new[..., self._columns], old[..., self._columns]
            if mask is not None and self._reading.likelihood != "categorical":
                mask = mask[..., self._columns]
        if self._places is not None:
            old = old.nan_to_num(0.0)  # NaN times 0 would be one in the gradient
            known = self._places if self._reading.likelihood == "categorical" else self._places.unsqueeze(-1)
            mask = known.expand(len(old), *known.shape) if mask is None else mask & known
            mask = mask.expand(old.shape[: mask.ndim])
        return distillation_loss(
            new,
            old,
            likelihood=self._reading.likelihood,
            temperature=self.temperature,
            direction=self.direction,
            mask=mask,
        )

    def _find_known(self, old: Tensor) -> None:
        """Finds the outputs that depend on nothing but weights which the teacher has."""
        missing = getattr(self._teacher, "missing", [])
        self._columns = self._places = None
        lost = old.isnan().all(0)
        if not missing or not bool(lost.any()):
            return
        columns = lost.reshape(-1, lost.shape[-1] if lost.ndim else 1).all(0)
        places = lost.all(-1) if lost.ndim > 1 else torch.zeros_like(columns[0])
        told = columns | places.unsqueeze(-1)
        if self.on == "features" or bool(columns.all()) or not torch.equal(told.expand_as(lost), lost):
            raise ValueError(
                f"{type(self).__name__}: what is compared depends on weights that no task before has trained "
                f"({few(missing)}), so the teacher does not have it: if each task has a head of its own, "
                f"let the module's `outputs_of_all_heads(batch)`, or `outputs(pl_module, batch)` of the "
                f"rule, return the outputs of all heads side by side, or use on='features' with a "
                f"feature_layer below the heads."
            )
        self._columns = columns.logical_not().nonzero().flatten() if bool(columns.any()) else None
        self._places = places.logical_not() if bool(places.any()) else None

    def _prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._teacher.prepare(pl_module, self.synapses.view, trainer.strategy.root_device)

    # -- hooks -------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses teachers that are none."""
        if not pl_module.automatic_optimization:
            raise MisconfigurationException(
                f"{type(self).__name__} adds the gradient of each batch to the step that the batch is for, "
                f"and under manual optimization only `training_step` knows which: use automatic optimization."
            )
        refuse_own_fetching(self, pl_module)
        if isinstance(self._teacher, GivenModule):
            self._teacher.refuse_trained(trainer.optimizers)
        super().on_train_start(trainer, pl_module)
        self._tried, self._unprepared = False, True
        if self._teacher.is_there:
            self._prepare(trainer, pl_module)

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Schedules another look at the module, which may have grown."""
        super().on_task_start(trainer, pl_module, task)
        self._unprepared = True

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Tries on the first batch what will be done later."""
        if not self._tried:
            with quiet_step(trainer, pl_module, self.seed):
                self._try(trainer, pl_module, batch)
            self._tried = True
        if self._teacher.is_there and (self._unprepared or batch_idx == 0):  # or something was unfrozen
            self._prepare(trainer, pl_module)
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def end_step(self, synapses: SynapseView) -> None:
        """Notes which parameters are trained."""
        super().end_step(synapses)
        if synapses is not self._latest:
            self._latest = synapses
            self.trained.update(dict.fromkeys(synapses.names, True))

    def consolidate(
        self, trainer: Trainer, pl_module: LightningModule, synapses: SynapseView, task: int
    ) -> bool:
        """Makes the network as it is now the teacher."""
        if isinstance(self._teacher, LastTask):
            self.commit()
            self._teacher.copy(pl_module, synapses, set(synapses.names) - self.trained.keys())
            if first_time(self, "copy"):
                say(
                    trainer,
                    f"{type(self).__name__} keeps a copy of what is trained, and of buffers, as its teacher: "
                    f"{self._teacher.bytes / 2**20:.3g} MiB on the device, and in checkpoints.",
                )
        return True

    @property
    def waits_for_a_task(self) -> bool:
        """Whether there is no teacher yet."""
        return not self._teacher.is_there

    def _try(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Raises what would fail when there is a teacher."""
        self._reading = Reading("gaussian")
        new, labels = self._look(trainer, pl_module, batch)
        if not new.requires_grad:
            raise ValueError(
                f"the {self.on} of {type(pl_module).__name__} carry no gradient, so they cannot be held to "
                f"those of a teacher: let them be computed without no_grad and detach"
            )
        if self.on == "outputs":
            of_classes = labels is not None and not labels.is_floating_point()
            self._reading = decide_reading(
                new.detach(), None if self.likelihood == "gaussian" and of_classes else labels,
                likelihood=self.likelihood, class_dim=self.class_dim, ignore_index=self.ignore_index,
            )  # fmt: skip
            new, labels = self._look(trainer, pl_module, batch)
        old = new.detach()
        if not isinstance(self._teacher, LastTask):
            with self._teacher.network(pl_module) as network:
                old = self._look(trainer, network, batch)[0]
            if isinstance(self._teacher, AdaptersOff) and old.requires_grad:
                raise MisconfigurationException(
                    f"teacher='adapters_off': the {self.on} of {type(pl_module).__name__} without its "
                    f"adapters depend on weights that are trained, such as a head: let peft keep those too "
                    f"(modules_to_save), or use teacher='last_task'."
                )
        self._columns = self._places = None
        self._divergence(new, labels, old.detach())

    # -- checkpoints -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Adds the weights of the last boundary; a teacher that was given is not saved."""
        found = self._teacher.state_dict() if isinstance(self._teacher, LastTask) else None
        return super().state_dict() | {"teacher": found}

    def restore(self, state_dict: dict[str, Any]) -> None:
        """Restores the teacher."""
        super().restore(state_dict)
        if isinstance(self._teacher, LastTask) and state_dict["teacher"] is not None:
            self._teacher.load_state_dict(state_dict["teacher"])


def _teacher_of(given: Any) -> LastTask | AdaptersOff | GivenModule:
    if isinstance(given, nn.Module):
        return GivenModule(given)
    return LastTask() if given == "last_task" else AdaptersOff()


@contextmanager
def _output_of(network: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """A list that gets what a module within a network returns, while the network runs."""
    modules, found = dict(network.named_modules()), []
    if layer not in modules:
        raise ValueError(f"feature_layer={layer!r} is no module of {type(network).__name__}: name one of "
                         f"{few(list(modules)[1:])}")  # fmt: skip

    def listen(module: nn.Module, inputs: Any, output: Any) -> None:
        first = output
        while not isinstance(first, Tensor) and isinstance(first, tuple | list | dict) and first:
            first = next(iter(first.values() if isinstance(first, dict) else first))
        if not isinstance(first, Tensor) or not first.is_floating_point():
            raise ValueError(f"feature_layer={layer!r} returns a {type(output).__name__}, and no features")
        found.append(first)

    handle = modules[layer].register_forward_hook(listen)
    try:
        yield found
        if not found:
            raise ValueError(f"feature_layer={layer!r} has not run: name one that `outputs` uses")
    finally:
        handle.remove()


def _of_all_heads(pl_module: LightningModule, batch: Any) -> Found | None:
    """The outputs of all heads for a batch, with labels; ``None`` without heads, or if nobody tells them."""
    told = getattr(pl_module, "outputs_of_all_heads", None)
    if told is not None:
        return told(batch)
    heads = [len(module) for module in pl_module.modules() if isinstance(module, MultiHead)]
    if len(heads) != 1 or heads[0] < 2 or not names_task(pl_module, batch):
        return None
    outputs, labels = pl_module(batch[0], "all"), batch[1]
    return outputs.flatten(0, -3), labels.reshape(-1, 1, 1).expand(-1, outputs.shape[-2], 1)
