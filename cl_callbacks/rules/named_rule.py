"""Finds the rule that another one works with, by its name."""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cl_callbacks.rules.synaptic_callback import SynapticCallback


def named_rule(
    trainer: Trainer,
    asking: SynapticCallback,
    argument: str,
    able: Callable[[SynapticCallback], bool],
    what: str,
) -> SynapticCallback:
    """Returns the rule of the Trainer's list that an argument of another rule names.

    Args:
        trainer: whose callbacks are searched.
        asking: the rule with the argument, which cannot name itself.
        argument: its name.
        able: whether a rule can be named there.
        what: such rules do, for the error: "knows how plastic a synapse is".

    Raises:
        MisconfigurationException: there is none of that name which is able, or several.
    """
    others = [c for c in trainer.callbacks if isinstance(c, SynapticCallback) and c is not asking]  # type: ignore[attr-defined]
    able_ones = [rule for rule in others if able(rule)]
    name = getattr(asking, argument)
    found = [rule for rule in able_ones if rule.name == name]
    if len(found) != 1:
        raise MisconfigurationException(
            f"{type(asking).__name__}: {argument}={name!r} must be the name of one rule in the callback list "
            f"that {what}, and is that of {len(found)}; there are "
            f"{sorted(rule.name for rule in able_ones) or 'none'}"
        )
    return found[0]


KNOWS_PLASTICITY = "knows how plastic a synapse is"


def knows_plasticity(rule: SynapticCallback) -> bool:
    """Whether a rule says which share of an update it lets each synapse take."""
    return type(rule).plasticity is not SynapticCallback.plasticity
