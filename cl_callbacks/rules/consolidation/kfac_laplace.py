"""Kronecker-factored Laplace approximation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import Unpack

from cl_callbacks.functional.anchoring import merge_latest_
from cl_callbacks.functional.fisher import Estimator
from cl_callbacks.functional.kronecker import Factors, kronecker_trace, paired
from cl_callbacks.functional.labels import IGNORED
from cl_callbacks.functional.likelihood import Likelihood
from cl_callbacks.functional.normalization import sum_and_number
from cl_callbacks.gradients.kronecker_factors import KroneckerFactors
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import AT_LEAST_ONE, SHARE, Bounds
from cl_callbacks.guards.sound_state import OF_WEIGHTS
from cl_callbacks.rules.consolidation.anchored_rule import AnchoredRule
from cl_callbacks.rules.consolidation.kronecker_memory import Accumulate, KroneckerMemory, factored_layers
from cl_callbacks.rules.rule_options import AnchoredOptions
from cl_callbacks.synapses.step import Step
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.training.extra_pass import mean_of_gradients, mean_over_task
from cl_callbacks.training.measured_fisher import MeasuresFisher
from cl_callbacks.training.progress import say


class KFACLaplace(MeasuresFisher, AnchoredRule):
    r"""Kronecker-factored Laplace: combinations of weights with high curvature resist change.

    Where :class:`~cl_callbacks.rules.consolidation.ewc.EWC` measures the importance of each weight, this
    measures that of each *combination* of the weights of a layer. At the end of each task the curvature of
    every ``nn.Linear`` and ``nn.Conv2d`` (its bias included) is measured as a Kronecker product, and from
    then on every step adds the gradient of a penalty to that of the loss:

    .. math:: \frac\lambda2 \sum_{\text{layers}} \mathrm{tr}(G\,\Delta W A\,\Delta W^\top), \qquad
              A = \mathrm E[aa^\top], \quad G = \mathrm E[\delta\delta^\top] .

    All other parameters (norms, embeddings, attention's packed projection, weights shared by modules) get
    the diagonal Fisher information, as in EWC; a message lists them. The anchor is the weights after the
    latest task. Memory is the two factors of each layer, inputs squared and outputs squared, and two
    tensors per parameter. The matrix products of each step cost about :math:`(I+O)/3B` of a plain step
    for a layer from :math:`I` to :math:`O` units and :math:`B` samples (or positions) in a batch.

    Sources: Ritter et al. 2018 (arXiv 1805.07810); Martens & Grosse 2015 (1503.05671); convolutions:
    Grosse & Martens 2016 (1602.01573).

    Args:
        strength: :math:`\lambda`, at least 0; 0 leaves training as it is, bit for bit.
        accumulate: ``"nearest"`` keeps one pair of factors, the nearest to the sum over tasks;
            ``"list"`` keeps those of every task, so that time and memory grow.
        estimator: of :math:`G`: ``"sampled"`` draws a label from the model, ``"exact"`` sums over all
            classes, ``"empirical"`` takes the label of the data, ``"logits_reversal"`` as in EWC.
        samples: number of samples of the task to measure on, over all processes; ``None`` for all.
        decay: share of the older tasks' curvature that is kept at each boundary, 0 to 1.
        likelihood: distribution of the labels that the outputs parametrise: ``"categorical"``, by logits of
            classes; ``"bernoulli"``, by logits of independent labels, as for multi-label targets under binary
            cross-entropy; or ``"gaussian"``, by means of unit variance, for regression and autoencoders. By
            default it is categorical if the labels are classes, and refused if they are not.
        class_dim: dimension of the classes in outputs ``(N, C, L)`` or ``(N, L, C)``: 1 or -1. By default
            the shape of the labels tells; it must be given only where that leaves it open.
        ignore_index: label of positions without a target, as in the loss.
        options: ``parameters``, ``exclude``, ``proximal`` and others of every rule that pulls: see
            :class:`~cl_callbacks.rules.consolidation.anchored_rule.AnchoredRule`.

    Raises:
        ValueError: an argument that cannot work, at construction; before the first step, outputs or
            labels that the estimator cannot read, or that contradict the likelihood.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[KFACLaplace()], logger=False, enable_checkpointing=False)
    """

    shardable: ClassVar[bool] = False
    local: ClassVar[bool] = False

    state_bounds: Mapping[str, Bounds] = {**AnchoredRule.state_bounds, "factors": OF_WEIGHTS}

    @checked(samples=AT_LEAST_ONE, decay=SHARE)
    def __init__(
        self,
        strength: float = 0.01,
        *,
        accumulate: Accumulate = "nearest",
        estimator: Estimator = "sampled",
        samples: int | None = 500,
        decay: float = 1.0,
        likelihood: Likelihood | None = None,
        class_dim: int | None = None,
        ignore_index: int = IGNORED,
        **options: Unpack[AnchoredOptions],
    ) -> None:
        super().__init__(strength, **options)
        if self.proximal and accumulate == "list":
            raise ValueError("a sum of Kronecker products has no cheap proximal step: accumulate='nearest'")
        if self.max_importance is not None:
            raise ValueError(
                f"{type(self).__name__} has no importance of single weights to be limited: leave "
                f"max_importance out"
            )
        self.read_as(estimator, likelihood, class_dim, ignore_index)
        self.samples, self.decay = samples, decay
        self.accumulate, self.memory = accumulate, KroneckerMemory(accumulate)

    def pull(self, synapses: SynapseView, gradients: list[Tensor]) -> None:
        """Adds the gradient of the penalty."""
        super().pull(synapses, gradients)
        if self.anchored and not self.proximal:
            limit = self.largest_importance(synapses)
            self.memory.pull(self.synapses.view, synapses.names, gradients, self.stiffness, limit)

    def rewrite(self, step: Step) -> None:
        """Takes the proximal step of the penalty."""
        super().rewrite(step)
        if self.anchored and self.proximal:
            steps = [self.stiffness * rate for rate in step.option("lr")]
            self.memory.relax(self.synapses.view, step.synapses.names, steps)

    def importance_of_each(self, synapses: SynapseView) -> list[Tensor]:
        """Diagonal of the curvature: from the factors, or else the diagonal Fisher information."""
        found = [importance.clone() for importance in synapses["importance"]]
        self.memory.add_diagonal(synapses, found)
        return found

    def penalty(self, synapses: SynapseView) -> Tensor:
        """Current value of the penalty, a scalar."""
        diagonal = super().penalty(synapses)
        return diagonal + self.memory.penalty(synapses, self.stiffness).to(diagonal)

    def consolidate(
        self, trainer: Trainer, pl_module: LightningModule, synapses: SynapseView, task: int
    ) -> bool:
        """Measures the curvature and merges it with that of the earlier tasks."""
        with torch.no_grad():
            factors = self._factors(trainer, pl_module, synapses, task)
            covered = {name for name in synapses.names if _weight(name) in factors}
            diagonal = self._diagonal(trainer, pl_module, synapses, covered, task)
            if not factors and diagonal is None:
                rank_zero_warn(
                    f"{type(self).__name__}: no sample of task {task} gave a finite curvature, so the task "
                    f"was not consolidated and the earlier state is kept."
                )
                return False
            new = diagonal or [torch.zeros_like(t) for t in synapses["importance"]]
            importance = sum_and_number(new)
            importance[0] += sum(kronecker_trace(pair).item() for pair in factors.values())
            unit = self.unit(synapses, importance, f"task {task}")
            if unit is None:
                return False
            torch._foreach_div_([*new, *(pair.outputs for pair in factors.values())], unit)
            self.commit()
            self.memory.merge(factors, self.decay)
            merge_latest_(synapses["importance"], synapses["anchor"], new, synapses.parameters, self.decay)
        rest = [name for name in synapses.names if name not in covered]
        name = type(self).__name__
        if not self.tasks:
            say(trainer, f"{name}: {len(factors)} layers in factors, diagonal: {rest or 'none'}")
        return True

    def _factors(
        self, trainer: Trainer, pl_module: LightningModule, synapses: SynapseView, task: int
    ) -> dict[str, Factors]:
        layers = factored_layers(pl_module, synapses)
        if not layers:
            return {}
        factors = KroneckerFactors(pl_module, layers, lambda batch: self.outputs_and_labels(pl_module, batch))
        means = mean_over_task(
            trainer,
            pl_module,
            lambda batch, most: (*factors.sums(batch, self.reader.cotangents, most), factors.rows),
            factors.zeros(),
            samples=self.samples,
            what=f"{type(self).__name__}: factors of task {task}",
            seed=self.seed_of(task),
            counted=self.count_samples,
        )
        if means is None:
            return {}
        # All ranks must agree on the layers for which factors are valid.
        explained = torch.tensor(list(factors.explained.values()), dtype=torch.float, device=pl_module.device)
        explained = trainer.strategy.reduce(explained, reduce_op="mean")
        pairs = zip(layers, paired(means), explained.tolist(), strict=True)
        return {name: pair for name, pair, share in pairs if share == 1.0}

    def _diagonal(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        synapses: SynapseView,
        covered: set[str],
        task: int,
    ) -> list[Tensor] | None:
        """Diagonal Fisher information of parameters without factors, and zeros for those with factors."""
        rest = [p for name, p in zip(synapses.names, synapses.parameters, strict=True) if name not in covered]
        if not rest:
            return None
        means = mean_of_gradients(
            trainer,
            pl_module,
            rest,
            lambda batch: self.outputs_and_labels(pl_module, batch),
            self.reader.cotangents,
            samples=self.samples,
            what=f"{type(self).__name__}: diagonal of task {task}",
            seed=self.seed_of(task),
            counted=self.count_samples,
        )
        if means is None:
            return None
        found = iter(means)
        return [
            torch.zeros_like(old) if name in covered else next(found).to(old.dtype)
            for name, old in zip(synapses.names, synapses["importance"], strict=True)
        ]

    def measured(self, pl_module: LightningModule) -> list[Tensor]:
        """The rule's parameters."""
        return self.synapses.view.sources

    def state_dict(self) -> dict[str, Any]:
        """The rule's state, with the Kronecker factors."""
        return super().state_dict() | {"factors": self.memory.state_dict()}

    def restore(self, state_dict: dict[str, Any]) -> None:
        """Sets the state from a saved one."""
        super().restore(state_dict)
        self.memory.load_state_dict(state_dict["factors"])

    def forget_synapses(self, parameter: Tensor, dim: int, index: Tensor) -> None:
        """Forgets them in the factors of their layer too."""
        super().forget_synapses(parameter, dim, index)
        for name, source in zip(self.synapses.view.names, self.synapses.view.sources, strict=True):
            if source is parameter:
                self.memory.forget(name, parameter, dim, index)

    def _place(self, pl_module: LightningModule, growing: bool = False) -> None:
        super()._place(pl_module, growing)
        self.memory.place(self.synapses.view, self.synapses.state_dict()["anchor"])


def _weight(name: str) -> str:
    """Name of the weight whose factors a parameter uses: for a bias its layer's weight, else itself."""
    return name.removesuffix("bias") + "weight" if name.endswith("bias") else name
