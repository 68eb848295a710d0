"""Continual backpropagation: the least useful of the mature units are replaced, a few at a time."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import ClassVar, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import Unpack

from cl_callbacks.functional.units import debiased, relative_activity
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import NON_NEGATIVE, SHARE, Bounds
from cl_callbacks.rules.named_rule import KNOWS_PLASTICITY, knows_plasticity, named_rule
from cl_callbacks.rules.renewal.activity import Heard, Measure
from cl_callbacks.rules.renewal.unit_rule import UnitRule
from cl_callbacks.rules.renewal.unit_weights import UnitWeights
from cl_callbacks.rules.renewal.units import Units
from cl_callbacks.rules.rule_options import RuleOptions
from cl_callbacks.rules.synaptic_callback import SynapticCallback


class ContinualBackprop(UnitRule):
    r"""Replaces the least useful units all the time, so that some of the network is always as good as new.

    After each optimizer step the utility of unit :math:`i` of a layer is averaged, with the mean
    magnitude of its activation over the batch and of the weights that read it:

    .. math:: u_i \leftarrow \eta\, u_i + (1-\eta)\,\overline{|h_i|}\sum_k |w_{ki}| ,
              \qquad \hat u_i = \frac{u_i}{1-\eta^{a_i}} ,

    where :math:`a_i` is the unit's age in steps. Of the units older than ``maturity`` the share
    ``replacement_rate`` with the least :math:`\hat u` is replaced in each step; fractions add up. The biases
    of the readers make up for what it gave them on average, :math:`b_k \leftarrow b_k + w_{ki}\bar h_i` with
    the mean :math:`\bar h_i` of what this reader was given, so that the outputs stay as they are where the
    unit has its mean. Readers without a bias cannot.

    With ``spared_by`` another rule has a say: the units are compared by

    .. math:: \frac{\hat u_i}{\bar u} + \frac{d_i}{\bar d} ,
              \qquad d_i = \sum_k w_{ki}^2\Big(\frac1{\pi_{ki}}-1\Big) ,

    with the plasticity :math:`\pi` that it leaves each weight, so that units which earlier tasks need and the
    present one does not are kept: see :func:`~cl_callbacks.functional.held_magnitude`.

    What else is reset, and which units there are: :class:`~.unit_rule.UnitRule`.

    Source: Dohare, Hernandez-Garcia, Lan, Rahman, Mahmood & Sutton 2024, Loss of plasticity in deep continual
    learning, Nature 632 (arXiv 2306.13812), where it is CBP.

    Args:
        replacement_rate: share of the mature units of each layer that is replaced per step; 0 leaves
            training as it is, bit for bit. Published: 1e-5 to 1e-3.
        maturity: number of steps in which a new unit is safe.
        decay: :math:`\eta` of the running averages.
        utility: ``"contribution"``, as above, or ``"adaptable"``, divided by the sum of the magnitudes of
            the incoming weights: units that change fast are kept.
        spared_by: name of another rule of this Trainer which knows how plastic a synapse is,
            such as ``"ewc"``.
        seed: of the new weights.
        options: of every rule: see :class:`~cl_callbacks.SynapticCallback`.

    Raises:
        ValueError: an argument that cannot work, at construction.
        MisconfigurationException: before the first step, as in :class:`~.unit_rule.UnitRule`, and if no rule
            of the name ``spared_by`` knows a plasticity.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[ContinualBackprop()], logger=False, enable_checkpointing=False)
    """

    needed: ClassVar[tuple[Measure, ...]] = ("mean", "magnitude")
    of_units: ClassVar[tuple[str, ...]] = ("utility", "age")
    of_inputs: ClassVar[tuple[str, ...]] = ("mean", "heard")
    saved: ClassVar[tuple[str, ...]] = (*UnitRule.saved, "due")
    state_bounds: Mapping[str, Bounds] = {
        **UnitRule.state_bounds,
        "units/mean": Bounds(),
        "due": NON_NEGATIVE,
    }
    dial = "replacement_rate"

    @checked(replacement_rate=SHARE, maturity=NON_NEGATIVE, decay=Bounds(least=0, below=1))
    def __init__(
        self,
        replacement_rate: float = 1e-4,
        *,
        maturity: int = 100,
        decay: float = 0.99,
        utility: Literal["contribution", "adaptable"] = "contribution",
        spared_by: str | None = None,
        seed: int = 0,
        **options: Unpack[RuleOptions],
    ) -> None:
        super().__init__(seed=seed, **options)
        self.replacement_rate, self.maturity = replacement_rate, maturity
        self.decay, self.utility, self.spared_by = decay, utility, spared_by
        self.due: dict[str, float] = {}
        """Number of units of each layer that are due to be replaced: a fraction below 1."""
        self._young: dict[str, list[int]] = {}  # steps at which units of a layer become mature
        self._means: dict[str, Tensor] = {}
        self._sparing: SynapticCallback | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the rule of ``spared_by``."""
        super().on_train_start(trainer, pl_module)
        if self.spared_by is not None:
            self._sparing = named_rule(trainer, self, "spared_by", knows_plasticity, KNOWS_PLASTICITY)

    def begin_units(self, units: Units) -> None:
        """Reads, once, when the units become mature: no step has to ask the device."""
        ages = self.unit_state["age"][units.layer].tolist()
        left = [self.maturity + 1 - int(age) for age in ages]
        self._young[units.layer] = sorted(self.steps + n for n in left if n > 0)

    def choose(self, units: Units, heard: Heard, weights: UnitWeights) -> Tensor | None:
        """Updates utilities, and returns the least useful units that are due."""
        utility, age = (self.unit_state[field][units.layer] for field in ("utility", "age"))
        useful = heard.units["magnitude"] * weights.outgoing_magnitude()
        if self.utility == "adaptable":
            useful = useful / weights.incoming_magnitude().clamp(min=1e-8)
        utility.lerp_(useful.to(utility), 1 - self.decay)
        age.add_(1)
        for reader, value in heard.means.items():
            mean = self.unit_state["mean"][reader]
            mean.lerp_(value.to(mean), 1 - self.decay)
            self.unit_state["heard"][reader].add_(1)
        number = self._number_due(units)
        if not number:
            return None
        score = debiased(utility, self.decay, age)
        if self._sparing is not None:
            held = weights.held_magnitude(self._sparing)
            score = relative_activity(score) + relative_activity(held).to(score)
        score = score.masked_fill(age <= self.maturity, torch.inf)
        index = score.topk(number, largest=False).indices
        self._means = {reader: self._mean_of(reader) for reader in units.outgoing}
        for state in (utility, age):
            state.index_fill_(0, index, 0)
        for field, reader in product(self.of_inputs, units.outgoing):
            self.unit_state[field][reader].view(units.number, -1).index_fill_(0, index, 0)
        return index

    def means(self, units: Units) -> Mapping[str, Tensor]:
        """The running means before the units that are replaced lost theirs."""
        return self._means

    def _mean_of(self, reader: str) -> Tensor:
        return debiased(self.unit_state["mean"][reader], self.decay, self.unit_state["heard"][reader])

    def _number_due(self, units: Units) -> int:
        young = [step for step in self._young[units.layer] if step > self.steps]
        due = self.due.get(units.layer, 0.0) + self.replacement_rate * (units.number - len(young))
        number = min(int(due), units.number - len(young))
        self.due[units.layer] = min(due - number, 1.0)
        self._young[units.layer] = [*young, *[self.steps + self.maturity + 1] * number]
        return number
