"""What a rule sees of an optimizer step, and what a step asks of a rule.

Just before the optimizer steps, the gradients are those of the task alone: unscaled, averaged over
processes, not yet clipped. There every snapshot that some rule needs is taken, once, and then the rules
pull. When the optimizer has really stepped, rules may rewrite the update that it made, one after the other,
and then all observe what happened. A rule that owns the update puts another in its place, and so comes
first. A step that is skipped (an overflow under mixed precision) leaves no trace, because torch calls
the hook of a step only if there is one; accumulated, manual and alternating steps come out right for the
same reason.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor
from torch.optim import Optimizer

from cl_callbacks.synapses.state import Synapses
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.synapses.weight_noise import WeightNoise

Need = Literal["gradient", "noise", "pulled", "before", "update"]
"""What a rule may need of a step: see the attributes of :class:`Step`."""


@dataclass(frozen=True)
class Step:
    """What one optimizer step did to the synapses of one rule, or to a part of them if the rule is local.

    The lists are aligned with ``synapses.parameters`` and shared by all rules: read them, or copy them.
    Gradients and updates are always finite: what is not, counts as 0, as if the synapse had met nothing. The
    weights themselves may be lost.

    Attributes:
        synapses: the synapses that stepped; ``synapses.parameters`` are the weights after the step.
        gradients: the task's gradient at the weights before, without any pull or clipping (given to
            rules that need ``"gradient"``, else empty).
        noise_gradients: the task's gradient times the noise of the weights that it was taken at, mean
            over the draws (``"noise"``; zero without noise).
        pulled: the gradient with the pulls of all rules, not clipped (``"pulled"``).
        before: weights before the step (``"before"``; there while rules rewrite, not while they observe).
        updates: weights after minus weights before: the realised update, whatever the optimizer
            (``"update"``; there while rules observe, not while they rewrite).
        optimizer: which stepped.
        groups: index of the optimizer's parameter group of each synapse.
    """

    synapses: SynapseView
    gradients: list[Tensor]
    noise_gradients: list[Tensor]
    pulled: list[Tensor]
    before: list[Tensor]
    updates: list[Tensor]
    optimizer: Optimizer
    groups: list[int]

    def option(self, name: str, default: float = math.nan) -> list[float]:
        """An option of each synapse's parameter group, such as ``"lr"``, as the step used it."""
        values = [float(group.get(name, default)) for group in self.optimizer.param_groups]
        return [values[group] for group in self.groups]


class Rule(Protocol):
    """What a step asks of a rule."""

    needs: frozenset[Need]
    synapses: Synapses

    @property
    def owns_update(self) -> bool:
        """Whether the rule puts an update of its own in the place of the optimizer's."""

    @property
    def shardable(self) -> bool:
        """Whether the rule is local to each weight, and so can work on shards of parameters."""

    @property
    def local(self) -> bool:
        """Whether the verbs but the last may be called for a part of the synapses after the other."""

    @property
    def noise(self) -> WeightNoise | None:
        """Of a rule that has the network seen at drawn weights."""

    def pull(self, synapses: SynapseView, gradients: list[Tensor]) -> None:
        """Adds the rule's gradient to the task's, in place; the state is only read."""

    def rewrite(self, step: Step) -> None:
        """Changes the weights that the optimizer left, in place."""

    def observe(self, step: Step) -> None:
        """Reads a step that was really taken."""

    def end_step(self, synapses: SynapseView) -> None:
        """Counts the step, and does what is due after so many; once, for all the synapses that stepped."""
