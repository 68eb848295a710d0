"""One optimizer step for any rules, in its plainest form: no blocks, no offload, no compiling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from cl_callbacks import Need, Step, SynapseView
from cl_callbacks.tensors.blocks import ALL


class PlainStep:
    """Replaces :class:`cl_callbacks.synapses.synaptic_step.SynapticStep` in a test."""

    def __init__(self, rules: Any, place: Any, compiled: bool, begin: Any, *others: Any) -> None:
        self.rules, self.place, self.begin, self.is_new = rules, place, begin, True
        self.refresh = self.end_batch = self.detach = lambda: None
        self.start_batch = lambda optimizers: None

    def attach(self, optimizers: list[Optimizer]) -> None:
        for optimizer in optimizers:
            optimizer.register_step_post_hook(self._stepped)

    @torch.no_grad()
    def about_to_step(self, optimizer: Optimizer) -> None:
        """Takes all snapshots that rules may need, then lets every rule add its pull to the gradients."""
        self.begin([])
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        for rule in self.rules:
            if rule.weight_noise is not None:
                rule.weight_noise.pause(parameters)
        self.place()
        gradients, before = [p.grad.clone() for p in parameters], [p.clone() for p in parameters]
        noise = [torch.zeros_like(p) for p in parameters]
        for rule in self.rules:
            if rule.weight_noise is not None:
                rule.weight_noise.reduce_gathered()
                rule.weight_noise.take(dict.fromkeys(parameters, ALL), noise)
        for rule in self.rules:
            view = self._view(rule, optimizer, parameters)
            rule.pull(view, [p.grad for p in view.sources])
        pulled = [p.grad.clone() for p in parameters]
        self.seen: dict[Need, list[Tensor]] = {
            "gradients": gradients, "noise_gradients": noise, "pulled": pulled, "before": before,
        }  # fmt: skip
        self.parameters = parameters

    @torch.no_grad()
    def _stepped(self, optimizer: Optimizer, *_: Any) -> None:
        """Lets rules rewrite the optimizer's update, its owner first, and then all observe it."""
        for rule in sorted(self.rules, key=lambda rule: not rule.owns_update):
            rule.rewrite(self._step(rule, optimizer))
        before = self.seen.pop("before")
        self.seen["updates"] = [p - b for p, b in zip(self.parameters, before, strict=True)]
        for rule in self.rules:
            rule.observe(self._step(rule, optimizer))
        for rule in self.rules:
            rule.end_step(rule.synapses.view.restrict_to(self.parameters))

    def _step(self, rule: Any, optimizer: Optimizer) -> Step:
        view = self._view(rule, optimizer, self.parameters)
        places = {p: i for i, p in enumerate(self.parameters)}
        seen = {need: [values[places[p]] for p in view.sources] for need, values in self.seen.items()}
        return Step(view, seen)

    def _view(self, rule: Any, optimizer: Optimizer, parameters: list[Tensor]) -> SynapseView:
        group_of = {p: i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        return rule.synapses.view.restrict_to(parameters).stepped_by(optimizer, group_of)
