"""Bayesian gradient descent."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from typing_extensions import Unpack

from cl_callbacks.functional.uncertainty import bgd_, relative_variance
from cl_callbacks.guards.arguments import at_most_one, checked
from cl_callbacks.rules.metaplasticity.uncertain_rule import UncertainRule
from cl_callbacks.rules.rule_options import UncertainOptions
from cl_callbacks.synapses.step import Step
from cl_callbacks.synapses.view import SynapseView


class BGD(UncertainRule):
    r"""Bayesian gradient descent: observations make the weights they determine more certain, and stiffer.

    A weight is a Gaussian :math:`\mathcal N(\mu,\sigma^2)`; in each step, with :math:`g` the gradient at
    sampled weights :math:`\mu+\sigma\epsilon` of the loss summed over the observations,

    .. math:: \mu \leftarrow \mu - \eta\sigma^2\,\mathbb E[g], \qquad
              \sigma \leftarrow \sigma\big(\sqrt{1+a^2}-a\big), \quad
              a = \tfrac12\eta_\sigma\sigma\,\mathbb E[g\epsilon] .

    This replaces the optimizer's update. No task boundary is needed. There is no forgetting, so that in the
    end no synapse is plastic any more; :class:`MESU` continues to learn over many tasks.

    With a relative width, the default, :math:`\sigma` is never above its initial value: most of :math:`a` is
    noise, which would widen as many synapses as it narrows.

    Source: Zeno et al. 2018, "Task agnostic continual learning using online variational Bayes"
    (arXiv 1803.10123).

    Args:
        initial_std: :math:`\sigma` at the start, the initial plasticity, the same for all weights: the
            paper's 0.015 to 0.06, the wider the layers the smaller, are without a trust region. By default it
            is in proportion to the scale of each layer.
        relative_std: :math:`\sigma` at the start in units of :math:`1/\sqrt n`, with :math:`n` the number of
            inputs of each unit of the layer; default: 0.5. Give one of the two.
        lr_scale: :math:`\eta`, above 0; default: 8, or 1 with an absolute ``initial_std``.
        std_lr_scale: :math:`\eta_\sigma`, above 0; default: 80, or 1 with an absolute ``initial_std``. With
            both at 1 it is Bayes' rule.
        options: ``draws``, ``trust_region``, ``exclude`` and others of every rule that draws weights: see
            :class:`~cl_callbacks.rules.metaplasticity.uncertain_rule.UncertainRule`.

    Raises:
        ValueError: an argument that cannot work, at construction.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[BGD()], logger=False, enable_checkpointing=False)
    """

    local: ClassVar[bool] = True
    dial: str = "initial_std"

    @checked()
    def __init__(
        self,
        initial_std: float | None = None,
        *,
        relative_std: float | None = None,
        lr_scale: float | None = None,
        std_lr_scale: float | None = None,
        **options: Unpack[UncertainOptions],
    ) -> None:
        at_most_one(initial_std=initial_std, relative_std=relative_std)
        super().__init__(
            initial_std=initial_std,
            relative_std=relative_std,
            lr_scale=lr_scale,
            std_lr_scale=std_lr_scale,
            **options,
        )

    def replace_update(self, step: Step, scale: float | Tensor) -> None:
        """Takes one step of the equations of :class:`BGD`."""
        means, stds = step.synapses.parameters, step.synapses["std"]
        gradients = step.pulled, step.noise_gradients
        bgd_(
            means,
            stds,
            *gradients,
            trust_region=self.trust_region,
            scale=scale,
            widest=None if self.initial_std else self.std_of(step.synapses, None),
            **self._lr_scales,
        )

    def plasticity(self, synapses: SynapseView, rates: list[float]) -> list[Tensor]:
        r"""Plasticity: :math:`\sigma^2` divided by its initial value, at most 1."""
        return relative_variance(synapses["std"], self.std_of(synapses, self.initial_std))
