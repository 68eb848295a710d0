"""A rule that keeps the scores of old tasks within a tolerance, in the units of the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from typing_extensions import Unpack

from cl_callbacks.functional.anchoring import distances
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import NON_NEGATIVE, Bounds
from cl_callbacks.guards.sound_state import OF_SQUARES
from cl_callbacks.retention.learned_scores import LearnedScores
from cl_callbacks.retention.least_share import least_share
from cl_callbacks.retention.old_weights import OldStatistics, OldWeights
from cl_callbacks.retention.strengthening import rules_to_strengthen, set_strengths, strengths_of
from cl_callbacks.retention.tolerated_loss import ToleratedLoss
from cl_callbacks.rules.moved_weights import have_others_follow, refuse_certain_values
from cl_callbacks.rules.parameter_selection import wants_name
from cl_callbacks.rules.rule_options import RuleOptions
from cl_callbacks.rules.synaptic_callback import SynapticCallback
from cl_callbacks.synapses.state import Fill
from cl_callbacks.synapses.trained_weights import trained
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.training import log_keys
from cl_callbacks.training.log import log

Action = Literal["interpolate", "strengthen", "stop"]


class RetentionGuard(SynapticCallback):
    r"""Acts when an old task has lost more than a tolerance, in the units of your own validation's score.

    When a task ends, the module's validation scores all tasks, each by a loader of its own. If the score of
    an old task is worse, by more than ``tolerance``, than when that task itself ended, the guard acts:

    ``"interpolate"`` draws the weights back towards those of the last boundary, just far enough:

    .. math:: \theta \leftarrow \theta + a\,(\theta_{\text{old}} - \theta)

    with the least :math:`a` from 0 to 1 for which every old task is within its tolerance, found by bisection
    with at most ``validations`` validations. What is kept was tried: the least share that held, or if none
    did, which a warning says, that with the least loss. A task's own head and new classes at the end of a
    head, which no task before has trained, stay as they are. BatchNorm's running means and variances are
    drawn back alike, if tasks before have used them; other buffers and the optimizer's moments stay.

    ``"strengthen"`` multiplies the strength of other rules by ``factor`` for the tasks to come. What the task
    that ends has lost is not repaired.

    ``"stop"`` ends the training, with a warning, and leaves the weights as they are; further fits end before
    their first step until the attribute ``stopped`` is set to ``False``.

    **Other rules.** Wherever the guard is in the callback list, it acts after rules that move weights, such
    as ``WeightMerging``, and before all others: they take their anchors from the weights that it leaves, and
    ``TaskEvaluation`` scores these. Validation in the task's last epoch comes before. With a boundary that is
    found late the weights from before the change are judged and drawn back, and what was learned since is
    added. The weights themselves are scored, also where Lightning averages weights for validation.

    One validation before the first step of a fit finds out whether the score is there; one at the end of each
    task is all else that a guard costs that need not act. It has no side effects, and training is the same,
    bit for bit.
    Memory is two tensors per parameter, and another two while a share is searched.

    Logged at the end of a task: ``cl/guard/lost`` and ``cl/guard/lost_after``, the most that an old task has
    lost before and after the guard has acted; ``cl/guard/validations``, their number; ``cl/guard/share``,
    :math:`a`; ``cl/guard/strength/RULE``, a rule's strength from here on.

    Args:
        monitor: the score, as logged by ``validation_step``: ``"val_acc"``, to which Lightning adds
            ``/dataloader_idx_0`` and so on; or a pattern with ``{task}`` in it for other names.
        mode: ``"max"`` if higher scores are better, ``"min"`` if lower ones are.
        tolerance: the most that an old task may lose, in the units of the score, at least 0.
        action: what to do when one has lost more.
        rules: names of the rules that ``"strengthen"`` is about; default: all that pull weights,
            but for those that renew them, as :class:`L2Init`.
        factor: by which it multiplies their strength, above 1.
        validations: the most validations at the end of a task, at least 2, one of which scores the weights
            that training has ended with.
        order: the loader of the task that is learned first, second and so on, counted from 0; ``None`` for a
            task without a loader. By default it is found as :class:`~cl_callbacks.TaskEvaluation` finds it.
        options: of every rule: see :class:`~cl_callbacks.SynapticCallback`. Only the weights that
            ``parameters`` and ``exclude`` select are drawn back.

    Attributes:
        decisions: what was found and done at the end of each task that had tasks before it: a dict of
            numbers, with the keys of the log.

    Raises:
        ValueError: an argument that cannot work, at construction.
        MisconfigurationException: before the first step, two guards, no validation, a score that is not
            logged, no rule to strengthen, or a rule whose weights have only certain values, such as
            :class:`Cascade`, beside ``"interpolate"``.

    Example:
        >>> from lightning import Trainer
        >>> from cl_callbacks import EpochBoundaries
        >>> guard = RetentionGuard("val_acc", "max", tolerance=0.02)
        >>> trainer = Trainer(
        ...     callbacks=[EpochBoundaries(10), guard], logger=False, enable_checkpointing=False)
    """

    fields: Mapping[str, Fill] = {"old": "parameter", "total": "zeros"}
    state_bounds: Mapping[str, Bounds] = {**SynapticCallback.state_bounds, "synapses/total": OF_SQUARES}
    running: tuple[str, ...] = ("old",)  # compared with weights, and so not rounded more than they are
    saved: ClassVar[tuple[str, ...]] = ("decisions", "strengths", "stopped")
    corrects_weights: ClassVar[bool] = True
    shardable: ClassVar[bool] = True
    local: ClassVar[bool] = True
    dial: str = "tolerance"

    @checked(
        tolerance=NON_NEGATIVE,
        factor=Bounds(above=1),
        validations=Bounds(least=2),
        order=NON_NEGATIVE,
    )
    def __init__(
        self,
        monitor: str,
        mode: Literal["max", "min"],
        tolerance: float,
        *,
        action: Action = "interpolate",
        rules: Sequence[str] | None = None,
        factor: float = 2.0,
        validations: int = 8,
        order: Sequence[int | None] | None = None,
        **options: Unpack[RuleOptions],
    ) -> None:
        super().__init__(**options)
        if rules is not None and action != "strengthen":
            raise ValueError(f"rules is for action='strengthen', and not for {action!r}; got {rules!r}")
        self.monitor, self.mode, self.tolerance, self.action = monitor, mode, tolerance, action
        self.rules, self.factor = None if rules is None else list(rules), factor
        self.validations = validations
        self.scores = LearnedScores(monitor, mode == "max", order, type(self).__name__)
        """What each task has scored, and had scored when it was learned."""
        self.order = self.scores.order
        self.decisions: list[dict[str, float]] = []
        self.strengths: dict[str, float] = {}
        """Strength of each rule that is strengthened."""
        self.stopped = False
        """Whether the training was stopped."""
        self._statistics = OldStatistics(self._keeps_statistics)
        self._restored = False
        self._summary: str | None = None

    # -- hooks -------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a second guard."""
        super().setup(trainer, pl_module, stage)
        if sum(isinstance(c, RetentionGuard) for c in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise MisconfigurationException(
                "One RetentionGuard decides what becomes of the weights at the end of a task, and this "
                "Trainer has two, which would undo each other's decisions: keep one of them."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks that there are scores, and keeps those before the first step."""
        super().on_train_start(trainer, pl_module)
        if not trainer.enable_validation:
            raise MisconfigurationException(
                f"{type(self).__name__} guards the scores of old tasks in the Trainer's validation, and "
                f"there is none: give `fit` one validation loader per task, the module a `validation_step`, "
                f"and leave limit_val_batches above 0."
            )
        if self.action == "interpolate":
            refuse_certain_values(self, trainer)
        self._take_strengths(trainer)
        self._statistics.begin(pl_module)
        self.scores.begin_fit(trainer)
        if self.stopped:
            trainer.should_stop = True
            rank_zero_warn(
                f"{type(self).__name__} has stopped the training at the end of an earlier task, so this fit "
                f"ends before its first step. To train on, set `stopped = False` of the guard."
            )

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Finds out which loader is the task's own."""
        super().on_task_start(trainer, pl_module, task)
        self._statistics.begin(pl_module)
        self.scores.begin_task(trainer, task)

    def consolidate(
        self, trainer: Trainer, pl_module: LightningModule, synapses: SynapseView, task: int
    ) -> bool:
        """Scores all tasks, acts if one has lost too much, and keeps weights and scores as the old ones."""
        self._take_strengths(trainer)
        if not self.scores.is_open:  # the task began before this callback was there
            self.scores.begin_task(trainer, task)
        scores = self.scores.score(trainer)
        self.scores.doubt(scores, task)
        self._summary = f"{self.name}: in doubt, nothing is guarded" if self.scores.in_doubt else None
        new = trained(synapses, synapses["old"], trainer.optimizers)
        if self.scores.old:
            tolerated = ToleratedLoss(self.scores.old, float(self.tolerance), self.mode == "max")
            scores = self._act(trainer, pl_module, synapses, task, tolerated, scores)
        self.commit()
        with torch.no_grad():
            torch._foreach_add_(synapses["total"], new)
            for old, present in zip(synapses["old"], synapses.parameters, strict=True):
                old.copy_(present)
        self._statistics.keep(pl_module)
        self.scores.end_task(scores)
        return True

    @property
    def learned(self) -> dict[int, float]:
        """Score of each task when it was learned, by its loader."""
        return self.scores.learned

    def task_summary(self, task: int) -> str | None:
        """What the guard has found and done."""
        return self._summary

    # -- what it does ------------------------------------------------------------------------------

    def _act(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        synapses: SynapseView,
        task: int,
        tolerated: ToleratedLoss,
        scores: list[float],
    ) -> list[float]:
        """Does what is due, and returns the scores afterwards."""
        worst, lost = tolerated.worst(scores)
        excess, after, found = tolerated.excess(scores), lost, {"validations": 1.0, "share": 0.0}
        what = f"{self.name}: {self.monitor} of loader {worst} has fallen most, by {lost:.3g}"
        if self.mode == "min":
            what = what.replace("fallen", "risen")
        if excess <= 0:
            what += f", within {self.tolerance:g}"
        elif self.action == "interpolate":
            scores, found = self._interpolate(trainer, pl_module, synapses, tolerated, scores)
            after = tolerated.worst(scores)[1]
            share, validations = found["share"], found["validations"]
            what += f"; drawn back by {share:.3g}, to {after:.3g} ({validations:.0f} validations)"
            self._warn_if_none_held(task, tolerated, scores, found)
        elif self.action == "strengthen":
            found |= self._strengthen(trainer)
            what += f"; for the tasks to come strengths are multiplied by {self.factor:g}, this one stays"
        else:
            self._stop(trainer, what, task)
            what += "; training is stopped"
        found |= {"lost": lost, "lost_after": after}
        self._summary = what
        self.decisions = [*self.decisions, {"task": float(task), "loader": float(worst), **found}]
        log(trainer, {log_keys.guard(key): value for key, value in found.items()})
        return scores

    def _interpolate(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        synapses: SynapseView,
        tolerated: ToleratedLoss,
        scores: list[float],
    ) -> tuple[list[float], dict[str, float]]:
        """Draws the weights back by the least share that holds; on an exception they stay as they were."""
        weights = OldWeights(pl_module, synapses, self._statistics)
        scored = {0.0: scores}

        def excess(share: float) -> float:
            weights.put(share)
            scored[share] = self.scores.score(trainer)
            return tolerated.excess(scored[share])

        try:
            best = least_share(excess, tolerated.excess(scores), self.validations - 1)[0]
        except BaseException:
            weights.put(0.0)
            raise
        self.commit()
        weights.put(best.share)
        if best.share:
            have_others_follow(self, trainer, weights.moved())
        return scored[best.share], {"share": best.share, "validations": float(len(scored))}

    def _warn_if_none_held(
        self, task: int, tolerated: ToleratedLoss, scores: list[float], found: Mapping[str, float]
    ) -> None:
        worst, lost = tolerated.worst(scores)
        if tolerated.excess(scores) > 0:
            rank_zero_warn(
                f"{type(self).__name__}: at the end of task {task} no share of the old weights that was "
                f"tried keeps {self.monitor} of every old task within {self.tolerance:g}; at "
                f"{found['share']:g}, which loses least, loader {worst} has lost {lost:.3g}. "
                f"Are tasks scored on the same data each time, and do `parameters` and `exclude` select all "
                f"weights that they use?"
            )

    def _strengthen(self, trainer: Trainer) -> dict[str, float]:
        rules = rules_to_strengthen(trainer, self.rules, type(self).__name__)
        self.strengths = {name: s * self.factor for name, s in strengths_of(rules).items()}
        set_strengths(rules, self.strengths)
        return {f"strength/{name}": strength for name, strength in self.strengths.items()}

    def _stop(self, trainer: Trainer, what: str, task: int) -> None:
        self.stopped = trainer.should_stop = True
        rank_zero_warn(
            f"{what}, at the end of task {task}, and {self.tolerance:g} is tolerated, so the training is "
            f"stopped. The weights are those that training has ended with."
        )

    def _take_strengths(self, trainer: Trainer) -> None:
        """Sets the strengths that were restored, else notes the present ones."""
        if self.action == "strengthen":
            rules = rules_to_strengthen(trainer, self.rules, type(self).__name__)
            if self._restored and self.strengths.keys() == rules.keys():
                set_strengths(rules, self.strengths)
            else:
                self.strengths = strengths_of(rules)
        self._restored = False

    def _keeps_statistics(self, name: str) -> bool:
        return wants_name(name, self.parameters, self.exclude)

    def measures(self, synapses: SynapseView, rates: list[float]) -> dict[str, list[Tensor]]:
        """Distance from the weights at the last boundary, once there was one."""
        return {"distance": distances(synapses.parameters, synapses["old"])} if self.tasks else {}

    # -- checkpoints -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The rule's state, with scores, and the statistics of BatchNorm at the last boundary."""
        return super().state_dict() | {
            "scores": self.scores.state_dict(),
            "statistics": self._statistics.state_dict(),
        }

    def restore(self, state_dict: dict[str, Any]) -> None:
        """Sets the state from a saved one."""
        super().restore(state_dict)
        self.scores.load_state_dict(state_dict["scores"])
        self._statistics.load_state_dict(state_dict["statistics"])
        self._restored = True
