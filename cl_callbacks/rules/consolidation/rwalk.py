"""Riemannian walk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import Unpack

from cl_callbacks.functional.averaging import average_square_
from cl_callbacks.functional.path_integral import add_path_, add_score_, min_max
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import AT_LEAST_ONE, POSITIVE, Bounds
from cl_callbacks.guards.sound_state import COUNT, OF_SQUARES
from cl_callbacks.rules.consolidation.boundary_rule import BoundaryRule
from cl_callbacks.rules.rule_options import BoundaryOptions, Decay
from cl_callbacks.synapses.state import Fill
from cl_callbacks.synapses.step import Need, Step
from cl_callbacks.synapses.view import SynapseView


class RWalk(BoundaryRule):
    r"""Riemannian walk: an online Fisher information and a path score, on one scale.

    During training every synapse keeps a running Fisher information
    :math:`F \leftarrow \gamma F + (1-\gamma) g^2` and a score: in each window of steps, the fall of the loss
    per movement of the output distribution. From the second task on every step adds
    the gradient of a penalty to that of the loss:

    .. math:: \lambda \sum_i (\hat F_i + \hat s_i) (\theta_i - \theta^*_i)^2, \qquad
              s \leftarrow s + \frac{\max(0, \omega)}{\frac12 F \, \Delta\theta^2 + \xi}, \qquad
              \omega = -\sum_{\text{window}} g \, \delta\theta,

    where :math:`\hat F` and :math:`\hat s` are scaled to lie between 0 and 1 over the whole network, so that
    :math:`\lambda` does not depend on the loss. At each boundary the score is averaged with that of the
    earlier tasks. It needs no extra pass over the data; memory is six tensors per parameter. Its Fisher is
    that of batch gradients, smaller than EWC's by about the batch size, which the scaling cancels.

    At the published :math:`\xi=10^{-3}` the term :math:`\frac12F\,\Delta\theta^2` is mostly far below
    :math:`\xi` and the division only scales: the score is then the positive part of the path integral over
    each window, divided by :math:`\xi`, which the scaling to 1 cancels. A smaller ``damping`` lets it count.
    At a boundary the score is the average of the old and the new one, as in the paper; the released code adds
    this average to the old score, :math:`\frac32 s_{\text{old}}+\frac12 s_{\text{new}}`, and so counts old
    tasks twice.

    Source: Chaudhry et al. 2018 (arXiv 1801.10112).

    Args:
        strength: :math:`\lambda`, at least 0; 0 leaves training as it is, bit for bit.
        fisher_decay: :math:`\gamma`, share of the running Fisher information that each step keeps, 0 to
            below 1.
        window_steps: length of a window; one also ends with each snapshot of
            :class:`~cl_callbacks.boundaries.drift_boundaries.DriftBoundaries`.
        decay: share of the importance at earlier boundaries that is kept at each boundary, 0 to 1, in
            addition to the averages of Fisher and score: 0 as in the paper; ``"mean"`` for the average
            over tasks.
        damping: :math:`\xi`, above 0; a change of the output distribution far below it counts as none.
        options: ``parameters``, ``exclude``, ``proximal`` and others of every rule that pulls: see
            :class:`~cl_callbacks.rules.consolidation.boundary_rule.BoundaryRule`.

    Raises:
        ValueError: an argument that cannot work, at construction.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[RWalk()], logger=False, enable_checkpointing=False)
    """

    fields: Mapping[str, Fill] = {
        **BoundaryRule.fields,
        "fisher": "zeros",
        "path": "zeros",
        "score": "zeros",
        "start": "parameter",
    }
    state_bounds: Mapping[str, Bounds] = {
        **BoundaryRule.state_bounds,
        "synapses/fisher": OF_SQUARES,
        "synapses/score": OF_SQUARES,
        "steps": COUNT,
    }
    accumulated: ClassVar[tuple[str, ...]] = ("fisher", "path", "score", "start")
    follows: ClassVar[tuple[str, ...]] = ("start",)
    running = ("fisher", "path", "score", "start")
    shared: ClassVar[tuple[str, ...]] = ("importance", "anchor", "fisher", "score")
    needs: frozenset[Need] = frozenset({"gradients", "updates"})
    local: ClassVar[bool] = True
    saved: ClassVar[tuple[str, ...]] = ("offset", "steps")
    stiffness_of_one: ClassVar[float] = 2.0

    @checked(fisher_decay=Bounds(least=0, below=1), window_steps=AT_LEAST_ONE, damping=POSITIVE)
    def __init__(
        self,
        strength: float = 0.02,
        *,
        fisher_decay: float = 0.99,
        window_steps: int = 10,
        decay: Decay = 0.0,
        damping: float = 1e-3,
        **options: Unpack[BoundaryOptions],
    ) -> None:
        super().__init__(strength, decay=decay, **options)
        self.fisher_decay, self.window_steps, self.damping = fisher_decay, window_steps, damping
        self.steps = 0
        """Number of optimizer steps; windows end for all synapses together."""

    def observe(self, step: Step) -> None:
        """Adds one step to the running Fisher information and the path integral."""
        synapses = step.synapses
        average_square_(synapses["fisher"], step.gradients, [1.0 - self.fisher_decay] * len(synapses))
        add_path_(synapses["path"], step.gradients, step.updates)

    def end_step(self, synapses: SynapseView) -> None:
        """Counts the step, and ends the window after its last one."""
        self.steps += 1
        if self.steps % self.window_steps == 0:
            self._close_window(self.synapses.view)

    def _close_window(self, synapses: SynapseView) -> None:
        for block in synapses.blocks():
            with self.synapses.on_device():
                fields = (block[name] for name in ("score", "path", "fisher", "start"))
                add_score_(*fields, block.parameters, self.damping)

    def estimate(
        self, trainer: Trainer, pl_module: LightningModule, synapses: SynapseView, task: int
    ) -> list[Tensor]:
        """Sum of running Fisher information and averaged score, each scaled to the range 0 to 1."""
        self.commit()  # the state is changed while it is read
        self._close_window(synapses)
        score, fisher = synapses["score"], synapses["fisher"]
        if self.tasks:  # the first task's score has no earlier one to average with
            torch._foreach_mul_(score, 0.5)
        scaled = [min_max(found, *synapses.extremes(found)) for found in (fisher, score)]
        return list(torch._foreach_add(*scaled))

    def snapshot(self) -> dict[str, Any]:
        """Ends the window, so that none extends over the snapshot, and copies the accumulated fields."""
        with torch.no_grad(), self.synapses.on_device():
            self._close_window(self.synapses.view)
        return super().snapshot()
