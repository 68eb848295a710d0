"""The base class of rules with a quadratic pull of every synapse towards an anchor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from cl_callbacks.functional.anchoring import (
    add_quadratic_pull_,
    distances,
    quadratic_penalty,
    relax_to_anchor_,
)
from cl_callbacks.rules.rule_options import RuleOptions
from cl_callbacks.rules.synaptic_callback import SynapticCallback
from cl_callbacks.synapses.state import Fill
from cl_callbacks.synapses.step import Step
from cl_callbacks.synapses.view import SynapseView


class AnchoredRule(SynapticCallback):
    r"""Base of the rules that pull each weight towards its anchor by its importance.

    The penalty is :math:`\frac k2\sum_i\Omega_i(\theta_i-\theta^*_i)^2` with the rule's stiffness
    :math:`k`. Its gradient is added to the task's before clipping, in every optimizer step; or, with
    ``proximal``, the weights take its proximal step after each step of the optimizer.

    Args:
        strength: factor of the penalty, at least 0; 0 leaves training as it is, bit for bit.
        proximal: apply the penalty after each optimizer step as
            :math:`\theta\leftarrow(\theta+\eta k\Omega\theta^*)/(1+\eta k\Omega)` with the learning rate
            :math:`\eta`, instead of adding its gradient: stable for any strength, and not rescaled by Adam or
            clipping, so that it needs another strength.
        max_importance: upper bound of a synapse's importance, for rules that measure at boundaries that of
            each task; ``None`` for no limit.
        options: of every rule: see :class:`~cl_callbacks.SynapticCallback`.

    Raises:
        ValueError: an argument that cannot work, at construction.
    """

    fields: Mapping[str, Fill] = {"importance": "zeros", "anchor": "parameter"}
    shardable: ClassVar[bool] = True
    local: ClassVar[bool] = True
    stiffness_of_one: ClassVar[float] = 1.0
    """Stiffness at a strength of 1: 2 for a penalty that has no factor of one half."""

    def __init__(
        self,
        strength: float,
        *,
        proximal: bool = False,
        max_importance: float | None = None,
        **options: Unpack[RuleOptions],
    ) -> None:
        super().__init__(**options)
        if not (math.isfinite(strength) and strength >= 0):
            raise ValueError(f"strength must be a finite number, at least 0; got {strength}")
        if max_importance is not None and not max_importance > 0:
            raise ValueError(f"max_importance must be positive, or None for no limit; got {max_importance}")
        self.strength, self.proximal, self.max_importance = strength, proximal, max_importance
        self.offset = 0.0
        """The part of the penalty that does not depend on the weights."""

    @property
    def stiffness(self) -> float:
        """Stiffness :math:`k`: the pull on a weight of importance 1 at distance 1 from its anchor."""
        return self.stiffness_of_one * self.strength

    @property
    def remembers(self) -> bool:
        """Whether any importance has been measured yet."""
        return self.tasks > 0

    @property
    def anchored(self) -> bool:
        """Whether the penalty is active: there is an importance, and the stiffness is above 0."""
        return self.remembers and self.stiffness > 0

    def effective_importance(self, synapses: SynapseView) -> list[Tensor]:
        r"""Importance :math:`\Omega` as the pull uses it."""
        return synapses["importance"]

    def importance_of_each(self, synapses: SynapseView) -> list[Tensor]:
        r"""Importance of each synapse: the diagonal of the penalty's curvature, divided by :math:`k`."""
        return self.effective_importance(synapses)

    def pull(self, synapses: SynapseView, gradients: list[Tensor]) -> None:
        """Adds the gradient of the penalty."""
        if self.anchored and not self.proximal:
            importance, anchor = self.effective_importance(synapses), synapses["anchor"]
            add_quadratic_pull_(gradients, synapses.parameters, importance, anchor, self.stiffness)

    def rewrite(self, step: Step) -> None:
        """Takes the proximal step of the penalty."""
        if self.anchored and self.proximal:
            importance, anchor = self.effective_importance(step.synapses), step.synapses["anchor"]
            steps = [self.stiffness * rate for rate in step.option("lr")]
            relax_to_anchor_(step.synapses.parameters, importance, anchor, steps)

    def plasticity(self, synapses: SynapseView, rates: list[float]) -> list[Tensor]:
        r"""Plasticity :math:`1/(1+\eta k\Omega)`: the share of a move that the pull leaves."""
        stiff = torch._foreach_mul(self.importance_of_each(synapses), self.stiffness)
        torch._foreach_mul_(stiff, rates)
        torch._foreach_add_(stiff, 1.0)
        return list(torch._foreach_reciprocal(stiff))

    def measures(self, synapses: SynapseView, rates: list[float]) -> dict[str, list[Tensor]]:
        """Plasticity, and once there is an importance also that and the distance to the anchor."""
        found = super().measures(synapses, rates)
        if self.remembers:
            found["importance"] = self.importance_of_each(synapses)
            found["distance"] = distances(synapses.parameters, synapses["anchor"])
        return found

    def penalty(self, synapses: SynapseView) -> Tensor:
        """Current value of the penalty, a scalar."""
        with torch.no_grad():
            parts = [
                quadratic_penalty(
                    block.parameters, self.effective_importance(block), block["anchor"], self.stiffness
                )
                for block in (synapses.blocks() if self.local else [synapses])
            ]
            return synapses.total(torch.stack(parts).sum()) + 0.5 * self.stiffness * self.offset
