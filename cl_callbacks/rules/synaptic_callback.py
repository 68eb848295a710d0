"""The base class of all rules, which connects them to Lightning's hooks."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from reprlib import recursive_repr
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from cl_callbacks.boundaries.fit_boundaries import ensure_boundaries
from cl_callbacks.boundaries.task_boundaries import boundaries_of
from cl_callbacks.boundaries.transaction import Revert
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import MAY_BE_EMPTY
from cl_callbacks.guards.few import few
from cl_callbacks.guards.saved_state import restore_atomically
from cl_callbacks.guards.signatures import call_text, refuse_unknown, snake_case
from cl_callbacks.guards.uninterrupted import uninterrupted
from cl_callbacks.rules.compatibility import (
    refuse_missing_device,
    refuse_optimizers,
    refuse_rounded_state,
    refuse_scaled_gradients,
    refuse_shards,
    refuse_strategy,
    refuse_two_owners,
    refuse_unknown_needs,
    warn_of_new_weights,
)
from cl_callbacks.rules.compile_rules import compiles
from cl_callbacks.rules.declared_rule import DeclaredRule
from cl_callbacks.rules.lost_memory import note_memory, warn_of_lost_memory
from cl_callbacks.rules.parameter_selection import ParameterSelection, patterns_of, stepped_by
from cl_callbacks.rules.rule_options import Patterns, state_device_of, state_dtype_of
from cl_callbacks.rules.rule_scale import RuleScale
from cl_callbacks.rules.scale_watch import ScaleWatch
from cl_callbacks.synapses.continuity import Continuity
from cl_callbacks.synapses.pull_scale import PullScale
from cl_callbacks.synapses.state import Synapses, parameters_by_name
from cl_callbacks.synapses.synaptic_step import SynapticStep
from cl_callbacks.tensors.devices import stacked
from cl_callbacks.tensors.shards import reshard
from cl_callbacks.training import log_keys
from cl_callbacks.training.fit_end import weights_may_change
from cl_callbacks.training.lightning_private import attached_trainer, is_stepping_batch, starts_processes
from cl_callbacks.training.log import is_due, log
from cl_callbacks.training.one_trainer import OfOneTrainer
from cl_callbacks.training.whole_step import WholeStep

_BESIDE_STATE = ("rule_scale", "seconds", "_continuity", "_before_task_end")
"""Attributes that the end of a task changes and that are not in checkpoints."""


class SynapticCallback(DeclaredRule, OfOneTrainer):
    """Base of every rule: hooks, parameter selection, checkpoints and logging.

    A rule declares the ``fields`` of state that each synapse has and what it ``needs`` of a step (see
    :class:`~cl_callbacks.synapses.step.Step`), and overrides any of ``pull``, ``rewrite``, ``observe``,
    ``end_step``, ``consolidate``, ``penalty``, ``plasticity`` and ``measures``: see
    :class:`~cl_callbacks.rules.declared_rule.DeclaredRule`.

    Args:
        parameters: regular expressions, searched in parameter names, of those to include; default: all
            that require a gradient.
        exclude: regular expressions of those to leave out.
        state_dtype: of the state, a ``torch.dtype`` or its name; default: float32, or the parameter's
            own dtype where that is wider (BennaFusi: float64). ``running`` fields are at least float32.
        state_device: on which the state is stored, such as ``"cpu"``, which saves the accelerator's memory
            and costs copies in each step; default: that of each parameter.
        strict: whether state of parameters that the model no longer has is an error.
        name: of this instance, in log keys and checkpoints; default: the class name in snake_case.
            Two rules of one class on the same parameters need different names.

    Raises:
        ValueError: an argument that cannot work, at construction.
        TypeError: an unknown argument; the message names the most similar known one.

    Example:
        >>> class WeightDecay(SynapticCallback):
        ...     def pull(self, synapses, gradients):
        ...         torch._foreach_add_(gradients, synapses.parameters, alpha=0.01)
        >>> WeightDecay(exclude="bias").state_key
        "WeightDecay{'name': 'weightdecay', 'parameters': (), 'exclude': ('bias',)}"
    """

    @checked(exclude=MAY_BE_EMPTY)
    def __init__(
        self,
        *,
        parameters: Patterns = None,
        exclude: Patterns = None,
        state_dtype: torch.dtype | str | None = None,
        state_device: str | torch.device | None = None,
        strict: bool = True,
        name: str | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        refuse_unknown(type(self), unknown)
        self.parameters = patterns_of("parameters", parameters)
        self.exclude = patterns_of("exclude", exclude)
        self.name = snake_case(type(self).__name__) if name is None else name
        # The default as version 0.1 wrote it, so that its checkpoints are found.
        self._name_in_key = type(self).__name__.lower() if name is None else name
        self.state_dtype = self.default_state_dtype if state_dtype is None else state_dtype
        self.state_device, self.strict = state_device, strict
        refuse_rounded_state(self, self.state_dtype)
        self.synapses = Synapses(
            self.fields, state_dtype_of(self.state_dtype), strict, state_device_of(state_device), self.running
        )
        self.tasks = 0
        """Number of tasks that the rule has consolidated."""
        self.next_task = 0
        """Number of the next task after those whose end the rule has heard of, in whatever Trainer."""
        self.seconds = 0.0
        """Duration of the last task's consolidation, in seconds; 0.0 if there was none."""
        self.rule_scale = RuleScale()
        """How strong the rule is beside the task's gradient, or beside the optimizer's update."""
        self._step: SynapticStep | None = None
        self._watch: ScaleWatch | None = None
        self._whole_step: WholeStep | None = None  # of the first rule
        self._continuity: Continuity = Continuity()
        self._task_begins = False
        self._committing: ExitStack | None = None
        self._evaluating = False
        self._checkpoint = ""  # the file that is being loaded
        self._before_task_end: dict[str, Any] | None = None

    @property
    def listening(self) -> SynapticStep | None:
        """What runs the rules of the Trainer in each step of its optimizers; ``None`` outside of training."""
        return self._step

    def commit(self) -> None:
        """Defers Ctrl-C until ``consolidate`` is done, which calls this before it changes the state."""
        if self._committing is not None:
            self._committing.enter_context(uninterrupted())

    # -- hooks -------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ends a fit that was broken off, and adds a boundary callback to the Trainer if it has none."""
        if self._step is not None and stage == "fit":  # of a fit that was broken off without a teardown
            self.teardown(trainer, pl_module, stage)
        self._evaluating = stage != "fit"
        if stage == "fit":
            refuse_strategy(self, trainer)
            ensure_boundaries(trainer)
            if starts_processes(trainer) and self.synapses.known:
                self.restore(self.state_dict())  # copies: the processes share what they got

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Places the state beside the parameters, and attaches to the optimizers: the first rule does all."""
        rules = [c for c in trainer.callbacks if isinstance(c, SynapticCallback)]  # type: ignore[attr-defined]
        if rules[0] is self:
            for rule in rules:
                refuse_missing_device(rule)
                refuse_unknown_needs(rule)
                warn_of_lost_memory(rule, pl_module)
            # An owner first: it may change the weights that others take as anchors, as Cascade does.
            for rule in sorted(rules, key=lambda rule: not rule.owns_update):
                rule._place(pl_module)
            memories = [rule for rule in rules if rule.holds_weights]
            pulling = [rule for rule in memories if type(rule).pull is not SynapticCallback.pull]
            one_owns = any(rule.owns_update for rule in memories)
            refuse_two_owners(rules, pulling if one_owns else [])
            watch = ScaleWatch(rules)

            def place() -> None:
                for rule in rules:
                    rule._place(pl_module, growing=True)
                    rule._compare_weights()

            whole_step = WholeStep(trainer)

            def begin(unannounced: Sequence[Any]) -> PullScale | None:
                whole_step.begin()
                refuse_scaled_gradients(trainer, unannounced)
                for rule in rules:
                    rule.begin_step()
                return watch.before_step(trainer)

            step = SynapticStep(rules, place, compiles(trainer), begin, partial(refuse_optimizers, trainer))
            for rule in rules:
                rule._step, rule._watch = step, watch
            self._whole_step = whole_step
            step.attach(trainer.optimizers)  # last: what it refuses, teardown detaches

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Adds parameters that a new task has unfrozen, for rules that set weights before the forward."""
        if self._whole_step is not None:
            self._whole_step.start_batch(batch_idx)
        if self._step is not None:
            self._step.start_batch(trainer.optimizers)
            if self.owns_update and self._step.is_new:
                self._place(pl_module, growing=True)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Takes snapshots and lets all rules pull, before a step of an optimizer; done by the first rule."""
        if self._step is not None and self._step.rules[0] is self:
            self._step.about_to_step(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the penalty and how strong the rules are, on steps that Lightning logs."""
        if self._step is not None and self._watch is not None and self._step.rules[0] is self:
            self._watch.end_batch(trainer, outputs)
            if is_stepping_batch(trainer):
                self._step.end_batch()
        if is_due(trainer):
            with self.synapses.on_device(changing=False):
                penalty = self.penalty(self.synapses.view)
            if penalty is not None:
                log(trainer, {log_keys.penalty(self.name): penalty.item()})

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Schedules a new placement of the state before the next step.

        By then the hooks of all callbacks have run, and may have unfrozen parameters or grown heads.
        """
        self._task_begins = True
        self._before_task_end = None  # the task before will not be consolidated anew
        if self._step is not None:
            self._step.refresh()
        if self._watch is not None:
            self._watch.start_task(self)

    def on_task_ending(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Keeps the state from before the end of a task that may be revised, or goes back to it."""
        self._place(pl_module)
        if self._before_task_end is not None:  # the task has ended before, at other weights
            scale = self.rule_scale
            self.restore(self._before_task_end)
            self.rule_scale = scale
            self._place(pl_module)
        elif self.consolidates and weights_may_change(trainer) and not boundaries_of(trainer).looking_back:
            self._before_task_end = copy.deepcopy(self.state_dict())

    def reversal(self) -> Revert:
        """Keeps a copy of the state, to which the rule goes back if the end of a task fails anywhere."""
        return self._reversal_to(self.state_dict(), self.restore)

    def _reversal_to(self, state: dict[str, Any], restore: Callable[[dict[str, Any]], None]) -> Revert:
        state = copy.deepcopy(state)
        more = {name: copy.copy(getattr(self, name)) for name in _BESIDE_STATE}

        def revert() -> None:
            restore(state)  # which places it beside the parameters when a training starts
            vars(self).update(more)

        return revert

    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Judges how strong the rule was, and consolidates the task, unless weights are not finite."""
        self._place(pl_module)
        if self._watch is not None:
            self._watch.end_task(trainer, self, task)
        self._consolidate(trainer, pl_module, task)

    def on_task_revised(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Consolidates the task anew, at the weights that the fit leaves, in place of those at its end."""
        if self._before_task_end is not None:
            self._consolidate(trainer, pl_module, task)

    def _consolidate(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        view, self.seconds = self.synapses.view, 0.0
        lost = stacked([p.isfinite().logical_not().sum() for p in view.parameters]).sum()
        if view.total(lost):  # the same on every process, or they would deadlock
            rank_zero_warn(
                f"{type(self).__name__}: the weights are not finite at the end of task {task}, so nothing "
                f"was consolidated and the earlier state is kept. Lower the learning rate or clip gradients."
            )
            self.next_task = max(self.next_task, task + 1)
        else:
            start = time.perf_counter()
            with ExitStack() as self._committing, self.synapses.on_device():
                if self.consolidate(trainer, pl_module, view, task):
                    self.tasks += 1
                self.next_task = max(self.next_task, task + 1)
            self._committing = None
            self.seconds = time.perf_counter() - start
            self._continuity.end(view)
        if self._step is not None:
            self._step.refresh()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that the module was trained with this rule."""
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            note_memory(self, pl_module)

    def on_state_returned(self, trainer: Trainer) -> None:
        """Notes the same in the process that has called a fit in processes of its own."""
        self.on_fit_end(trainer, trainer.lightning_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Detaches the rules from the optimizers."""
        if self._step is not None:
            self._step.detach()
        if self._whole_step is not None:
            self._whole_step.detach()
            self._whole_step = None
        self._step, self._watch, self._evaluating, self._before_task_end = None, None, False, None
        self.synapses.flush()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Detaches the rules from the optimizers also after an exception."""
        self.teardown(trainer, pl_module, "fit")

    # -- checkpoints -------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Key of this instance's state in a checkpoint, from its name and parameter patterns."""
        return self._generate_state_key(
            name=self._name_in_key, parameters=self.parameters, exclude=self.exclude
        )

    def state_dict(self) -> dict[str, Any]:
        """The rule's state, of tensors and numbers only, so that it loads with ``weights_only=True``."""
        numbers = {name: copy.copy(getattr(self, name)) for name in ("tasks", "next_task", *self.saved)}
        return {"synapses": self.synapses.state_dict()} | numbers

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a saved state, which ``on_train_start`` then places beside the model's parameters.

        Validation, test and prediction restore callbacks from their checkpoint too; a rule that has state
        already ignores these calls, since its own is newer.

        Raises:
            ValueError: a state that is not of this rule, which is then left unchanged.
        """
        if isinstance(state_dict, Mapping):
            state_dict = {**self.unsaved_before, **state_dict}
        known = self.synapses.known or self.next_task > 0
        if not (self._evaluating and known):
            restore_atomically(self, state_dict, self.state_bounds, self._checkpoint)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Notes which file the state to be loaded is from, for errors."""
        self._checkpoint = str(trainer.ckpt_path or "")

    def restore(self, state_dict: dict[str, Any]) -> None:
        """Sets the fields and the numbers from a saved state; extended by rules with more state."""
        self.rule_scale = RuleScale(fresh=False)
        self._continuity = Continuity(restored=True)
        self.synapses.load_state_dict(state_dict["synapses"], self._checkpoint)
        for name in ("tasks", "next_task", *self.saved):
            setattr(self, name, copy.copy(state_dict[name]))

    # -- boundaries that are found late ------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """Copies of the ``accumulated`` fields: ``{field: {name: tensor}}``."""
        return self.synapses.copies(self.accumulated)

    def rewound(self, snapshot: dict[str, Any]) -> AbstractContextManager[None]:
        """Within, the accumulated fields are as in the snapshot; later changes count for the next task."""
        return self.synapses.rewound(snapshot)

    # -- parameters --------------------------------------------------------------------------------

    def _place(self, pl_module: LightningModule, growing: bool = False) -> None:
        """Selects parameters and places the state beside them.

        With ``growing``, within a task, parameters that were selected before stay selected even if they do
        not require a gradient now: ``toggle_optimizer`` turns that off for a moment.
        """
        reshard(pl_module)
        model = parameters_by_name(pl_module, self.synapses.view)
        before = set(self.synapses.view.names) if growing else set()
        trainable = [name for name, p in model.items() if p.requires_grad or name in before]
        trainer = attached_trainer(pl_module)
        if self.owns_update and trainer is not None:
            trainable = stepped_by(trainer.optimizers, model, trainable)
        selection = ParameterSelection(
            type(self).__name__, self.parameters, self.exclude, self.matrices_only, self.owns_update
        )
        selected = selection.select(pl_module, model, trainable)
        refuse_shards(self, trainer, {name: model[name] for name in selected})
        known = self.synapses.names
        self.synapses.place(model, selected)
        if known and known.isdisjoint(model):  # without strict
            self._forget(sorted(known), list(model))

    def _forget(self, known: list[str], names: list[str]) -> None:
        """Counts no task after a state of other parameters than the model's was loaded, and says so."""
        rank_zero_warn(
            f"{type(self).__name__}(strict=False): none of the parameters of which there was state "
            f"({few(known)}) is in this model ({few(names)}), so nothing is remembered and no task is "
            f"counted. If they are the same under other names, rename those of the file."
        )
        self.tasks = 0
        self._continuity = Continuity()

    def _compare_weights(self) -> None:
        """Warns once if the state is that of weights which are not there any more, when a task begins."""
        if self._task_begins and self.fields:
            view = self.synapses.view
            anchor = next((field for field, fill in self.fields.items() if fill == "parameter"), None)
            warn_of_new_weights(self, self._continuity.begin(view, view.fields[anchor] if anchor else ()))
        self._task_begins = False

    @recursive_repr()
    def __repr__(self) -> str:
        """Constructor call with the arguments that are not defaults; with the number of consolidated tasks.

        Example:
            >>> from cl_callbacks import EWC
            >>> EWC(70.0, exclude="bias")
            EWC(strength=70.0, exclude=('bias',), tasks=0)
        """
        return call_text(self, {"tasks": self.tasks} if self.consolidates else {})
