"""Decay to the initial weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from typing_extensions import Unpack

from cl_callbacks.guards.arguments import checked
from cl_callbacks.rules.consolidation.l2sp import L2SP
from cl_callbacks.rules.rule_options import RuleOptions
from cl_callbacks.synapses.state import Fill


class L2Init(L2SP):
    r"""L2-Init: every weight is pulled to its initial value, from the first step on and in all tasks.

    Every step adds the gradient :math:`2\lambda(\theta-\theta_0)` of a penalty to that of the loss:

    .. math:: \lambda \sum_i (\theta_i - \theta_{0,i})^2 .

    Weights that a task does not need return to where they were drawn, small and of many directions, from
    where the next task can learn. It does not hold what was learned: it is no memory, and may stand beside
    a rule that is one, such as :class:`EWC`.

    It is ``L2SP(strength=2 * λ, to="start")``, but for weights that come later, such as those of a new head
    or of new outputs: here they are pulled to the values that they came with. Memory is two tensors per
    parameter. The initial weights are those that training begins with: of a pretrained network, the
    pretrained ones.

    Source: Kumar et al. 2023, "Maintaining plasticity in continual learning via regenerative
    regularization" (arXiv 2308.11958).

    Args:
        strength: :math:`\lambda` of the paper, whose penalty has no factor of one half; at least 0, in units
            of the loss per squared weight. 0 leaves training as it is, bit for bit. With Adam at 0.001 0.001
            to 0.003 learn best, on permuted MNIST and on random labels; the paper's best of 0.00001 to 0.01
            is 0.01, for longer tasks.
        proximal: apply the penalty after each optimizer step instead of adding its gradient: see
            :class:`~cl_callbacks.rules.consolidation.anchored_rule.AnchoredRule`.
        options: of every rule: see :class:`~cl_callbacks.SynapticCallback`.

    Raises:
        ValueError: an argument that cannot work, at construction.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[L2Init()], logger=False, enable_checkpointing=False)
    """

    # With importance from the beginning, also of weights that come later.
    fields: Mapping[str, Fill] = {"importance": 1.0, "anchor": "parameter"}
    holds_weights: ClassVar[bool] = False
    renews: ClassVar[bool] = True
    stiffness_of_one: ClassVar[float] = 2.0

    @checked()
    def __init__(
        self, strength: float = 0.001, *, proximal: bool = False, **options: Unpack[RuleOptions]
    ) -> None:
        super().__init__(strength, to="start", proximal=proximal, **options)
        self.started = True
