"""Memory aware synapses."""

from __future__ import annotations

from typing import ClassVar

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import Unpack

from cl_callbacks.functional.sensitivity import Norm, sensitivity_cotangent
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import AT_LEAST_ONE
from cl_callbacks.rules.consolidation.boundary_rule import BoundaryRule
from cl_callbacks.rules.rule_options import BoundaryOptions, Decay
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.training.drawn_samples import DrawsSamples
from cl_callbacks.training.extra_pass import mean_of_gradients


class MAS(DrawsSamples, BoundaryRule):
    r"""Memory aware synapses: weights to which the output is sensitive resist change.

    At the end of each task the sensitivity of the output's norm is measured, per sample and without
    labels, and from then on every step adds the gradient of a penalty to that of the loss:

    .. math:: \lambda \sum_i \Omega_i (\theta_i - \theta^*_i)^2, \qquad
              \Omega_i = \mathrm E_x \Bigl| \frac{\partial \|f(x)\|^2}{\partial\theta_i} \Bigr| .

    Memory is two tensors per parameter for any number of tasks. The outputs are read as
    :class:`~cl_callbacks.rules.consolidation.ewc.EWC` reads them. It is the task-free form with
    ``norm="l2"``, ``decay="mean"`` and the hard samples that
    :class:`~cl_callbacks.boundaries.plateau_boundaries.PlateauBoundaries` keeps.

    Sources: Aljundi et al. 2018 (arXiv 1711.09601); task-free: Aljundi et al. 2019 (1812.03596).

    Args:
        strength: :math:`\lambda`, at least 0; 0 leaves training as it is, bit for bit. The penalty has no
            factor of one half: the gradient is :math:`2\lambda\Omega(\theta-\theta^*)`.
        norm: ``"squared"`` for :math:`\|f\|^2`, ``"l2"`` for :math:`\|f\|`.
        samples: number of samples of the task to measure on, over all processes; ``None`` for all.
        decay: share of the older tasks' importance that is kept at each boundary, 0 to 1; ``"mean"`` for
            the average over tasks instead of a sum.
        options: ``parameters``, ``exclude``, ``proximal`` and others of every rule that pulls: see
            :class:`~cl_callbacks.rules.consolidation.boundary_rule.BoundaryRule`.

    Raises:
        ValueError: an argument that cannot work, at construction; before the first step, outputs that
            cannot be read.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[MAS()], logger=False, enable_checkpointing=False)
    """

    stiffness_of_one: ClassVar[float] = 2.0

    @checked(samples=AT_LEAST_ONE)
    def __init__(
        self,
        strength: float = 0.01,
        *,
        norm: Norm = "squared",
        samples: int | None = 500,
        decay: Decay = 1.0,
        **options: Unpack[BoundaryOptions],
    ) -> None:
        self.norm, self.samples = norm, samples
        super().__init__(strength, decay=decay, **options)

    @property
    def kind(self) -> dict[str, str]:
        """Norm of the sensitivity."""
        return {"rule": "MAS", "norm": self.norm}

    def estimate(
        self, trainer: Trainer, pl_module: LightningModule, synapses: SynapseView, task: int
    ) -> list[Tensor] | None:
        """Sensitivity of the output's norm, averaged over the task's samples."""
        return mean_of_gradients(
            trainer,
            pl_module,
            synapses.sources,
            lambda batch: self.outputs_and_labels(pl_module, batch),
            lambda outputs, labels: [sensitivity_cotangent(outputs, self.norm)],
            Tensor.abs_,
            samples=self.samples,
            what=f"{type(self).__name__}: task {task}",
            seed=self.seed_of(task),
            counted=self.count_samples,
        )

    def measured(self, pl_module: LightningModule) -> list[Tensor]:
        """The rule's parameters."""
        return self.synapses.view.sources
