"""What all rules of a Trainer do before and after each step of its optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args
from weakref import ref

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer

from cl_callbacks.guards.few import few
from cl_callbacks.guards.parameters import SPARSE_GRADIENT
from cl_callbacks.synapses.optimizers import (
    closure_of,
    inner_optimizers,
    parameters_of,
    shares_parameters,
    with_closure,
    with_inner,
)
from cl_callbacks.synapses.pull_scale import PullScale
from cl_callbacks.synapses.step import Need, Rule
from cl_callbacks.synapses.step_hooks import Arguments, StepHooks
from cl_callbacks.synapses.step_plan import Buffers, Plan
from cl_callbacks.synapses.unheard_steps import UnheardSteps
from cl_callbacks.tensors.shards import held


class SynapticStep:
    """Runs all rules of a Trainer before and after each step of its optimizers.

    The pull is added once in each step, when the gradients are final: in :meth:`about_to_step`, which a
    Trainer calls before it clips them, or else when the step begins, or after its closure. If an optimizer
    wraps another, as sharpness-aware minimisation does, the pull is added in the step of the inner one, since
    the outer one may move weights or take other gradients before; the step is over with the outer one's.

    Args:
        rules: in the order in which they pull, rewrite and observe (a rule that owns the update rewrites
            first).
        place: matches the rules' state to the parameters; called when parameters step together for the first
            time, as after heads have grown or layers were unfrozen.
        compiled: whether to compile the rules' operations; see
            :class:`~cl_callbacks.rules.compile_rules.CompileRules`.
        begin: called before the pull of each step, with all optimizers whose gradients it may have to
            check, or none if :meth:`about_to_step` has announced it; returns what measures the step.
        check: called once with the optimizers attached, those that they wrap, and others that step the same
            parameters; raises an error for those that rules cannot work with.

    Example:
        >>> from types import SimpleNamespace
        >>> from cl_callbacks.synapses.state import Synapses
        >>> synapses, weight = Synapses({}), torch.nn.Parameter(torch.ones(1))
        >>> _ = synapses.place({"weight": weight}, ["weight"])
        >>> decay = SimpleNamespace(
        ...     synapses=synapses, needs=frozenset(), weight_noise=None, owns_update=False, local=True,
        ...     rewrite=id, observe=id, end_step=id,
        ...     pull=lambda view, gradients: torch._foreach_add_(gradients, view.parameters))
        >>> optimizer, step = torch.optim.SGD([weight], lr=0.5), SynapticStep([decay])
        >>> step.attach([optimizer])
        >>> weight.grad = torch.zeros(1)
        >>> optimizer.step(); weight.tolist()
        [0.5]
        >>> step.detach()
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        place: Callable[[], None] = lambda: None,
        compiled: bool = False,
        begin: Callable[[Sequence[Any]], PullScale | None] = lambda optimizers: None,
        check: Callable[[Sequence[Any]], None] = lambda optimizers: None,
    ) -> None:
        self.rules, self._place, self._compiled = rules, place, compiled
        self._begin, self._check = begin, check
        self.scale: PullScale | None = None
        """Measures the step that has begun; ``None`` for steps that are not measured."""
        self._hooks = StepHooks(self._stepping, self._stepped)
        self._running: list[_Running] = []
        self._announced: dict[int, Plan | None] = {}  # by id() of the optimizer, whose step is to begin
        self.refresh()

    def refresh(self) -> None:
        """Discards the plans and buffers, after rules or parameters have changed."""
        self._plans: dict[tuple[int, ...], Plan] = {}
        self._buffers: dict[Need, Buffers] = {kind: Buffers() for kind in get_args(Need)}
        self._known: dict[int, _Known] = {}  # by id() of the optimizer
        self._seen: set[int] = set()  # id() of each parameter of which a step was heard
        self._unheard: UnheardSteps | None = None

    @property
    def is_new(self) -> bool:
        """Whether no optimizer has stepped since the last :meth:`refresh`."""
        return not self._plans

    def attach(self, optimizers: Iterable[Optimizer]) -> None:
        """Begins to listen to the steps of optimizers, of those that they wrap and of all others of torch."""
        self._check(self._hooks.attach(optimizers))

    def detach(self) -> None:
        """Stops listening."""
        self._hooks.detach()
        self._running.clear()
        self._announced.clear()
        self.refresh()

    def start_batch(self, optimizers: Iterable[Optimizer] = ()) -> None:
        """Attaches to the optimizers if some are new, and forgets steps that a caught exception has ended."""
        self._running.clear()
        self._announced.clear()
        optimizers = list(optimizers)
        if not all(map(self._hooks.is_attached, optimizers)):
            self._hooks.detach()
            self.attach(optimizers)
        if self._unheard is None:
            self._unheard = UnheardSteps(self.rules)

    def end_batch(self) -> None:
        """Raises an error for weights that have changed unheard; to be called after optimizers step."""
        if self._unheard is not None:
            self._unheard.refuse(self._seen)

    def about_to_step(self, optimizer: Optimizer) -> None:
        """Takes the snapshots, then lets every rule pull; gradients must be final, except for clipping.

        Does nothing for an optimizer that wraps another one, whose step is awaited.
        """
        running = self._step_of(optimizer)
        if running is not None:
            self._gradients_are_final(running, announced=True)
        elif not self._know(optimizer).wraps:
            self._announced[id(optimizer)] = self._pull(optimizer, announced=True)

    def _stepping(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Arguments | None:
        if not self._know(optimizer).concerns:
            return None
        running = self._enter(optimizer)
        if running.plan is not None or self._know(optimizer).wraps:
            return None
        closure = closure_of(optimizer, args, kwargs)
        if closure is None:
            running.plan = self._pull(running.optimizer)
            return None

        def heard(*args: Any, **kwargs: Any) -> Any:
            plan = running.plan
            loss = closure(*args, **kwargs)
            if running.plan is plan:  # it did not announce the step, as the closures of Lightning do
                self._gradients_are_final(running)
            return loss

        return with_closure(heard, args, kwargs)

    def _stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        running = next((r for r in self._running if r.stack[-1] is optimizer), None)
        if running is None:
            return
        running.stack.pop()
        if running.stack:
            return  # the step of a subclass, or a wrapper, is not over when that within it is
        self._running.remove(running)
        if running.plan is not None:
            with torch.no_grad():
                running.plan.after_step(self.scale)
            if not running.plan.has_stepped:
                running.plan.has_stepped = True
                self._seen.update(map(id, running.plan.parameters))

    def _enter(self, optimizer: Optimizer) -> _Running:
        running = self._step_of(optimizer)
        if running is None:
            running = _Running([], self._announced.pop(id(optimizer), None))
            self._running.append(running)
        elif running.stack[-1] is not optimizer and not self._know(running.stack[-1]).wraps:
            _refuse_hidden(running, optimizer)
            self._know(running.stack[-1]).wraps = True
        running.stack.append(optimizer)
        return running

    def _step_of(self, optimizer: Optimizer) -> _Running | None:
        """The step that is running and that one of this optimizer is a part of."""
        return next((r for r in self._running if shares_parameters(r.stack[0], optimizer)), None)

    def _gradients_are_final(self, running: _Running, announced: bool = False) -> None:
        if running.plan is not None:
            _refuse_several_closures(running.stack[0])
        if not self._know(running.stack[-1]).wraps:
            running.plan = self._pull(running.optimizer, announced)

    def _pull(self, optimizer: Optimizer, announced: bool = False) -> Plan | None:
        self.scale = self._begin([] if announced else self._hooks.attached)
        stepping = [p for p in parameters_of(optimizer) if p.grad is not None]
        for rule in self.rules:
            if rule.weight_noise is not None:
                rule.weight_noise.pause(stepping)
        if not stepping:
            return None
        key = (id(optimizer), *(id(held(p)) for p in stepping))
        plan = self._plans.get(key)
        if plan is None:
            self._place()
            _refuse_sparse(self.rules)
            if len(self._plans) >= self._limit:  # heads that alternate: bounded, and cheap to build again
                self._plans.clear()
            plan = self._plans[key] = Plan(self.rules, optimizer, stepping, self._buffers, self._compiled)
        with torch.no_grad():
            plan.before_step(self.scale)
        return plan

    def _know(self, optimizer: Optimizer) -> _Known:
        known = self._known.get(id(optimizer))
        if known is None or known.optimizer() is not optimizer:
            known = self._meet(optimizer)
            if len(self._known) >= self._limit:
                self._known.clear()
            self._known[id(optimizer)] = known
        return known

    def _meet(self, optimizer: Optimizer) -> _Known:
        concerns = attached = self._hooks.is_attached(optimizer)
        if not attached:
            sources = {id(p) for rule in self.rules for p in rule.synapses.view.sources}
            concerns = any(id(p) in sources for p in parameters_of(optimizer))
        if concerns and not attached:
            self._check(with_inner([optimizer]))
            # Plans keep optimizers alive, and one that the Trainer does not know may be new in each batch.
            known = {id(each) for each in self._hooks.attached}
            self._plans = {key: plan for key, plan in self._plans.items() if key[0] in known}
        return _Known(ref(optimizer), concerns, bool(inner_optimizers(optimizer)))

    @property
    def _limit(self) -> int:
        """How many plans are kept, and how many optimizers known, of which there may ever be new ones."""
        return max(32, 4 * len(self._hooks.attached))


@dataclass
class _Known:
    """Whether an optimizer steps weights of the rules, and whether others step within its step."""

    optimizer: ref[Optimizer]
    concerns: bool
    wraps: bool


@dataclass(eq=False)
class _Running:
    """A step that has begun: the optimizers within it, outermost first, and the plan once it has pulled."""

    stack: list[Optimizer]
    plan: Plan | None

    @property
    def optimizer(self) -> Optimizer:
        """The innermost one that has all parameters of the step, and so their learning rates."""
        outermost, innermost = self.stack[0], self.stack[-1]
        if outermost is innermost:
            return outermost
        count = len(list(parameters_of(outermost)))
        return next(o for o in reversed(self.stack) if len(list(parameters_of(o))) == count)


def _refuse_sparse(rules: Iterable[Rule]) -> None:
    for rule in rules:
        # Also those of other optimizers, before the first of them steps.
        gradients = zip(rule.synapses.view.names, (p.grad for p in rule.synapses.view.sources), strict=True)
        names = [name for name, g in gradients if g is not None and g.layout is not torch.strided]
        if names:
            raise ValueError(
                f"{type(rule).__name__} reads dense gradients, and {few(names)} {SPARSE_GRADIENT}, or leave "
                f"it out with exclude."
            )


def _refuse_several_closures(optimizer: Optimizer) -> None:
    raise MisconfigurationException(
        f"{type(optimizer).__name__} evaluates the loss several times within one step, at weights other than "
        f"those it steps from, which a pull on the gradient cannot follow: use a first-order optimizer that "
        f"calls its closure once, or one that keeps another as an attribute and steps with that, as the "
        f"common forms of SAM do."
    )


def _refuse_hidden(running: _Running, optimizer: Optimizer) -> None:
    if running.plan is not None:
        outer = type(running.stack[-1]).__name__
        raise MisconfigurationException(
            f"{outer} steps {type(optimizer).__name__} within its own step, after the rules have added their "
            f"pull for {outer}: let {outer} keep it as an attribute, so that the pull can wait for its step."
        )
