"""ReDo: dormant units are replaced now and then."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from typing_extensions import Unpack

from cl_callbacks.functional.units import relative_activity
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import AT_LEAST_ONE, NON_NEGATIVE
from cl_callbacks.rules.renewal.activity import Heard, Measure
from cl_callbacks.rules.renewal.unit_rule import UnitRule
from cl_callbacks.rules.renewal.unit_weights import UnitWeights
from cl_callbacks.rules.renewal.units import Units
from cl_callbacks.rules.rule_options import RuleOptions


class ReDo(UnitRule):
    r"""Replaces units that have gone dormant, every so many steps.

    A unit is dormant if its activity beside the mean of its layer is at most a threshold:

    .. math:: s_i = \frac{\overline{|h_i|}}{\frac1n\sum_j\overline{|h_j|}} \le \tau ,

    where the mean of :math:`|h|` is over all samples since the last time. With :math:`\tau = 0` these are
    units that were silent throughout, and their replacement changes no output; with more, what they gave is
    lost.

    What else is reset, and which units there are: :class:`~.unit_rule.UnitRule`.

    Source: Sokar, Agarwal, Castro & Evci 2023, The dormant neuron phenomenon in deep reinforcement learning
    (arXiv 2302.12902).

    Args:
        threshold: :math:`\tau`, at least 0. Published: 0.01 to 0.1.
        every_n_steps: optimizer steps from one replacement to the next; then the host waits for the device.
        seed: of the new weights.
        options: of every rule: see :class:`~cl_callbacks.SynapticCallback`.

    Raises:
        ValueError: an argument that cannot work, at construction.
        MisconfigurationException: before the first step, as in :class:`~.unit_rule.UnitRule`.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[ReDo()], logger=False, enable_checkpointing=False)
    """

    needed: ClassVar[tuple[Measure, ...]] = ("magnitude",)
    of_units: ClassVar[tuple[str, ...]] = ("activity",)
    dial = "threshold"

    @checked(threshold=NON_NEGATIVE, every_n_steps=AT_LEAST_ONE)
    def __init__(
        self,
        threshold: float = 0.025,
        *,
        every_n_steps: int = 1000,
        seed: int = 0,
        **options: Unpack[RuleOptions],
    ) -> None:
        super().__init__(seed=seed, **options)
        self.threshold, self.every_n_steps = threshold, every_n_steps

    def choose(self, units: Units, heard: Heard, weights: UnitWeights) -> Tensor | None:
        """Adds up the activity, and returns the dormant units if it is time."""
        total = self.unit_state["activity"][units.layer].add_(heard.units["magnitude"])
        if self.steps % self.every_n_steps:
            return None
        dormant = relative_activity(total) <= self.threshold
        total.zero_()
        return dormant.nonzero().flatten()
