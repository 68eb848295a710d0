"""Metaplasticity by the size of weights."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from cl_callbacks.functional.metaplasticity import metaplastic_gate, resist_shrinking_
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import NON_NEGATIVE
from cl_callbacks.rules.rule_options import RuleOptions
from cl_callbacks.rules.synaptic_callback import SynapticCallback
from cl_callbacks.synapses.step import Need, Step
from cl_callbacks.synapses.view import SynapseView


class MetaplasticGate(SynapticCallback):
    r"""Damps updates that shrink a weight: the larger the weight, the more.

    With the update :math:`\Delta` that the optimizer has made to a weight :math:`w`,

    .. math:: w \leftarrow w + \Delta\cdot\begin{cases}
                  1 - \tanh^2(m|w|) & \text{if } w\Delta < 0 \\ 1 & \text{else.}\end{cases}

    It was made for binary networks, which compute with the signs of hidden weights: there the size of a
    hidden weight tells how often its sign was confirmed, and can serve as memory. The rule needs neither
    task boundaries nor state. As in the paper, one-dimensional parameters (biases, normalisation) are
    exempt, unless ``parameters`` names them.

    Source: Laborieux et al. 2021 (arXiv 2003.03533).

    Args:
        steepness: :math:`m`, at least 0, in inverse units of weights; 0 leaves training as it is, bit for
            bit.
        options: of every rule: see :class:`~cl_callbacks.SynapticCallback`; by default ``parameters``
            are those of two and more dimensions.

    Raises:
        ValueError: an argument that cannot work, at construction.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[MetaplasticGate()], logger=False, enable_checkpointing=False)
    """

    needs: frozenset[Need] = frozenset({"before"})
    matrices_only: ClassVar[bool] = True
    shardable: ClassVar[bool] = True
    local: ClassVar[bool] = True
    dial: str = "steepness"

    @checked(steepness=NON_NEGATIVE)
    def __init__(self, steepness: float = 20.0, **options: Unpack[RuleOptions]) -> None:
        super().__init__(**options)
        self.steepness = steepness

    def rewrite(self, step: Step) -> None:
        """Undoes a part of the updates that have shrunk weights."""
        with torch.no_grad():
            resist_shrinking_(step.synapses.parameters, step.before, self.steepness)

    def plasticity(self, synapses: SynapseView, rates: list[float]) -> list[Tensor]:
        """Share that each weight takes of updates that shrink it."""
        return metaplastic_gate(synapses.parameters, self.steepness)
