"""Notices a rule that begins anew on a network for which another one already remembers something."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from cl_callbacks.training.fit_end import same_weights, weight_norms

_NOTED: WeakKeyDictionary[LightningModule, dict[tuple[type, str], dict[str, Tensor]]] = WeakKeyDictionary()
"""For each module the rules that it was trained with, and the norms of its weights at the end of that fit."""


def note_memory(rule: Any, pl_module: LightningModule) -> None:
    """Notes that a fit has ended in which a rule has learned something about a module."""
    if rule.has_memory and not rule.waits_for_a_task:
        _NOTED.setdefault(pl_module, {})[type(rule), rule.name] = weight_norms(pl_module)


def warn_of_lost_memory(rule: Any, pl_module: LightningModule) -> None:
    """Warns if a rule starts with an empty memory where one of its kind has trained the module before.

    A module whose weights have been set anew since, most of them, is as good as another one.
    """
    norms = _NOTED.get(pl_module, {}).get((type(rule), rule.name))
    if norms is None or rule.has_memory or rule.strength_now == 0:
        return
    if same_weights(norms, weight_norms(pl_module)) > 0.5:
        name = type(rule).__name__
        lost = "nothing protects what was learned then"
        if rule.renews:
            lost = "to this one it is the first task, and the weights are the initial ones"
        rank_zero_warn(
            f"This {name} begins with an empty memory, and the module was trained with another {name} "
            f"before: {lost}. Give the new Trainer the same {name} object, "
            f"or `fit` a checkpoint of that training as ckpt_path."
        )
