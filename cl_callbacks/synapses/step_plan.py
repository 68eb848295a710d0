"""Runs the rules on the parameters of one optimizer step, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from cl_callbacks.compiled.fused import compiling, is_compiling
from cl_callbacks.synapses.pull_scale import PullScale
from cl_callbacks.synapses.step import Need, Rule, Step
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.synapses.visit import Visit
from cl_callbacks.synapses.weight_noise import WeightNoise
from cl_callbacks.tensors.blocks import ALL, ELEMENTS_IF_COMPILED, Rows, in_blocks, rows_of, spans
from cl_callbacks.tensors.finite import copy_each_, copy_finite_, turn_into_update_, zero_nonfinite_
from cl_callbacks.tensors.flat import flat_zeros
from cl_callbacks.tensors.shards import held


class Plan:
    """Assigns the parameters that step together to the rules; reused while both stay the same.

    If all rules are local, the parameters are processed in blocks, one after the other, before the step and
    again after it; else all of them at once.

    The parameters are those of the optimizer that have a gradient; the buffers are memory for each kind of
    snapshot; rules and ``compiled`` are as in :class:`~cl_callbacks.synapses.synaptic_step.SynapticStep`.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        optimizer: Optimizer,
        parameters: list[Tensor],
        buffers: Mapping[Need, Buffers],
        compiled: bool = False,
    ) -> None:
        self.compiled = compiled
        self.parameters = parameters  # kept alive, so that no other parameter can get the same id()
        self.has_stepped = False
        views = [(rule, rule.synapses.view.restrict_to(parameters)) for rule in rules]
        self._met = [(rule, view) for rule, view in views if len(view)]
        self._noise = next(
            (rule.weight_noise for rule, _ in self._met if rule.weight_noise is not None), None
        )
        known = {p for _, view in self._met for p in view.sources}
        stepping = [p for p in parameters if p in known]
        local = all(rule.local for rule, _ in self._met)
        found = (rule.synapses.offload for rule, _ in self._met)
        self._offloads = [offload for offload in found if offload is not None]
        offloaded = min(filter(None, (o.block_elements(stepping) for o in self._offloads)), default=None)
        elements = ELEMENTS_IF_COMPILED if compiled else offloaded
        parts = in_blocks(stepping, elements) if local else [dict.fromkeys(stepping, ALL)]
        group_index = {p: i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        met = [rule for rule, _ in self._met]
        self.blocks = [_Block(met, optimizer, group_index, part, buffers) for part in parts]

    def before_step(self, scale: PullScale | None = None) -> None:
        """Takes the snapshots, then lets every rule add its pull to the gradients; ``scale`` measures it."""
        if self._noise is not None:
            self._noise.reduce_gathered()
        for offload in self._offloads:
            offload.begin_step()
        for block in self.blocks:
            gradients = block.gradients()
            if scale is not None:
                scale.before_pulls(block.part, gradients)
            with compiling(self.compiled):
                block.capture(gradients, self._noise)
                block.pull(gradients, scale)

    def after_step(self, scale: PullScale | None = None) -> None:
        """Lets every rule rewrite the update, which ``scale`` measures, observe the step and end it."""
        for block in self.blocks:
            with compiling(self.compiled):
                block.finish(scale)
        for rule, view in self._met:
            with rule.synapses.on_device(), compiling(self.compiled):
                rule.end_step(view)


class _Block:
    """One block of parameters or rows of them, with the snapshots and the calls of each rule for it."""

    def __init__(
        self,
        rules: Sequence[Rule],
        optimizer: Optimizer,
        group_index: Mapping[Tensor, int],
        part: dict[Tensor, Rows],
        buffers: Mapping[Need, Buffers],
    ) -> None:
        self.part = part
        self._snapshots: dict[Need, dict[Tensor, Tensor]] = {kind: {} for kind in get_args(Need)}
        members: list[tuple[Rule, Step]] = []
        for rule in rules:
            view = rule.synapses.view.restrict_to(part)
            if not len(view):
                continue
            # One buffer holds the weights before while rules rewrite, and then becomes the update.
            kept = {n: buffers["before" if n == "updates" else n].beside(view) for n in rule.needs}
            for need, tensors in kept.items():
                self._snapshots[need].update(zip(view.sources, tensors, strict=True))
            members.append((rule, Step(view.stepped_by(optimizer, group_index), kept)))
        self._spans = {kind: spans(found.values()) for kind, found in self._snapshots.items()}
        self._weights = self._snapshots["before"] | self._snapshots["updates"]
        in_order = sorted(members, key=lambda member: not member[0].owns_update)  # the owner first
        self._pulls = [(r, _on_device(r, r.pull, changing=False), step.synapses) for r, step in members]
        self._rewrites = [(r, _on_device(r, r.rewrite), _without("updates", step)) for r, step in in_order]
        self._observes = [(_on_device(r, r.observe), _without("before", step)) for r, step in members]

    def gradients(self) -> dict[Tensor, Tensor]:
        """Gradients of this block's parameters, by parameter."""
        return {p: rows_of(held(p.grad), rows) for p, rows in self.part.items() if p.grad is not None}

    def capture(self, gradients: Mapping[Tensor, Tensor], noise: WeightNoise | None) -> None:
        noisy = self._snapshots["noise_gradients"]
        self._keep("gradients", gradients)
        if self._weights:
            copy_each_(list(self._weights.values()), self._held(self._weights))
        if noisy and noise is not None:
            noise.take({p: self.part[p] for p in noisy}, list(noisy.values()))

    def pull(self, gradients: Mapping[Tensor, Tensor], scale: PullScale | None) -> None:
        for rule, pull, synapses in self._pulls:
            own = [gradients[p] for p in synapses.sources]
            pull(synapses, own)
            if scale is not None:
                scale.pulled(rule, synapses, own)
        self._keep("pulled", gradients)

    def finish(self, scale: PullScale | None) -> None:
        for rule, rewrite, step in self._rewrites:
            if scale is not None and not rule.owns_update:
                scale.before_rewrites(self.part)
            rewrite(step)
            if scale is not None:
                scale.rewritten(rule, step.synapses)
        updates = self._snapshots["updates"]
        if updates and is_compiling():
            turn_into_update_(list(updates.values()), self._held(updates))
        elif updates:  # the same in fewer calls
            torch._foreach_sub_(list(updates.values()), self._held(updates))
            torch._foreach_neg_(self._spans["updates"])
            zero_nonfinite_(self._spans["updates"])
        for observe, step in self._observes:
            observe(step)

    def _keep(self, kind: Need, gradients: Mapping[Tensor, Tensor]) -> None:
        kept = self._snapshots[kind]
        values = [gradients[p] for p in kept]
        if kept and is_compiling():
            copy_finite_(list(kept.values()), values)
        elif kept:  # the same in fewer calls
            torch._foreach_copy_(list(kept.values()), values)
            zero_nonfinite_(self._spans[kind])

    def _held(self, parameters: Iterable[Tensor]) -> list[Tensor]:
        return [rows_of(held(p), self.part[p]) for p in parameters]


def _without(need: Need, step: Step) -> Step:
    return replace(step, snapshots={n: kept for n, kept in step.snapshots.items() if n != need})


def _on_device(rule: Rule, verb: Callable[..., None], changing: bool = True) -> Callable[..., None]:
    """Wraps a method of a rule in :meth:`Synapses.on_device`; without offloading, the method itself."""
    if rule.synapses.offload is None:
        return verb

    visit = Visit(changing)

    def call(*arguments: Any) -> None:
        with rule.synapses.on_device(changing, visit):
            verb(*arguments)

    return call


class Buffers:
    """Snapshot memory: one tensor per parameter, allocated as views of a few flat tensors."""

    def __init__(self) -> None:
        self._found: dict[Tensor, Tensor] = {}

    def __len__(self) -> int:
        return len(self._found)

    def beside(self, view: SynapseView) -> list[Tensor]:
        """One tensor for each parameter of a view, restricted to the view's rows."""
        new = [p for p in view.sources if p not in self._found]
        _, buffers = flat_zeros([held(p.detach()) for p in new])
        self._found |= dict(zip(new, buffers, strict=True))
        return [rows_of(self._found[p], rows) for p, rows in zip(view.sources, view.rows, strict=True)]
