"""The interface between an optimizer step and a rule: :class:`Step` and :class:`Rule`.

Just before the optimizer steps, the gradients are those of the task alone: unscaled, averaged over
processes, not yet clipped. At this point every snapshot that some rule needs is taken, once for all rules,
and then the rules pull. After the optimizer has stepped, rules may rewrite its update, one after the other,
and then all observe the result. A rule that owns the update replaces it, and so comes first. A step that is
skipped (an overflow under mixed precision) has no effect, because torch calls the hooks of a step only if it
is taken; accumulated, manual and alternating steps are correct for the same reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from cl_callbacks.synapses.state import Synapses
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.synapses.weight_noise import WeightNoise

Need = Literal["gradients", "noise_gradients", "pulled", "before", "updates"]
"""A quantity of a step that a rule may ask for: see the properties of :class:`Step`."""


@dataclass(frozen=True)
class Step:
    """One optimizer step of the synapses of one rule, or of a part of them if the rule is local.

    It has what the rule asks for by ``needs``; anything else raises a LookupError. The lists are aligned with
    ``synapses.parameters`` and shared by all rules: read them, or copy them. Gradients and updates are always
    finite: NaN and infinity are replaced by 0. The weights themselves may be NaN or infinite.

    Attributes:
        synapses: the synapses that stepped; ``synapses.parameters`` are the weights after the step.
        snapshots: the quantities, by need.
    """

    synapses: SynapseView
    snapshots: Mapping[Need, list[Tensor]]

    @property
    def gradients(self) -> list[Tensor]:
        """The task's gradient at the weights before, without any pull or clipping."""
        return self._snapshot("gradients")

    @property
    def noise_gradients(self) -> list[Tensor]:
        """The task's gradient times the noise of the weights that it was taken at, mean over the draws."""
        return self._snapshot("noise_gradients")

    @property
    def pulled(self) -> list[Tensor]:
        """The gradient with the pulls of all rules, not clipped."""
        return self._snapshot("pulled")

    @property
    def before(self) -> list[Tensor]:
        """Weights before the step; in ``rewrite`` only."""
        return self._snapshot("before")

    @property
    def updates(self) -> list[Tensor]:
        """Weights after minus weights before: the update, after all rewrites; in ``observe`` only."""
        return self._snapshot("updates")

    def _snapshot(self, need: Need) -> list[Tensor]:
        if need not in self.snapshots:
            raise LookupError(
                f"this step has no {need!r}: the rule has to declare it, needs = frozenset({{{need!r}}}); "
                f"'before' is there in rewrite only, and 'updates' in observe only"
            )
        return self.snapshots[need]

    def option(self, name: str, default: float = math.nan) -> list[float]:
        """Values of an optimizer option, such as ``"lr"``, one per tensor: those of its parameter group."""
        return self.synapses.option(name, default)


class Rule(Protocol):
    """Protocol of a rule: what a step uses of :class:`~cl_callbacks.SynapticCallback`, which describes it."""

    needs: frozenset[Need]
    synapses: Synapses
    owns_update: ClassVar[bool]
    shardable: ClassVar[bool]
    local: ClassVar[bool]

    @property
    def weight_noise(self) -> WeightNoise | None:
        """The weight noise of a rule that trains at sampled weights; ``None`` for other rules."""

    def pull(self, synapses: SynapseView, gradients: list[Tensor]) -> None:
        """Adds the rule's gradient to the task's, in place; the state is only read."""

    def rewrite(self, step: Step) -> None:
        """Changes the weights after the optimizer's step, in place."""

    def observe(self, step: Step) -> None:
        """Updates the rule's state from a completed step."""

    def end_step(self, synapses: SynapseView) -> None:
        """Ends the step, such as by counting it: called once for all the synapses that stepped."""
