"""Elastic weight consolidation."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import Unpack

from cl_callbacks.functional.fisher import Estimator
from cl_callbacks.functional.labels import IGNORED
from cl_callbacks.functional.likelihood import Likelihood
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import AT_LEAST_ONE
from cl_callbacks.rules.consolidation.boundary_rule import BoundaryRule
from cl_callbacks.rules.rule_options import BoundaryOptions, Decay
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.training.extra_pass import mean_of_gradients
from cl_callbacks.training.measured_fisher import MeasuresFisher


class EWC(MeasuresFisher, BoundaryRule):
    r"""Elastic weight consolidation: weights with high Fisher information resist change.

    At the end of each task the diagonal Fisher information is measured, per sample, at the current
    weights, and from then on every step adds the gradient of a penalty to that of the loss:

    .. math:: \frac\lambda2 \sum_i F_i (\theta_i - \theta^*_i)^2, \qquad
              F_i = \mathrm E_x \sum_c p(c|x) \Bigl(\frac{\partial \log p(c|x)}{\partial\theta_i}\Bigr)^2 .

    Memory is two tensors per parameter for any number of tasks. The pull, the gradient of the penalty, is
    clipped with the task's gradient and enters Adam's moments, as if the penalty were in the loss. It is
    added in the hook ``on_before_optimizer_step`` of :class:`~cl_callbacks.SynapticCallback`, by way of
    ``SynapticStep.about_to_step``, ``Plan.before_step``, ``AnchoredRule.pull`` and
    ``functional.add_quadratic_pull_``.

    Sources: Kirkpatrick et al. 2017 (arXiv 1612.00796); Huszár 2018 (1712.03847); Schwarz et al. 2018
    (1805.06370); logits reversal: 2603.18596.

    Args:
        strength: :math:`\lambda`, at least 0; 0 leaves training as it is, bit for bit. The default is for a
            Fisher in units of its mean (``normalize="mean"``); in the papers' units good values differ by
            orders of magnitude between data, estimators and tasks.
        estimator: ``"exact"`` sums over all classes (one backward each); ``"sampled"`` draws a label
            from the model; ``"empirical"`` takes the label of the data; ``"logits_reversal"`` is
            EWC-DR's, which does not vanish for confident models. Token sequences (logits of shape
            ``(N, T, V)``) are one sample each and need ``"sampled"`` or ``"empirical"``.
        samples: number of samples of the task to measure on, over all processes; ``None`` for all.
        decay: share of the older tasks' Fisher that is kept at each boundary, 0 to 1; ``"mean"`` for
            the average over tasks instead of a sum.
        likelihood: distribution of the labels that the outputs parametrise: ``"categorical"``, by logits of
            classes; ``"bernoulli"``, by logits of independent labels, as for multi-label targets under binary
            cross-entropy; or ``"gaussian"``, by means of unit variance, for regression and autoencoders. By
            default it is categorical if the labels are classes, and refused if they are not.
        class_dim: dimension of the classes in outputs ``(N, C, L)`` or ``(N, L, C)``: 1 or -1. By default
            the shape of the labels tells; it must be given only where that leaves it open.
        ignore_index: label of positions without a target, as in the loss.
        options: ``parameters``, ``exclude``, ``proximal`` and others of every rule that pulls: see
            :class:`~cl_callbacks.rules.consolidation.boundary_rule.BoundaryRule`.

    Raises:
        ValueError: an argument that cannot work, at construction; before the first step, outputs or
            labels that the estimator cannot read, or that contradict the likelihood.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[EWC()], logger=False, enable_checkpointing=False)
    """

    @checked(samples=AT_LEAST_ONE)
    def __init__(
        self,
        strength: float = 0.05,
        *,
        estimator: Estimator = "exact",
        samples: int | None = 500,
        decay: Decay = 1.0,
        likelihood: Likelihood | None = None,
        class_dim: int | None = None,
        ignore_index: int = IGNORED,
        **options: Unpack[BoundaryOptions],
    ) -> None:
        self.read_as(estimator, likelihood, class_dim, ignore_index)
        super().__init__(strength, decay=decay, **options)
        self.samples = samples

    @property
    def kind(self) -> dict[str, str]:
        """Estimator and likelihood of the Fisher information."""
        return {"rule": "EWC", "estimator": self.estimator, "likelihood": self.likelihood or "categorical"}

    def estimate(
        self, trainer: Trainer, pl_module: LightningModule, synapses: SynapseView, task: int
    ) -> list[Tensor] | None:
        """Diagonal Fisher information of the task, averaged over its samples."""
        return mean_of_gradients(
            trainer,
            pl_module,
            synapses.sources,
            lambda batch: self.outputs_and_labels(pl_module, batch),
            self.reader.cotangents,
            samples=self.samples,
            what=f"{type(self).__name__}: task {task}",
            seed=self.seed_of(task),
            counted=self.count_samples,
        )

    def measured(self, pl_module: LightningModule) -> list[Tensor]:
        """The rule's parameters."""
        return self.synapses.view.sources
