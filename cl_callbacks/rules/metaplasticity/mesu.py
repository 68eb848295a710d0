"""Metaplasticity from synaptic uncertainty."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from typing_extensions import Unpack

from cl_callbacks.functional.beakers import (
    capacities,
    conductances,
    flow_,
    largest_coupling,
    level_differences,
)
from cl_callbacks.functional.uncertainty import mesu_, relative_variance
from cl_callbacks.guards.arguments import at_most_one, checked
from cl_callbacks.guards.bounds import ENDLESS, POSITIVE, Bounds
from cl_callbacks.rules.metaplasticity.uncertain_rule import UncertainRule
from cl_callbacks.rules.rule_options import UncertainOptions
from cl_callbacks.synapses.step import Step
from cl_callbacks.synapses.view import SynapseView

Prior = Literal["zero", "chain"]

MEMORY_EPOCHS = 1000.0
"""Window in epochs, where no other is given."""


class MESU(UncertainRule):
    r"""Metaplasticity from synaptic uncertainty: Bayesian learning with a memory of :math:`N` steps.

    A weight is a Gaussian :math:`\mathcal N(\mu,\sigma^2)`; in each step, with :math:`g` the gradient at
    sampled weights :math:`\mu+\sigma\epsilon` of the loss summed over the observations,

    .. math::
        \Delta\mu &= -\sigma^2\,\mathbb E[g] + \frac{\sigma^2}{N\sigma_p^2}(0-\mu), \\
        \Delta\sigma &= -\tfrac12\sigma^2\,\mathbb E[g\epsilon]
                        + \frac{\sigma(\sigma_p^2-\sigma^2)}{2N\sigma_p^2} .

    This replaces the optimizer's update: a synapse that the data have made certain takes small steps, one
    that they leave uncertain stays plastic, and what is older than the window of :math:`N` steps is
    forgotten. No task boundary is needed. Memory is one tensor per parameter, and noise and snapshots while
    training.

    With ``prior="chain"`` the mean does not relax to 0 but towards a slow copy of its own past, the second
    of a chain of beakers as in :class:`BennaFusi`: :math:`g_1\min(1,\sigma^2/\sigma_p^2)(u_2-\mu)` instead of
    the last term of :math:`\Delta\mu`; the beakers :math:`u_2\dots u_m` follow the mean.

    Source: Bonnet et al. 2025, "Bayesian continual learning and forgetting in neural networks" (Nature
    Communications); the chain is this package's. The factors :math:`c_\mu` and :math:`c_\sigma` of its
    convolutional networks multiply, in the released code, the whole of a step, that of :math:`\sigma` without
    its one half: the terms with :math:`g` are those of ``lr_scale`` :math:`=c_\mu` and ``std_lr_scale``
    :math:`=2c_\sigma`, and the windows are :math:`N/c_\mu` for :math:`\mu` and :math:`N/2c_\sigma` for
    :math:`\sigma`. Here both have one window, as in the equation, so that only one of these can be given.

    Args:
        memory_steps: :math:`N`, the window in optimizer steps, above 0; ``inf`` never forgets. Short windows
            learn the latest task best and long ones remember more tasks.
        prior_std: :math:`\sigma_p`, to which :math:`\sigma` of a synapse returns without data, the same for
            all weights; by default in proportion to the scale of each layer.
        initial_std: :math:`\sigma` at the start, the same for all weights; default: that of the prior.
        memory_epochs: :math:`N` in epochs of the training data as they are at each time, instead of steps;
            default: 1000. Under manual optimization a batch counts as a step.
        relative_std: :math:`\sigma_p` in units of :math:`1/\sqrt n`, with :math:`n` the number of inputs of
            each unit of the layer, instead of ``prior_std``; default: 0.5.
        lr_scale: factor on the term with :math:`g` of :math:`\Delta\mu`, where 1 is Bayes' rule; default:
            8, or 1 with an absolute standard deviation.
        std_lr_scale: factor on the term with :math:`g` of :math:`\Delta\sigma`, where 1 is Bayes' rule;
            default: 80, or 1 with an absolute standard deviation.
        prior: value to which the mean relaxes: ``"zero"``, or with ``"chain"`` its own past.
        beakers: of the chain, at least 2, the mean being the first: with 2 there is one slow copy. More than
            4 need ``state_dtype="float64"``, or the flow into the deep ones is lost to rounding.
        coupling: :math:`g_1` of the chain; its last beaker follows within ``4**(beakers - 1) / coupling``
            steps.
        options: ``draws``, ``trust_region``, ``exclude`` and others of every rule that draws weights: see
            :class:`~cl_callbacks.rules.metaplasticity.uncertain_rule.UncertainRule`.

    Raises:
        ValueError: an argument that cannot work, at construction.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[MESU(memory_steps=10_000)], logger=False, enable_checkpointing=False)
    """

    local: ClassVar[bool] = True
    dial: str = "prior_std"

    @checked(
        memory_steps=ENDLESS,
        memory_epochs=ENDLESS,
        prior_std=POSITIVE,
        beakers=Bounds(least=2, most=64),
        coupling=Bounds(least=0, most=largest_coupling()),
    )
    def __init__(
        self,
        memory_steps: float | None = None,
        prior_std: float | None = None,
        initial_std: float | None = None,
        *,
        memory_epochs: float | None = None,
        relative_std: float | None = None,
        lr_scale: float | None = None,
        std_lr_scale: float | None = None,
        prior: Prior = "zero",
        beakers: int = 2,
        coupling: float = 1e-3,
        **options: Unpack[UncertainOptions],
    ) -> None:
        at_most_one(memory_steps=memory_steps, memory_epochs=memory_epochs)
        at_most_one(prior_std=prior_std, relative_std=relative_std)
        self.prior_std = prior_std
        self.slow = [f"beaker_{k}" for k in range(2, beakers + 1)] if prior == "chain" else []
        self.fields = dict.fromkeys(self.slow, "parameter")
        super().__init__(
            initial_std=prior_std if initial_std is None else initial_std,
            relative_std=relative_std,
            lr_scale=lr_scale,
            std_lr_scale=std_lr_scale,
            **options,
        )
        self.memory_steps, self.memory_epochs = memory_steps, memory_epochs
        self._epochs = MEMORY_EPOCHS if memory_steps is None and memory_epochs is None else memory_epochs
        self._window = math.nan if memory_steps is None else float(memory_steps)
        self.prior, self.beakers, self.coupling = prior, beakers, coupling
        self._capacities = capacities(beakers)
        self._conductances = conductances(beakers, coupling, leak=False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a window in epochs on data without a known length."""
        super().on_train_start(trainer, pl_module)
        if self._epochs is not None and math.isinf(trainer.num_training_batches):
            raise MisconfigurationException(
                f"MESU remembers {self._epochs:g} epochs, and these data do not tell how many batches an "
                f"epoch has: give the window in optimizer steps, MESU(memory_steps=...), or the number of "
                f"batches, Trainer(limit_train_batches=...)."
            )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Converts a window in epochs to steps; each task has epochs of its own length."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._epochs is not None:
            steps = trainer.num_training_batches / trainer.accumulate_grad_batches
            self._window = self._epochs * math.ceil(steps)

    def replace_update(self, step: Step, scale: float | Tensor) -> None:
        """Takes one step of the equations of :class:`MESU`."""
        synapses = step.synapses
        past = [synapses[level] for level in self.slow]
        mesu_(
            synapses.parameters,
            synapses["std"],
            step.pulled,
            step.noise_gradients,
            memory_steps=self._window,
            prior_std=self.std_of(synapses, self.prior_std),
            **self._lr_scales,
            trust_region=self.trust_region,
            slow=past[0] if past else None,
            coupling=self.coupling,
            scale=scale,
        )
        if past:
            flow_([step.before, *past], self._capacities, self._conductances, hold_first=True)

    def plasticity(self, synapses: SynapseView, rates: list[float]) -> list[Tensor]:
        r"""Plasticity: :math:`\sigma^2` divided by that of the prior, at most 1."""
        return relative_variance(synapses["std"], self.std_of(synapses, self.prior_std))

    def measures(self, synapses: SynapseView, rates: list[float]) -> dict[str, list[Tensor]]:
        """Plasticity, standard deviation, and distances between neighbouring beakers of the chain."""
        levels = [synapses.parameters, *(synapses[level] for level in self.slow)]
        pairs = enumerate(level_differences(levels), 1)
        return super().measures(synapses, rates) | {f"beaker_distance_{k}": found for k, found in pairs}
