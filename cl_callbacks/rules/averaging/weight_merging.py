"""Merging of the weights after tasks, by averages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from typing_extensions import Unpack

from cl_callbacks.functional.anchoring import distances
from cl_callbacks.functional.averaging import draw_back_, merge_weights_
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import AT_LEAST_ONE, Bounds
from cl_callbacks.guards.once import first_time
from cl_callbacks.guards.sound_state import COUNT, OF_SQUARES
from cl_callbacks.rules.averaging.batch_statistics import BatchStatistics, statistics
from cl_callbacks.rules.moved_weights import have_others_follow, refuse_certain_values
from cl_callbacks.rules.named_rule import named_rule
from cl_callbacks.rules.parameter_selection import wants_name
from cl_callbacks.rules.rule_options import RuleOptions
from cl_callbacks.rules.rule_scale import ActsOn
from cl_callbacks.rules.synaptic_callback import SynapticCallback
from cl_callbacks.synapses.state import Fill
from cl_callbacks.synapses.step import Step
from cl_callbacks.synapses.trained_weights import trained
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.training.progress import say


class WeightMerging(SynapticCallback):
    r"""Averages the weights with those after earlier tasks: no data, and no penalty.

    By default once when a task ends, after :math:`t` tasks before,

    .. math:: \theta \leftarrow \theta_{\text{old}} + \frac{\theta - \theta_{\text{old}}}{t+1}, \qquad
              \theta_{\text{old}} \leftarrow \theta ,

    the mean of the weights with which each task has ended, from which the next task trains on. It remembers
    well where tasks end near each other, as from pretrained weights. From random ones they end far apart, and
    what lies between two networks may be neither: there it helps little, and beside a rule with an importance
    ``weighted_by`` is far better. Over many tasks with heads of their own the mean lets little of a new task
    into what they share, and a fixed share learns more (docs/retention.md). Other forms:

    ==================================  ===================================================================
    ``share=b``                         once when a task ends
                                        :math:`\theta\leftarrow(1-b)\theta+b\,\theta_{\text{old}}` (WiSE-FT)
    ``share=b, every_n_steps=n``        the same after every :math:`n` steps, with the weights of the last
                                        boundary as :math:`\theta_{\text{old}}` (SFA)
    ``weighted_by="ewc"``               once when a task ends
                                        :math:`\theta\leftarrow\sum_kF_k\theta_k/\sum_kF_k` with the
                                        importance of another rule (IMM-mode): the minimum of the sum of the
                                        tasks' losses, if these are quadratic and :math:`F` their curvature
    ==================================  ===================================================================

    **Weights that are new.** A weight counts the tasks that have trained it, one by one: that of a head, an
    output or an input which no earlier task has used is not averaged with its random start. It was trained
    if it has moved, and not by decoupled weight decay alone. Decay that goes through the gradient, such as
    that of ``SGD(weight_decay=…)``, moves every weight and so trains every one; there leave such heads out.

    **Other rules.** Wherever it is in the callback list, weights are merged first when a task ends: other
    rules take their anchors from the merged weights and measure on them, ``TaskEvaluation`` scores them, and
    checkpoints have them; only paths, as that of synaptic intelligence, are of the way that training took.
    Validation in the task's last epoch comes before its end.

    **Statistics.** When a task ends the running means and variances of BatchNorm are averaged likewise (over
    tasks alone with ``weighted_by``), if ``parameters`` and ``exclude`` allow their names; within a task, and
    after a boundary that is found late, they are left to the data. Other buffers, counts of batches among
    them, and the optimizer's moments stay.

    A boundary that is found late merges the weights from before the change, and adds what was learned since.
    Memory is two tensors per parameter for any number of tasks.

    Sources: Izmailov et al. 2018 (arXiv 1803.05407) for the mean; Wortsman et al. 2022, WiSE-FT (2109.01903);
    slow and fast averaging, SFA (2501.05559); Lee et al. 2017, IMM (1703.08475).

    Args:
        share: :math:`b`, share of the old weights, from 0, which leaves training as it is, bit for bit, to
            below 1; or ``"running"`` for the mean over tasks.
        every_n_steps: number of optimizer steps from one average to the next, with a ``share`` that is a
            number; ``None`` for once, when a task ends.
        weighted_by: name of another rule of this Trainer, which measures an importance of each weight when a
            task ends, such as ``"ewc"``; ``None`` to count each task alike. With ``normalize="mean"`` of that
            rule each task has the same importance in all, with ``None`` that of its loss.
        include_start: whether the weights before the first task count as those of a task: ``True`` for a
            pretrained network whose abilities are to be kept too, ``False`` for random ones.
        options: of every rule: see :class:`~cl_callbacks.SynapticCallback`.

    Raises:
        ValueError: an argument that cannot work, at construction.
        MisconfigurationException: before the first step, no rule of that name that measures such an
            importance, or a rule whose weights have only certain values, such as :class:`Cascade`.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[WeightMerging()], logger=False, enable_checkpointing=False)
    """

    fields: Mapping[str, Fill] = {"old": "parameter", "total": "zeros"}
    state_bounds: Mapping[str, Bounds] = {
        **SynapticCallback.state_bounds,
        "synapses/total": OF_SQUARES,
        "steps": COUNT,
    }
    running: tuple[str, ...] = ("old",)  # compared with weights, and so not rounded more than they are
    saved: ClassVar[tuple[str, ...]] = ("steps", "started")
    moves_weights: ClassVar[bool] = True
    shardable: ClassVar[bool] = True
    local: ClassVar[bool] = True
    dial: str = "share"

    @checked(share=Bounds(least=0, below=1), every_n_steps=AT_LEAST_ONE)
    def __init__(
        self,
        share: float | Literal["running"] = "running",
        *,
        every_n_steps: int | None = None,
        weighted_by: str | None = None,
        include_start: bool = False,
        **options: Unpack[RuleOptions],
    ) -> None:
        super().__init__(**options)
        if every_n_steps is not None and share == "running":
            raise ValueError("share='running' is for once a task: with every_n_steps give a number")
        if weighted_by is not None and (share != "running" or include_start):
            raise ValueError(
                "weighted_by gives each weight a share of its own, by the importance that tasks have: leave "
                "share='running' and include_start=False, since the weights before them have none"
            )
        self.share, self.every_n_steps = share, every_n_steps
        self.weighted_by, self.include_start = weighted_by, include_start
        self.steps: dict[str, int] = {}
        """Number of optimizer steps of each parameter, by name, if they are counted."""
        self.started = False
        """Whether the weights before the first task have been counted."""
        self._statistics = BatchStatistics()
        self._weighing: SynapticCallback | None = None

    @property
    def strength_now(self) -> float | None:
        """The share of the old weights, if it is a number."""
        return None if isinstance(self.share, str) else self.share

    @property
    def acts_on(self) -> ActsOn | None:
        """The update, if weights are averaged within a task."""
        return None if self.every_n_steps is None else "update"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the rule of ``weighted_by``, and counts the weights before the first task if they are to."""
        super().on_train_start(trainer, pl_module)
        refuse_certain_values(self, trainer)
        if self.weighted_by is not None:
            self._weighing = named_rule(trainer, self, "weighted_by", _weighs, _WEIGHS)
            if getattr(self._weighing, "anchors", "latest") != "latest":
                raise MisconfigurationException(
                    f"{type(self).__name__}: the weights that {self.weighted_by!r} gets are the weighted "
                    f"mean over tasks already, to which it then pulls by the sum of their importances. With "
                    f"anchors='each' it would average a second time: use anchors='latest'."
                )
        if self.include_start and not self.started:
            with self.synapses.on_device():
                torch._foreach_add_(self.synapses.view["total"], 1.0)
            self._statistics.begin(pl_module, self._averages_statistics)
            self.started = True
        self._point_to_importance(trainer)
        averages = any(self._averages_statistics(name) for name, _ in statistics(pl_module))
        if averages and self.every_n_steps is None and first_time(self, "statistics"):
            say(trainer, f"{self.name} averages the running statistics of BatchNorm like the weights")

    def _point_to_importance(self, trainer: Trainer) -> None:
        rules = [c for c in trainer.callbacks if isinstance(c, SynapticCallback)]  # type: ignore[attr-defined]
        able = [rule.name for rule in rules if _weighs(rule)]
        if able and self.share == "running" and self.weighted_by is None and first_time(self, "importance"):
            say(
                trainer,
                f"{self.name} counts every task alike for each weight: weighted_by={able[0]!r} would count "
                f"it by the importance that this rule measures.",
            )

    def rewrite(self, step: Step) -> None:
        """Averages with the weights of the last boundary, after every n-th step."""
        if self.every_n_steps is None or not self.share or not (self.tasks or self.started):
            return
        synapses, steps, every = step.synapses, self.steps, self.every_n_steps
        shares = [0.0 if (steps.get(name, 0) + 1) % every else self.share for name in synapses.names]
        if any(shares):
            draw_back_(synapses.parameters, synapses["old"], synapses["total"], shares)

    def end_step(self, synapses: SynapseView) -> None:
        """Counts the step of each parameter, if these are counted."""
        if self.every_n_steps is not None:
            self.steps.update((name, self.steps.get(name, 0) + 1) for name in synapses.names)

    def consolidate(
        self, trainer: Trainer, pl_module: LightningModule, synapses: SynapseView, task: int
    ) -> bool:
        """Merges the weights, if that is to be when a task ends, and keeps them as the old ones."""
        old, total = synapses["old"], synapses["total"]
        with torch.no_grad():
            new = trained(synapses, old, trainer.optimizers)
            if self._weighing is not None:
                importance = self._weighing.measure_ahead(trainer, pl_module, task)
                if importance is None:
                    return False
                pairs = zip(synapses.names, new, strict=True)
                new = [importance.get(name, moved).to(moved) for name, moved in pairs]
            self.commit()
            before = [p.clone() for p in synapses.parameters]
            share = self.strength_now if self.every_n_steps is None else 0.0
            merge_weights_(synapses.parameters, old, total, new, share)
            if share != 0.0:
                self._statistics.merge(pl_module, self._averages_statistics, share)
                moved = torch._foreach_sub(synapses.parameters, before)
                have_others_follow(self, trainer, dict(zip(synapses.sources, moved, strict=True)))
        return True

    def follow(self, moved: Mapping[Tensor, Tensor]) -> None:
        """Keeps weights that another one has moved since as the old ones: the network goes on from these."""
        super().follow(moved)
        with torch.no_grad(), self.synapses.on_device():
            view = self.synapses.view.restrict_to(list(moved))
            for old, parameter in zip(view["old"], view.parameters, strict=True):
                old.copy_(parameter)

    def measures(self, synapses: SynapseView, rates: list[float]) -> dict[str, list[Tensor]]:
        """Distance from the weights at the last boundary, once there was one."""
        return {"distance": distances(synapses.parameters, synapses["old"])} if self.tasks else {}

    def _averages_statistics(self, name: str) -> bool:
        return wants_name(name, self.parameters, self.exclude)

    def state_dict(self) -> dict[str, Any]:
        """The rule's state, with the statistics of BatchNorm after the last task."""
        return super().state_dict() | {"statistics": self._statistics.state_dict()}

    def restore(self, state_dict: dict[str, Any]) -> None:
        """Sets the state from a saved one."""
        super().restore(state_dict)
        self._statistics.load_state_dict(state_dict["statistics"])


_WEIGHS = "measures an importance of each weight when a task ends, as KFACLaplace does not"


def _weighs(rule: SynapticCallback) -> bool:
    return type(rule).measure_ahead is not SynapticCallback.measure_ahead
