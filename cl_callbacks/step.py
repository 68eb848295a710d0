"""One optimizer step, seen once by all rules.

Just before the optimizer steps, the gradients are those of the task alone: unscaled, averaged over
processes, not yet clipped. There every snapshot that some rule needs is taken, once, and then the rules
pull. When the optimizer has really stepped, rules may rewrite the update that it made, one after the other,
and then all observe what happened. A rule that owns the update puts another in its place, and so comes
first. A step that is skipped (an overflow under mixed precision) leaves no trace, because torch calls
the hook of a step only if there is one; accumulated, manual and alternating steps come out right for the
same reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import Optimizer

from cl_callbacks.flat import flat_zeros
from cl_callbacks.functional.averaging import zero_nonfinite_
from cl_callbacks.shards import held
from cl_callbacks.synapses import Synapses, SynapseView
from cl_callbacks.weight_noise import WeightNoise

Need = Literal["gradient", "noise", "pulled", "before", "undo"]
"""What a rule may need of a step: see the attributes of :class:`Step`."""


@dataclass(frozen=True)
class Step:
    """What one optimizer step did to the synapses of one rule.

    The lists are aligned with ``synapses.parameters`` and shared by all rules: read them, or copy them.
    Gradients and updates are always finite: what is not, counts as 0, as if the synapse had met nothing. The
    weights themselves may be lost.

    Attributes:
        synapses: the synapses that stepped; ``synapses.parameters`` are the weights after the step.
        gradients: the task's gradient at the weights before, without any pull or clipping (given to
            rules that need ``"gradient"``, else empty).
        noise_gradients: the task's gradient times the noise of the weights that it was taken at, mean
            over the draws (``"noise"``; zero without noise).
        pulled: the gradient with the pulls of all rules, not clipped (``"pulled"``).
        before: weights before the step (``"before"``; there while rules rewrite, not while they observe).
        undo: weights before minus weights after: the realised update, whatever the optimizer, with its
            sign turned (``"undo"``; there while rules observe, not while they rewrite).
        optimizer: which stepped.
        groups: index of the optimizer's parameter group of each synapse.
    """

    synapses: SynapseView
    gradients: list[Tensor]
    noise_gradients: list[Tensor]
    pulled: list[Tensor]
    before: list[Tensor]
    undo: list[Tensor]
    optimizer: Optimizer
    groups: list[int]

    def option(self, name: str, default: float = math.nan) -> list[float]:
        """An option of each synapse's parameter group, such as ``"lr"``, as the step used it."""
        values = [float(group.get(name, default)) for group in self.optimizer.param_groups]
        return [values[group] for group in self.groups]


class Rule(Protocol):
    """What a step asks of a rule."""

    needs: frozenset[Need]
    synapses: Synapses

    @property
    def owns_update(self) -> bool:
        """Whether the rule puts an update of its own in the place of the optimizer's."""

    @property
    def noise(self) -> WeightNoise | None:
        """Of a rule that has the network seen at drawn weights."""

    def pull(self, synapses: SynapseView, gradients: list[Tensor]) -> None:
        """Adds the rule's gradient to the task's, in place; the state is only read."""

    def rewrite(self, step: Step) -> None:
        """Changes the weights that the optimizer left, in place."""

    def observe(self, step: Step) -> None:
        """Reads a step that was really taken."""


