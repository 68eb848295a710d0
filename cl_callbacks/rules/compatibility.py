"""Checks for settings of a Trainer that the rules do not support; each error says what to do instead."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import LBFGS

from cl_callbacks.guards.few import few
from cl_callbacks.guards.once import first_time
from cl_callbacks.rules.rule_options import state_dtype_of
from cl_callbacks.synapses.step import Need, Rule
from cl_callbacks.tensors.shards import misfits
from cl_callbacks.training.loss_scale import is_unscaled


def refuse_strategy(rule: Callback, trainer: Trainer) -> None:
    """Raises an error for strategies that hide the parameters."""
    if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy):
        raise MisconfigurationException(
            f"{type(rule).__name__} cannot find the weights and gradients of single synapses under "
            f"{type(trainer.strategy).__name__}: use strategy='ddp', or FSDP2, which is "
            f"ModelParallelStrategy with `fully_shard` in `configure_model`."
        )


def refuse_own_fetching(rule: Callback, pl_module: LightningModule) -> None:
    """Raises an error for a ``training_step`` that fetches its batches, so that a rule does not see them."""
    if "dataloader_iter" in inspect.signature(pl_module.training_step).parameters:
        raise MisconfigurationException(
            f"{type(rule).__name__} has to see each batch, and a training_step that takes "
            f"dataloader_iter fetches its batches itself: let it take (batch, batch_idx)."
        )


def refuse_manual(rule: Callback, pl_module: LightningModule) -> None:
    """Raises an error for a ``training_step`` that steps optimizers, so that it is not a loss alone."""
    if not pl_module.automatic_optimization:
        raise MisconfigurationException(
            f"{type(rule).__name__} trains on remembered samples by the module's own `training_step`, and "
            f"under manual optimization that steps the optimizers itself: use automatic optimization, where "
            f"it returns the loss."
        )


def refuse_shards(rule: Rule, trainer: Trainer | None, parameters: Mapping[str, Tensor]) -> None:
    """Raises an error for rules that cannot work on shards, and for shards that no rule supports."""
    if trainer is None or not isinstance(trainer.strategy, ModelParallelStrategy):
        return
    if not rule.shardable:
        raise MisconfigurationException(
            f"{type(rule).__name__} needs whole parameters on every process, and these are sharded: use "
            f"strategy='ddp' or a single device, or a rule that is local to each weight, such as EWC."
        )
    offload = rule.synapses.offload
    if offload is not None and any(offload.is_elsewhere(p) for p in parameters.values()):
        raise MisconfigurationException(
            f"{type(rule).__name__}: state_device={str(offload.device)!r} is not where the shards are, and "
            f"the state of a sharded parameter is put together by the processes that have it there: leave "
            f"state_device out, as each process already keeps no more than its shard of the state."
        )
    wrong = misfits(parameters.items())
    if wrong:
        raise MisconfigurationException(
            f"{type(rule).__name__} works on parameters that FSDP2's `fully_shard` has sharded over one "
            f"dimension of processes and keeps beside them, and these are not: {few(wrong)}. Wrap the whole "
            f"network with `fully_shard`, without offloading, or leave parameters out with exclude."
        )


def refuse_unknown_needs(rule: Rule) -> None:
    """Raises if a rule asks for a quantity that no step has."""
    unknown = rule.needs - set(get_args(Need))
    if unknown:
        raise MisconfigurationException(
            f"{type(rule).__name__}.needs has {sorted(unknown)}, and a step gives {list(get_args(Need))}"
        )


def refuse_missing_device(rule: Rule) -> None:
    """Raises an error if the ``state_device`` does not exist on this machine."""
    offload = rule.synapses.offload
    if offload is not None:
        try:
            torch.empty(0, device=offload.device)
        except (AssertionError, RuntimeError, NotImplementedError) as error:
            raise MisconfigurationException(
                f"{type(rule).__name__}: there is no state_device={str(offload.device)!r} on this machine: "
                f"use 'cpu', or leave it out to have the state beside the parameters."
            ) from error


def refuse_optimizers(trainer: Trainer, optimizers: Sequence[Any]) -> None:
    """Raises an error for optimizers with which a pull on the gradient does not work."""
    if any(isinstance(optimizer, LBFGS) for optimizer in optimizers):
        raise MisconfigurationException(
            "LBFGS evaluates the loss several times within one step and searches along it, which a pull on "
            "the gradient cannot follow: use a first-order optimizer."
        )
    if any(group.get("maximize", False) for o in optimizers for group in o.param_groups):
        raise MisconfigurationException(
            "An optimizer with maximize=True climbs, and so would turn the pull of the rules into a push: "
            "minimise the negative instead."
        )
    scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
    if scaled and any(getattr(o, "_step_supports_amp_scaling", False) for o in optimizers):
        raise MisconfigurationException(
            "A fused optimizer under 16-bit mixed precision unscales the gradients inside its step, after "
            "the rules have seen them: build it with fused=False, or use precision='bf16-mixed'."
        )


def refuse_scaled_gradients(trainer: Trainer, optimizers: Sequence[Any]) -> None:
    """Raises an error if one of the optimizers steps with gradients that are multiplied by a loss scale.

    Lightning unscales them where it calls ``step`` itself, so this is for steps that others call.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    inside = any(getattr(optimizer, "grad_scale", None) is not None for optimizer in optimizers)
    if inside or (scaler is not None and optimizers and not any(is_unscaled(scaler, o) for o in optimizers)):
        raise MisconfigurationException(
            "An optimizer steps with gradients that are still multiplied by the loss scale of 16-bit mixed "
            "precision, beside which the pull of a rule would be nothing: call `step` of the optimizer that "
            "`self.optimizers()` returns, or `trainer.precision_plugin.scaler.unscale_(optimizer)` before, "
            "or use precision='bf16-mixed'."
        )


