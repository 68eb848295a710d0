"""Short trainings of a network from within its own training, which goes on as if there were none."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from cl_callbacks.guards.signatures import given_arguments
from cl_callbacks.guards.waiting_signals import Section
from cl_callbacks.rules.synaptic_callback import SynapticCallback
from cl_callbacks.synapses.optimizers import with_inner
from cl_callbacks.training.generators import isolated_rng
from cl_callbacks.training.module_state import ModuleState
from cl_callbacks.training.process_sums import average_over_processes_, mean_of_processes_
from cl_callbacks.training.quiet_fit import attributes_kept
from cl_callbacks.training.quiet_step import quiet_step, training_loss
from cl_callbacks.training.waiting_saves import saves_wait

Way = Literal["as_is", "released", "reset", "fresh"]
WAYS: tuple[Way, ...] = ("as_is", "released", "reset", "fresh")


class Fork:
    """Trains the module of a Trainer on some batches, and restores everything.

    ``as_is`` goes on with rules and optimizer as they are; ``released`` without what rules hold: rules that
    own the update begin anew, and others are left out; ``reset`` with the optimizer's state at 0, too;
    ``fresh`` with the weights that the training began with, too.

    Args:
        trainer: in the end of a task.
        pl_module: that it trains.
        start: weights that the training began with, by name.
        seed: of dropout and the like.
    """

    def __init__(
        self, trainer: Trainer, pl_module: LightningModule, start: Mapping[str, Tensor], seed: int
    ) -> None:
        self._trainer, self._module, self._start, self._seed = trainer, pl_module, start, seed
        rules = [c for c in trainer.callbacks if isinstance(c, SynapticCallback)]  # type: ignore[attr-defined]
        self._rules = [rule for rule in rules if rule.holds_weights or rule.owns_update]
        self._listening = next((rule.listening for rule in rules if rule.listening is not None), None)
        self._optimizers = with_inner(trainer.optimizers)

    def learn(self, way: Way, batches: Sequence[Any]) -> float:
        """Trains one step on each batch, and returns the mean of the losses before each step."""
        with self._restored(), ExitStack() as stack:
            for optimizer in self._optimizers if way in ("reset", "fresh") else ():
                optimizer.state.clear()
            if way == "fresh":
                self._restart()
            rules = self._copies(way)
            self._trainer.callbacks = rules  # type: ignore[attr-defined]
            for rule in rules:
                stack.callback(rule.teardown, self._trainer, self._module, "fit")
            for rule in rules:
                rule.on_train_start(self._trainer, self._module)
            found = [self._step(rules, batch, index) for index, batch in enumerate(batches)]
            losses = [loss for loss in found if loss is not None]
            mean = torch.stack(losses).mean() if losses else torch.tensor(torch.nan)
            mean_of_processes_(self._trainer, mean)
            return mean.item()

    def _step(self, rules: Sequence[SynapticCallback], batch: Any, index: int) -> Tensor | None:
        trainer, module, optimizer = self._trainer, self._module, self._trainer.optimizers[0]
        for rule in rules:
            rule.on_train_batch_start(trainer, module, batch, index)
        optimizer.zero_grad()
        with quiet_step(trainer, module, self._seed + index):
            loss = training_loss(trainer, module, batch, index)
            if loss is None:  # the module leaves this batch out
                return None
            loss.backward()
        if trainer.world_size > 1:
            gradients = (p.grad for group in optimizer.param_groups for p in group["params"])
            average_over_processes_([g for g in gradients if g is not None])
        for rule in rules:
            rule.on_before_optimizer_step(trainer, module, optimizer)
        if trainer.gradient_clip_val:
            module.clip_gradients(optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
        optimizer.step()
        for rule in rules:
            rule.on_train_batch_end(trainer, module, loss, batch, index)
        return loss.detach().float()

    @torch.no_grad()
    def _restart(self) -> None:
        for name, parameter in self._module.named_parameters():
            known = self._start.get(name)
            if known is not None and known.shape == parameter.shape:
                parameter.copy_(known)

    def _copies(self, way: Way) -> list[SynapticCallback]:
        if way == "as_is":
            return [_copy(rule, with_state=True) for rule in self._rules]
        return [_copy(rule, with_state=False) for rule in self._rules if rule.owns_update]

    @contextmanager
    def _restored(self) -> Iterator[None]:
        trainer, module = self._trainer, self._module
        with ExitStack() as stack:
            stack.enter_context(Section())
            stack.enter_context(saves_wait(trainer))
            stack.enter_context(isolated_rng(trainer, module))
            stack.enter_context(attributes_kept(trainer))
            stack.enter_context(torch.enable_grad())
            stack.callback(ModuleState(module).restore)
            for optimizer in self._optimizers:
                stack.enter_context(_kept(optimizer))
            trainer.loggers = []
            if self._listening is not None:  # the rules of the training are not to hear of these steps
                self._listening.detach()
                stack.callback(self._listening.attach, trainer.optimizers)
            yield


@contextmanager
def _kept(optimizer: Any) -> Iterator[None]:
    """Lets an optimizer go on with a copy of its state."""
    state, groups = optimizer.state, [dict(group) for group in optimizer.param_groups]
    optimizer.state = defaultdict(dict, {p: copy.deepcopy(own) for p, own in state.items()})
    try:
        yield
    finally:
        optimizer.state = state
        for group, options in zip(optimizer.param_groups, groups, strict=True):
            group.clear()
            group.update(options)


def _copy(rule: SynapticCallback, with_state: bool) -> SynapticCallback:
    made = type(rule)(**given_arguments(rule))
    if with_state:
        made.restore(copy.deepcopy(rule.state_dict()))
    return made
