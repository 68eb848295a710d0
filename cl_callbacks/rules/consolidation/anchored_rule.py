"""The base class of rules with a quadratic pull of every synapse towards an anchor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import Unpack

from cl_callbacks.functional.anchoring import (
    add_quadratic_pull_,
    distances,
    largest_importance,
    quadratic_penalty,
    relax_to_anchor_,
)
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import NON_NEGATIVE, POSITIVE, Bounds
from cl_callbacks.guards.sound_state import OF_SQUARES
from cl_callbacks.rules.rule_options import Normalize, RuleOptions
from cl_callbacks.rules.synaptic_callback import SynapticCallback
from cl_callbacks.synapses.state import Fill
from cl_callbacks.synapses.step import Step
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.tensors.devices import stacked


class AnchoredRule(SynapticCallback):
    r"""Base of the rules that pull each weight towards its anchor by its importance.

    The penalty is :math:`\frac k2\sum_i\Omega_i(\theta_i-\theta^*_i)^2` with the rule's stiffness
    :math:`k`. Its gradient is added to the task's before clipping, in every optimizer step; or, with
    ``proximal``, the weights take its proximal step after each step of the optimizer.

    Args:
        strength: factor of the penalty, at least 0; 0 leaves training as it is, bit for bit.
        normalize: unit of the importance: ``"mean"``, in which it is 1 on average over the selected weights
            for each task, so that one strength serves many networks and data; or ``None``, the papers' own
            units, in which good strengths differ by orders of magnitude. With ``"mean"`` an importance also
            counts as at most :math:`1/\eta k`, with the learning rate :math:`\eta`, so that a step of plain
            gradient descent does not carry a weight past its anchor.
        proximal: apply the penalty after each optimizer step as
            :math:`\theta\leftarrow(\theta+\eta k\Omega\theta^*)/(1+\eta k\Omega)` with the learning rate
            :math:`\eta`, instead of adding its gradient: stable for any strength, and not rescaled by Adam or
            clipping, so that it needs another strength.
        max_importance: upper bound of a synapse's importance, in the unit of ``normalize``; for rules that
            measure at boundaries, of that for each task. ``None`` for no limit.
        options: of every rule: see :class:`~cl_callbacks.SynapticCallback`.

    Raises:
        ValueError: an argument that cannot work, at construction.
    """

    fields: Mapping[str, Fill] = {"importance": "zeros", "anchor": "parameter"}
    state_bounds: Mapping[str, Bounds] = {
        **SynapticCallback.state_bounds,
        "synapses/importance": OF_SQUARES,
    }
    shardable: ClassVar[bool] = True
    local: ClassVar[bool] = True
    unsaved_before: ClassVar[Mapping[str, Any]] = {
        **SynapticCallback.unsaved_before,
        "normalized": False,
    }
    stiffness_of_one: ClassVar[float] = 1.0
    """Stiffness at a strength of 1: 2 for a penalty that has no factor of one half."""

    @checked(strength=NON_NEGATIVE, max_importance=POSITIVE)
    def __init__(
        self,
        strength: float,
        *,
        normalize: Normalize = "mean",
        proximal: bool = False,
        max_importance: float | None = None,
        **options: Unpack[RuleOptions],
    ) -> None:
        super().__init__(**options)
        self.strength, self.normalize = strength, normalize
        self.proximal, self.max_importance = proximal, max_importance
        self.offset = 0.0
        """The part of the penalty that does not depend on the weights."""

    def _forget(self, known: list[str], names: list[str]) -> None:
        super()._forget(known, names)
        self.offset = 0.0

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
        """Whether the penalty is active: there is an importance, and the strength is above 0."""
        return self.remembers and self.strength > 0

    def unit(self, synapses: SynapseView, importance: Tensor, what: str) -> float | None:
        """Importance that counts as 1, with a warning and ``None`` if no synapse has any.

        Args:
            synapses: all synapses of the rule.
            importance: ``[sum, number]`` over this process's synapses, of
                :func:`~cl_callbacks.functional.sum_and_number`.
            what: description of what was measured, for the warning.
        """
        total, number = synapses.total(importance).tolist()
        if math.isfinite(total) and total > 0:
            return total / number if self.normalize else 1.0
        found = "no weight has any importance" if total == 0 else f"the importance sums to {total}"
        rank_zero_warn(
            f"{type(self).__name__}: {found} for {what}, as in a network that is frozen, untrained, or so "
            f"certain that its softmax is exactly 0 or 1. It was not consolidated and the earlier state is "
            f"kept. Train longer, or for a certain network use EWC(estimator='logits_reversal') or MAS."
        )
        return None

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
            limit = self.largest_importance(synapses)
            add_quadratic_pull_(gradients, synapses.parameters, importance, anchor, self.stiffness, limit)

    def largest_importance(self, synapses: SynapseView) -> float | None:
        """Importance beyond which a step of plain gradient descent would carry a weight past its anchor.

        There is none in the papers' units, where training may diverge as theirs does, nor outside a step.
        """
        if self.normalize is None or synapses.optimizer is None:
            return None
        return largest_importance(self.stiffness, max(synapses.option("lr")))

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
            return synapses.total(stacked(parts).sum()) + 0.5 * self.stiffness * self.offset

    def state_dict(self) -> dict[str, Any]:
        """The rule's state, with whether its importance is in units of the mean."""
        return super().state_dict() | {"normalized": self.normalize is not None}

    def restore(self, state_dict: dict[str, Any]) -> None:
        """Sets the state from a saved one.

        Raises:
            ValueError: an importance in another unit.
        """
        unit = "mean" if state_dict["normalized"] else None
        importance = state_dict["synapses"]["importance"].values()
        if unit != self.normalize and (state_dict["tasks"] or any(t.any() for t in importance)):
            raise ValueError(
                f"the importance of {type(self).__name__} in this checkpoint has the unit of "
                f"normalize={unit!r}, and this rule that of normalize={self.normalize!r}: a strength means "
                f"another pull in each. Build the rule with normalize={unit!r} and the strength of that run."
            )
        super().restore(state_dict)