class _Plan:
    """Which rule meets which of the parameters that step together; reused while these stay the same."""

    def __init__(
        self,
        rules: Sequence[Rule],
        optimizer: Optimizer,
        parameters: list[Tensor],
        buffers: dict[Need, _Buffers],
    ) -> None:
        self.parameters = parameters  # kept, so that no other parameter can take one's identity
        self.members: list[tuple[Rule, Step]] = []
        self.noise: WeightNoise | None = None
        self._snapshots: dict[Need, dict[Tensor, Tensor]] = {kind: {} for kind in get_args(Need)}
        self._flat: dict[Need, list[Tensor]] = {kind: [] for kind in get_args(Need)}
        group_of = {p: i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        for rule in rules:
            view = rule.synapses.view.among(parameters)
            if not len(view):
                continue
            lists: dict[Need, list[Tensor]] = {kind: [] for kind in get_args(Need)}
            for kind in rule.needs:
                # One buffer holds the weights before while rules rewrite, and then becomes the undo.
                flats, lists[kind] = buffers["before" if kind == "undo" else kind].beside(view.sources)
                self._snapshots[kind].update(zip(view.sources, lists[kind], strict=True))
                self._flat[kind] = list(dict.fromkeys([*self._flat[kind], *flats]))
            step = Step(
                synapses=view,
                gradients=lists["gradient"],
                noise_gradients=lists["noise"],
                pulled=lists["pulled"],
                before=lists["before"],
                undo=lists["undo"],
                optimizer=optimizer,
                groups=[group_of[p] for p in view.sources],
            )
            self.members.append((rule, step))
            self.noise = rule.noise or self.noise
        owners_first = sorted(self.members, key=lambda member: not member[0].owns_update)
        self._pulls = [(_at_hand(rule, rule.pull, changing=False), step) for rule, step in self.members]
        self._rewrites = [(_at_hand(rule, rule.rewrite), step) for rule, step in owners_first]
        self._observes = [(_at_hand(rule, rule.observe), step) for rule, step in self.members]

    def capture(self) -> None:
        gradients, noise = self._snapshots["gradient"], self._snapshots["noise"]
        weights = self._snapshots["before"] | self._snapshots["undo"]
        if gradients or weights:  # in one pass
            sources = _gradients(gradients) + _held(weights)
            torch._foreach_copy_([*gradients.values(), *weights.values()], sources)
            zero_nonfinite_(self._flat["gradient"])
        if noise and self.noise is not None:
            torch._foreach_copy_(list(noise.values()), self.noise.take(list(noise)))
            zero_nonfinite_(self._flat["noise"])

    def pull(self) -> None:
        for pull, step in self._pulls:
            pull(step.synapses, _gradients(step.synapses.sources))
        pulled = self._snapshots["pulled"]
        if pulled:
            torch._foreach_copy_(list(pulled.values()), _gradients(pulled))
            zero_nonfinite_(self._flat["pulled"])

    def finish(self) -> None:
        for rewrite, step in self._rewrites:
            rewrite(step)
        undo = self._snapshots["undo"]
        if undo:
            torch._foreach_sub_(list(undo.values()), _held(undo))
            zero_nonfinite_(self._flat["undo"])
        for observe, step in self._observes:
            observe(step)


def _at_hand(rule: Rule, verb: Callable[..., None], changing: bool = True) -> Callable[..., None]:
    """A verb that finds the rule's state beside the parameters; where that is anyway, the verb itself."""
    if rule.synapses.offload is None:
        return verb

    def call(*arguments: Any) -> None:
        with rule.synapses.at_hand(changing):
            verb(*arguments)

    return call


class _Buffers:
    """Tensors beside parameters, in a few flat ones."""

    def __init__(self) -> None:
        self._found: dict[Tensor, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self._found)

    def beside(self, parameters: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The flat tensors, and in them one for each parameter."""
        new = [p for p in parameters if p not in self._found]
        flats, views = flat_zeros([held(p.detach()) for p in new])
        home = {(flat.device, flat.dtype): flat for flat in flats}
        self._found |= {p: (home[v.device, v.dtype], v) for p, v in zip(new, views, strict=True)}
        pairs = [self._found[p] for p in parameters]
        return [flat for flat, _ in pairs], [view for _, view in pairs]


class SynapticStep:
    """The one view of the optimizers' steps that all rules of a Trainer share.

    Args:
        rules: in the order in which they pull, rewrite and observe (a rule that owns the update rewrites
            first).
        place: lays the rules' state out anew; called when parameters step together for the first time,
            which is when heads have grown or layers were unfrozen.

    Example:
        >>> from types import SimpleNamespace
        >>> synapses, weight = Synapses({}), torch.nn.Parameter(torch.ones(1))
        >>> _ = synapses.place({"weight": weight}, ["weight"])
        >>> decay = SimpleNamespace(
        ...     synapses=synapses, needs=frozenset(), noise=None, owns_update=False, rewrite=id, observe=id,
        ...     pull=lambda view, gradients: torch._foreach_add_(gradients, view.parameters))
        >>> optimizer, step = torch.optim.SGD([weight], lr=0.5), SynapticStep([decay])
        >>> weight.grad = torch.zeros(1)
        >>> step.about_to_step(optimizer); weight.grad
        tensor([1.])
    """

    def __init__(self, rules: Sequence[Rule], place: Callable[[], None] = lambda: None) -> None:
        self.rules, self._place = rules, place
        self._handles: list[Any] = []
        self._pending: dict[Optimizer, _Plan] = {}
        # Of optimizers that are within a step: calls of `step` (a subclass calls its parent's), closures.
        self._depth: dict[Optimizer, int] = {}
        self._evaluated: dict[Optimizer, int] = {}
        self.refresh()

    def refresh(self) -> None:
        """Forgets how rules and parameters meet, after either has changed."""
        self._plans: dict[tuple[int, ...], _Plan] = {}
        self._buffers: dict[Need, _Buffers] = {kind: _Buffers() for kind in get_args(Need)}

    @property
    def is_new(self) -> bool:
        """Whether nothing has stepped since rules or parameters have changed."""
        return not self._plans

    def attach(self, optimizers: Iterable[Optimizer]) -> None:
        """Asks the optimizers to tell when they step and when they have stepped."""
        for optimizer in optimizers:
            self._handles.append(optimizer.register_step_pre_hook(self._stepping))
            self._handles.append(optimizer.register_step_post_hook(self._stepped))

    def detach(self) -> None:
        """Leaves the optimizers as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._pending.clear()
        self.forget_broken_steps()
        self.refresh()

    def forget_broken_steps(self) -> None:
        """Between batches no step is under way, but one may have raised an error that somebody caught."""
        self._depth.clear()
        self._evaluated.clear()

    def about_to_step(self, optimizer: Optimizer) -> None:
        """Takes the snapshots, then lets every rule pull; gradients must be final but for clipping."""
        if optimizer in self._evaluated:
            self._evaluated[optimizer] += 1
            _refuse_several_closures(optimizer, self._evaluated[optimizer])
        stepping = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        for rule in self.rules:
            if rule.noise is not None:
                rule.noise.pause(stepping)
        key = (id(optimizer), *map(id, _held(stepping)))
        plan = self._plans.get(key)
        if plan is None:
            _refuse_sparse(stepping)
            self._place()
            if len(self._plans) >= 32:  # heads that come and go: bounded, and cheap to build again
                self._plans.clear()
            plan = self._plans[key] = _Plan(self.rules, optimizer, stepping, self._buffers)
        with torch.no_grad():
            plan.capture()
            plan.pull()
        self._pending[optimizer] = plan

    def _stepping(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth[optimizer] = self._depth.get(optimizer, 0) + 1
        self._evaluated.setdefault(optimizer, 0)

    def _stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth[optimizer] -= 1
        if self._depth[optimizer]:
            return  # the step of a subclass goes on when its parent's is over
        del self._depth[optimizer], self._evaluated[optimizer]
        plan = self._pending.pop(optimizer, None)
        if plan is not None:
            with torch.no_grad():
                plan.finish()


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    # A plan holds no parameter without one.
    return [held(p.grad) for p in parameters if p.grad is not None]


def _held(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [held(p) for p in parameters]


def _refuse_sparse(parameters: list[Tensor]) -> None:
    if any(p.grad is not None and p.grad.is_sparse for p in parameters):
        raise ValueError(
            "A parameter has a sparse gradient, which the synaptic rules cannot read: build its "
            "nn.Embedding with sparse=False, or keep it out of the optimizer."
        )


def _refuse_several_closures(optimizer: Optimizer, evaluated: int) -> None:
    if evaluated > 1:
        raise MisconfigurationException(
            f"{type(optimizer).__name__} evaluates the loss several times within one step, at weights other "
            f"than those it steps from, which a pull on the gradient cannot follow: use a first-order "
            f"optimizer that calls its closure once."
        )