def refuse_rounded_state(rule: Any, given: torch.dtype | str | None) -> None:
    """Raises for a ``state_dtype`` of half precision if all state of a rule changes by small amounts."""
    dtype = state_dtype_of(given)
    if dtype is not None and dtype.itemsize < 4 and rule.fields and set(rule.running) >= set(rule.fields):
        raise ValueError(
            f"state_dtype={given!r}: all state of {type(rule).__name__} changes in every step by less than "
            f"half precision can tell apart, and would stand still: use 'float32' or wider."
        )


def refuse_two_owners(rules: Sequence[Rule], pulling: Sequence[Rule]) -> None:
    """Raises for two rules that own the update, and warns of ``pulling`` ones beside one that does."""
    owners = [type(rule).__name__ for rule in rules if rule.owns_update]
    if len(owners) > 1:
        raise MisconfigurationException(
            f"{' and '.join(owners)} each replace the optimizer's update by their own, so only one of them "
            f"can be in the callback list."
        )
    if owners and pulling and first_time(rules[0], "two memories"):
        rank_zero_warn(
            f"{owners[0]} already remembers through its own update, and "
            f"{', '.join(type(rule).__name__ for rule in pulling)} pulls on the gradient that goes into it: "
            f"what was learned counts twice. One of them is enough."
        )


def warn_of_half_precision(rule: Rule) -> None:
    """Warns that weights in half precision round away updates as small as the rule's."""
    view = rule.synapses.view
    narrow = [n for n, p in zip(view.names, view.parameters, strict=True) if torch.finfo(p.dtype).bits < 32]
    if narrow and first_time(rule, "half precision"):
        rank_zero_warn(
            f"{type(rule).__name__} changes weights in steps that are mostly smaller than the rounding of "
            f"half precision, in which {few(narrow)} are kept, and lost there: train with "
            f"precision='bf16-mixed' instead of 'bf16-true'."
        )


def warn_of_new_weights(rule: Rule, names: list[str]) -> None:
    """Warns that weights were begun anew under names that a rule remembers; not if there are no names."""
    if names:
        kind = type(rule).__name__
        rank_zero_warn(
            f"{kind}: {few(names)}: these weights are neither those with which the last task ended nor near "
            f"them, as after an adapter was merged and begun anew, or a layer was reset. What {kind} has "
            f"learned under these names is of the old weights, and holds the new ones to them. Give new "
            f"weights new names (peft: another `adapter_name`) and {kind} strict=False, or use another "
            f"{kind}; to go on with the old weights, load them before the fit."
        )
