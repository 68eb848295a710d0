"""Self-normalised resets: units are replaced whose silence is a surprise by their own history."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import Unpack

from cl_callbacks.functional.units import debiased, silence_log_probability
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import AT_LEAST_ONE, Bounds
from cl_callbacks.guards.once import first_time
from cl_callbacks.rules.renewal.activity import Heard, Measure
from cl_callbacks.rules.renewal.unit_rule import UnitRule
from cl_callbacks.rules.renewal.unit_weights import UnitWeights
from cl_callbacks.rules.renewal.units import Units
from cl_callbacks.rules.rule_options import RuleOptions


class SelfNormalizedResets(UnitRule):
    r"""Replaces a unit that has been silent for longer than it ever is by itself.

    Each unit has its own rate :math:`p_i`, the share of samples in which it was active (not 0), averaged over
    the past. It is replaced once its silence of :math:`a_i` samples is less likely than ``threshold``:

    .. math:: (1-p_i)^{a_i} < \tau .

    The original compares with a quantile of the waiting times that were seen; here these are taken to be
    geometric, so that one number per unit is their whole history. A silence is counted in whole steps, and
    the rate is that of before it. Units of activations that are never exactly 0, such as tanh and GELU,
    are never silent: with these the rule warns that it will do nothing.

    What else is reset, and which units there are: :class:`~.unit_rule.UnitRule`.

    Source: Farias & Jozefiak 2025, Self-normalized resets for plasticity in continual learning
    (arXiv 2410.20098).

    Args:
        threshold: :math:`\tau`, probability, above 0 and below 1.
        every_n_steps: optimizer steps from one look at the silences to the next, at which the host waits for
            the device.
        decay: of the running average of the rate, per step.
        seed: of the new weights.
        options: of every rule: see :class:`~cl_callbacks.SynapticCallback`.

    Raises:
        ValueError: an argument that cannot work, at construction.
        MisconfigurationException: before the first step, as in :class:`~.unit_rule.UnitRule`.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[SelfNormalizedResets()], logger=False, enable_checkpointing=False)
    """

    needed: ClassVar[tuple[Measure, ...]] = ("active",)
    of_units: ClassVar[tuple[str, ...]] = ("rate", "age", "silent")
    dial = "threshold"

    @checked(threshold=Bounds(above=0, below=1), every_n_steps=AT_LEAST_ONE, decay=Bounds(least=0, below=1))
    def __init__(
        self,
        threshold: float = 0.01,
        *,
        every_n_steps: int = 10,
        decay: float = 0.99,
        seed: int = 0,
        **options: Unpack[RuleOptions],
    ) -> None:
        super().__init__(seed=seed, **options)
        self.threshold, self.every_n_steps, self.decay = threshold, every_n_steps, decay

    def choose(self, units: Units, heard: Heard, weights: UnitWeights) -> Tensor | None:
        """Counts silences and activity, and returns the units whose silence is a surprise."""
        rate, age, silent = (self.unit_state[name][units.layer] for name in self.of_units)
        active = heard.units["active"] > 0
        # The history is that of before the silence: a unit that has died does not get used to it.
        rate.copy_(torch.where(active, rate.lerp(heard.units["active"].to(rate), 1 - self.decay), rate))
        age.add_(active)
        silent.add_(self.samples).masked_fill_(active, 0)
        if self.steps % self.every_n_steps:
            return None
        rate_now = debiased(rate, self.decay, age)
        if first_time(self, units.layer) and bool((rate_now > 1 - 1e-6).all()):
            rank_zero_warn(
                f"{type(self).__name__}: all units of {units.layer} were active in every sample so far. If "
                f"their activation is never exactly 0, as that of tanh and GELU, none will be replaced: use "
                f"ContinualBackprop or ReDo."
            )
        surprise = silence_log_probability(rate_now, silent)
        index = ((surprise < math.log(self.threshold)) & (age > 0)).nonzero().flatten()
        for state in (rate, age, silent):
            state.index_fill_(0, index, 0)
        return index
