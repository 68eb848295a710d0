"""The hooks on the optimizers' steps that all rules of a Trainer share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_args

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer

from cl_callbacks.guards.few import few
from cl_callbacks.guards.parameters import SPARSE_GRADIENT
from cl_callbacks.synapses.pull_scale import PullScale
from cl_callbacks.synapses.step import Need, Rule
from cl_callbacks.synapses.step_plan import Buffers, Plan
from cl_callbacks.tensors.shards import held


class SynapticStep:
    """Runs all rules of a Trainer before and after each step of its optimizers.

    Args:
        rules: in the order in which they pull, rewrite and observe (a rule that owns the update rewrites
            first).
        place: matches the rules' state to the parameters; called when parameters step together for the first
            time, as after heads have grown or layers were unfrozen.
        compiled: whether to compile the rules' operations; see
            :class:`~cl_callbacks.rules.compile_rules.CompileRules`.

    Example:
        >>> from types import SimpleNamespace
        >>> from cl_callbacks.synapses.state import Synapses
        >>> synapses, weight = Synapses({}), torch.nn.Parameter(torch.ones(1))
        >>> _ = synapses.place({"weight": weight}, ["weight"])
        >>> decay = SimpleNamespace(
        ...     synapses=synapses, needs=frozenset(), noise=None, owns_update=False, local=True,
        ...     rewrite=id, observe=id, end_step=id,
        ...     pull=lambda view, gradients: torch._foreach_add_(gradients, view.parameters))
        >>> optimizer, step = torch.optim.SGD([weight], lr=0.5), SynapticStep([decay])
        >>> weight.grad = torch.zeros(1)
        >>> step.about_to_step(optimizer); weight.grad
        tensor([1.])
    """

    def __init__(
        self, rules: Sequence[Rule], place: Callable[[], None] = lambda: None, compiled: bool = False
    ) -> None:
        self.rules, self._place, self._compiled = rules, place, compiled
        self.scale: PullScale | None = None
        """Measures the steps to come; ``None`` for steps that are not measured."""
        self._handles: list[Any] = []
        self._pending: dict[Optimizer, Plan] = {}
        # For optimizers within a step: nested calls of `step` (a subclass calls its parent's), closure calls.
        self._depth: dict[Optimizer, int] = {}
        self._evaluated: dict[Optimizer, int] = {}
        self.refresh()

    def refresh(self) -> None:
        """Discards the plans and buffers, after rules or parameters have changed."""
        self._plans: dict[tuple[int, ...], Plan] = {}
        self._buffers: dict[Need, Buffers] = {kind: Buffers() for kind in get_args(Need)}

    @property
    def is_new(self) -> bool:
        """Whether no optimizer has stepped since the last :meth:`refresh`."""
        return not self._plans

    def attach(self, optimizers: Iterable[Optimizer]) -> None:
        """Registers hooks that run before and after each optimizer's step."""
        for optimizer in optimizers:
            self._handles.append(optimizer.register_step_pre_hook(self._stepping))
            self._handles.append(optimizer.register_step_post_hook(self._stepped))

    def detach(self) -> None:
        """Removes the hooks from the optimizers."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._pending.clear()
        self.forget_broken_steps()
        self.refresh()

    def forget_broken_steps(self) -> None:
        """Forgets steps that ended with a caught exception; call it between batches, when none is running."""
        self._depth.clear()
        self._evaluated.clear()

    def about_to_step(self, optimizer: Optimizer) -> None:
        """Takes the snapshots, then lets every rule pull; gradients must be final, except for clipping."""
        if optimizer in self._evaluated:
            self._evaluated[optimizer] += 1
            _refuse_several_closures(optimizer, self._evaluated[optimizer])
        stepping = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        for rule in self.rules:
            if rule.noise is not None:
                rule.noise.pause(stepping)
        key = (id(optimizer), *(id(held(p)) for p in stepping))
        plan = self._plans.get(key)
        if plan is None:
            self._place()
            _refuse_sparse(self.rules)
            if len(self._plans) >= 32:  # heads that alternate: bounded, and cheap to build again
                self._plans.clear()
            plan = self._plans[key] = Plan(self.rules, optimizer, stepping, self._buffers, self._compiled)
        with torch.no_grad():
            plan.before_step(self.scale)
        self._pending[optimizer] = plan

    def _stepping(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth[optimizer] = self._depth.get(optimizer, 0) + 1
        self._evaluated.setdefault(optimizer, 0)

    def _stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth[optimizer] -= 1
        if self._depth[optimizer]:
            return  # the step of a subclass is not over when its parent's is
        del self._depth[optimizer], self._evaluated[optimizer]
        plan = self._pending.pop(optimizer, None)
        if plan is not None:
            with torch.no_grad():
                plan.after_step(self.scale)


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


def _refuse_several_closures(optimizer: Optimizer, evaluated: int) -> None:
    if evaluated > 1:
        raise MisconfigurationException(
            f"{type(optimizer).__name__} evaluates the loss several times within one step, at weights other "
            f"than those it steps from, which a pull on the gradient cannot follow: use a first-order "
            f"optimizer that calls its closure once."
        )
