"""Multiplies the strengths of the rules that pull weights, by the names of the rules."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cl_callbacks.guards.few import few
from cl_callbacks.rules.synaptic_callback import SynapticCallback


def rules_to_strengthen(
    trainer: Trainer, names: Sequence[str] | None, asker: str
) -> dict[str, SynapticCallback]:
    """The rules of a Trainer that add to the gradient with a strength, by name.

    Args:
        trainer: whose callbacks are searched.
        names: those that are wanted; ``None`` for all that protect what was learned.
        asker: who wants them, for the error message.

    Raises:
        MisconfigurationException: a name that none or several have, no rule at all, or a strength of 0.
    """
    able = [c for c in trainer.callbacks if isinstance(c, SynapticCallback) and _has_strength(c)]  # type: ignore[attr-defined]
    if names is None:
        able = [rule for rule in able if not rule.renews]
    known = [rule.name for rule in able]
    wrong = [name for name in (known if names is None else names) if known.count(name) != 1]
    if wrong or not able:
        given = "none is in the callback list" if not wrong else f"rules={few(sorted(set(wrong)))} are not"
        raise MisconfigurationException(
            f"{asker}: action='strengthen' raises the strength of rules that pull weights, each with a name "
            f"of its own, and {given}; there are {few(sorted(known)) if known else 'none'}."
        )
    found = {rule.name: rule for rule in able if names is None or rule.name in names}
    if idle := [name for name, rule in found.items() if rule.strength_now == 0]:
        raise MisconfigurationException(
            f"{asker}: {few(idle)} of action='strengthen' has {found[idle[0]].dial}=0, which stays 0 "
            f"whatever it is multiplied by: give it one above 0, or name other rules."
        )
    return found


def strengths_of(rules: dict[str, SynapticCallback]) -> dict[str, float]:
    """The strength of each rule."""
    return {name: float(rule.strength_now or 0.0) for name, rule in rules.items()}


def set_strengths(rules: dict[str, SynapticCallback], strengths: dict[str, float]) -> None:
    """Sets the strengths of rules, by name."""
    for name, rule in rules.items():
        setattr(rule, rule.dial, strengths[name])


def _has_strength(rule: SynapticCallback) -> bool:
    pulls = type(rule).pull is not SynapticCallback.pull and not rule.owns_update
    value = rule.strength_now
    return pulls and isinstance(value, Real) and not isinstance(value, bool)
