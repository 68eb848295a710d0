"""What is due where a rule moves weights at the end of a task."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from cl_callbacks.rules.synaptic_callback import SynapticCallback


def refuse_certain_values(rule: SynapticCallback, trainer: Trainer) -> None:
    """Refuses a rule that averages weights beside one whose weights have only certain values.

    Raises:
        MisconfigurationException: there is one, such as Cascade, on some of the same weights.
    """
    for other in _others(rule, trainer):
        if not other.free_values and len(rule.synapses.view.restrict_to(other.synapses.view.sources)):
            raise MisconfigurationException(
                f"{type(rule).__name__}: averages are none of the values that {type(other).__name__} "
                f"gives its weights: leave one of the two out, or these weights with exclude."
            )


def have_others_follow(rule: SynapticCallback, trainer: Trainer, moved: Mapping[Tensor, Tensor]) -> None:
    """Tells the other rules of a Trainer by how much one has moved the weights, given by parameter."""
    for other in _others(rule, trainer):
        other.follow(moved)


def _others(rule: SynapticCallback, trainer: Trainer) -> list[SynapticCallback]:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [c for c in callbacks if isinstance(c, SynapticCallback) and c is not rule]
