"""What a rule declares of itself, and the methods by which it acts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from cl_callbacks.guards.bounds import Bounds
from cl_callbacks.guards.signatures import declare_arguments
from cl_callbacks.guards.sound_state import COUNT, OF_WEIGHTS
from cl_callbacks.rules.rule_scale import ActsOn, RuleScale, scaled
from cl_callbacks.synapses.state import Fill, Synapses
from cl_callbacks.synapses.step import Need, Step
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.synapses.weight_noise import WeightNoise

# Methods that are called block by block if a rule is local.
_PER_WEIGHT_METHODS = {"pull", "rewrite", "observe", "effective_importance", "replace_update", "plasticity"}


class DeclaredRule:
    """What every rule declares and may override; :class:`~cl_callbacks.SynapticCallback` has it called.

    Attributes:
        synapses: the state of the rule's synapses.
        name: its name, in log keys and checkpoints.
        tasks: number of tasks that it has consolidated.
        rule_scale: how strong it is beside the task's gradient, or beside the optimizer's update.
    """

    synapses: Synapses
    name: str
    tasks: int
    rule_scale: RuleScale

    fields: Mapping[str, Fill] = {}
    needs: frozenset[Need] = frozenset()
    accumulated: ClassVar[tuple[str, ...]] = ()
    """Fields that grow within a task, such as SI's path; rewound if the end of a task is detected late."""
    follows: ClassVar[tuple[str, ...]] = ()
    """Fields that are places on the way of training, such as SI's start of the task: they move along if the
    weights are moved at the end of a task."""
    moves_weights: ClassVar[bool] = False
    """Whether the rule moves weights at the end of a task; it then comes before all others there."""
    corrects_weights: ClassVar[bool] = False
    """Whether the rule moves weights after all that move them, and before all others."""
    free_values: ClassVar[bool] = True
    """Whether weights may have any value between steps; those of Cascade have one of two."""
    running: tuple[str, ...] = ()
    """Fields that change by small amounts in every step, which half precision would round away."""
    owns_update: ClassVar[bool] = False
    """Whether the rule replaces the optimizer's update by its own."""
    shardable: ClassVar[bool] = False
    """Whether the rule can work on shards of parameters."""
    reads_task_data: ClassVar[bool] = False
    """Whether :meth:`consolidate` reads the task's data again: boundaries that find the end of a task late
    keep its most recent batches only for rules and callbacks that do."""
    local: ClassVar[bool] = False
    """Whether :meth:`pull`, :meth:`rewrite` and :meth:`observe` may be called for one block of synapses after
    another, so that each stays in the cache: true of equations that are local to each weight. Beside a
    rule that is not, all rules of the Trainer are called for all synapses at once, which is slower."""
    matrices_only: ClassVar[bool] = False
    """Whether one-dimensional parameters (biases, normalisation) are left out if ``parameters`` is empty."""
    holds_weights: ClassVar[bool] = True
    """Whether the rule protects what was learned by holding weights, so that one such rule is enough."""
    renews: ClassVar[bool] = False
    """Whether the rule keeps the ability to learn, and not what was learned."""
    default_state_dtype: ClassVar[str | None] = None
    """Name of the default ``state_dtype``; ``None`` for float32, or the parameter's dtype if wider."""
    weight_noise: WeightNoise | None = None
    """The weight noise of a rule that trains at sampled weights; ``None`` for other rules."""
    saved: ClassVar[tuple[str, ...]] = ()
    """Attributes that a checkpoint contains besides the fields: numbers, or dicts of them."""
    state_bounds: Mapping[str, Bounds] = {"synapses": OF_WEIGHTS, "tasks": COUNT, "next_task": COUNT}
    """What numbers a saved state may hold, by path, such as ``"synapses/importance"`` for a field."""
    unsaved_before: ClassVar[Mapping[str, Any]] = {"next_task": 0}
    """Values of what older checkpoints do not contain."""
    dial: str = "strength"
    """The argument that sets how strong the rule is, which advice names; of a rule that owns the update, the
    standard deviation that sets how far it lets weights move."""
    proximal: bool = False
    """Whether a rule with both a :meth:`pull` and a :meth:`rewrite` acts by the second."""

    def __init_subclass__(cls, **options: Any) -> None:
        """A subclass that overrides a per-weight method must set ``local`` itself."""
        super().__init_subclass__(**options)
        declare_arguments(cls)
        for kind in cls.__mro__:  # including mixins
            if "local" in vars(kind):
                return
            if not _PER_WEIGHT_METHODS.isdisjoint(vars(kind)):
                cls.local = False
                return

    def begin_step(self) -> None:
        """Begins a step, before any rule pulls; the step may still be skipped, as after an overflow."""

    def pull(self, synapses: SynapseView, gradients: list[Tensor]) -> None:
        """Adds the rule's gradient to those of the synapses about to step, in place; only reads the state.

        ``gradients`` include the pulls of the rules before it in the list, and may be NaN or infinite: the
        task's own gradient, finite, is ``step.gradients`` in :meth:`observe`.
        """

    def rewrite(self, step: Step) -> None:
        """Changes the realised update, by changing the weights in place.

        Rules are called in list order, after the one that owns the update, if any.
        """

    def observe(self, step: Step) -> None:
        """Updates the state from a completed optimizer step, after all rules have rewritten it."""

    def end_step(self, synapses: SynapseView) -> None:
        """Ends a step, such as by counting it: called once for all synapses that have stepped."""

    def consolidate(
        self, trainer: Trainer, pl_module: LightningModule, synapses: SynapseView, task: int
    ) -> bool:
        """Updates the state at the end of a task, and returns whether anything was consolidated."""
        return False

    def measure_ahead(
        self, trainer: Trainer, pl_module: LightningModule, task: int
    ) -> dict[str, Tensor] | None:
        """Importance of each weight for the task that ends, by name, which :meth:`consolidate` then uses.

        For a rule that moves weights by it: it is of the weights that training has ended with. ``None``,
        after a warning, if there is none. Rules that measure no such importance do not override it.
        """
        return None

    def follow(self, moved: Mapping[Tensor, Tensor]) -> None:
        """Moves the fields in ``follows`` by as much as the weights were, given by parameter."""
        with torch.no_grad(), self.synapses.on_device():
            view = self.synapses.view.restrict_to(list(moved))
            for field in self.follows if len(view) else ():
                torch._foreach_add_(view[field], [moved[p] for p in view.sources])

    def forget_synapses(self, parameter: Tensor, dim: int, index: Tensor) -> None:
        """Gives some rows (``dim`` 0) or columns (1) of a weight, now replaced, the state of new ones."""
        self.synapses.forget(parameter, dim, index)

    def penalty(self, synapses: SynapseView) -> Tensor | None:
        """Scalar penalty whose gradient :meth:`pull` adds, for the log; ``None`` if there is none."""
        return None

    def plasticity(self, synapses: SynapseView, rates: list[float]) -> list[Tensor] | None:
        """Share of an update that the rule lets each synapse take, from 0 to 1; ``None`` for all of it.

        The ``rates`` are the learning rate of each tensor.
        """
        return None

    def measures(self, synapses: SynapseView, rates: list[float]) -> dict[str, list[Tensor]]:
        """Non-negative quantities of each synapse for logs and plots: by default its plasticity.

        The synapses may be any part of this rule's, such as those of one layer. For each measure the result
        has a list aligned with ``synapses.parameters``; read only, since it may be the live state.
        """
        plasticity = self.plasticity(synapses, rates)
        return {} if plasticity is None else {"plasticity": plasticity}

    @property
    def acts_on(self) -> ActsOn | None:
        """What the rule changes by a part: ``None`` if it owns the update, or neither pulls nor rewrites."""
        kind = type(self)
        if not self.proximal and kind.pull is not DeclaredRule.pull:
            return None if self.owns_update else "gradient"
        return None if self.owns_update or kind.rewrite is DeclaredRule.rewrite else "update"

    @property
    def consolidates(self) -> bool:
        """Whether the rule does something at the end of a task."""
        return type(self).consolidate is not DeclaredRule.consolidate

    @property
    def waits_for_a_task(self) -> bool:
        """Whether the rule remembers nothing before it has consolidated a task, and has consolidated none."""
        return self.consolidates and not self.tasks

    @property
    def has_memory(self) -> bool:
        """Whether the rule knows a network, or keeps nothing of any."""
        return self.synapses.known or not self.fields

    @property
    def strength_now(self) -> float | None:
        """Value of the argument that :attr:`dial` names; ``None`` without."""
        return getattr(self, self.dial, None)

    def advice(self, factor: float) -> str:
        """What to try for ``factor`` times the effect, as the end of a sentence."""
        # An update by its own equation is in proportion to the variance, and held by a small one.
        value = scaled(self.strength_now, factor**-0.5 if self.owns_update else factor)
        if value is None:
            return "try other arguments"
        return f"try {self.dial}={value} instead of {self.strength_now:g}"

    def task_summary(self, task: int) -> str | None:
        """How strong the rule was in the task, for the line at its end."""
        return self.rule_scale.summary(self)
