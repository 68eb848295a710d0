"""Bayesian gradient descent."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from cl_callbacks.functional.uncertainty import bgd_, relative_variance
from cl_callbacks.guards.arguments import positive
from cl_callbacks.rules.metaplasticity.uncertain_rule import UncertainRule
from cl_callbacks.rules.synaptic_callback import Patterns
from cl_callbacks.synapses.step import Step
from cl_callbacks.synapses.view import SynapseView


class BGD(UncertainRule):
    r"""Bayesian gradient descent: each observation makes the synapses that it needs surer, and stiffer.

    A weight is a Gaussian :math:`\mathcal N(\mu,\sigma^2)`; in each step, with the network seen at
    :math:`\mu+\sigma\epsilon` and the gradient :math:`g` of the loss summed over the observations,

    .. math:: \mu \leftarrow \mu - \eta\sigma^2\,\mathbb E[g], \qquad
              \sigma \leftarrow \sigma\big(\sqrt{1+a^2}-a\big), \quad
              a = \tfrac12\sigma\,\mathbb E[g\epsilon] .

    This replaces the optimizer's update. No task boundary is needed. Nothing is forgotten on purpose, so
    that in the end no synapse is plastic any more: over many tasks :class:`MESU` goes on learning.

    Source: Zeno et al. 2018, "Task agnostic continual learning using online variational Bayes"
    (arXiv 1803.10123).

    Args:
        initial_std: :math:`\sigma` at the start, the initial plasticity; the wider the layers the smaller;
            the paper's 0.015 to 0.06 are without a trust region.
        rate: :math:`\eta`, above 0.
        samples: draws of the weights per step, each of which costs a forward and a backward.
        antithetic: let every second draw mirror the one before it, also from step to step.
        trust_region: largest change of :math:`\mu` and of :math:`\sigma` in one step, in units of
            :math:`\sigma`, above 0 and below 1; ``None`` for no limit, which diverges early in training
            where :math:`\sigma` is large.
        reduction: of the loss over a batch, ``"mean"`` or ``"sum"``.
        seed: of the draws.
        parameters: regular expressions of parameter names to include; default: all trainable ones.
        exclude: regular expressions of names to leave out; the optimizer trains them as ever.
        state_dtype: of the state, at least float32; default that, or wider where the parameter is.
        state_device: where the state lives, such as ``"cpu"``, from where it comes to the parameters while
            the rule works on it; default: beside each parameter.
        strict: whether state of parameters that the model no longer has is an error.
        name: of this instance in logs and checkpoints.

    Raises:
        ValueError: an argument that cannot work, at construction.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[BGD(initial_std=0.03)], logger=False, enable_checkpointing=False)
    """

    local: ClassVar[bool] = True

    def __init__(
        self,
        initial_std: float = 0.1,
        *,
        rate: float = 1.0,
        samples: int = 1,
        antithetic: bool = True,
        trust_region: float | None = 0.2,
        reduction: Literal["mean", "sum"] = "mean",
        seed: int = 0,
        parameters: Patterns = None,
        exclude: Patterns = None,
        state_dtype: torch.dtype | str | None = None,
        state_device: str | None = None,
        strict: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(
            initial_std=initial_std,
            samples=samples,
            antithetic=antithetic,
            trust_region=trust_region,
            reduction=reduction,
            seed=seed,
            extra_fields={},
            parameters=parameters,
            exclude=exclude,
            state_dtype=state_dtype,
            state_device=state_device,
            strict=strict,
            name=name,
        )
        self.rate = positive("rate", rate)

    def update(self, step: Step, scale: float | Tensor) -> None:
        """The equations above."""
        bgd_(
            step.synapses.parameters,
            step.synapses["std"],
            step.pulled,
            step.noise_gradients,
            self.rate,
            self.trust_region,
            scale,
        )

    def plasticity(self, synapses: SynapseView, rates: list[float]) -> list[Tensor]:
        r""":math:`\sigma^2` in units of where it began, at most 1."""
        return relative_variance(synapses["std"], self.initial_std)
