"""Refuses two callbacks whose states a checkpoint could not tell apart, and says how they can be told apart.

Lightning refuses them too, when the Trainer is built, and cannot know that there is an argument for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden

from cl_callbacks.guards.signatures import arguments_of
from cl_callbacks.training.lightning_private import check_callbacks_first
from cl_callbacks.training.log import is_of_this_package


@cache
def refuse_same_state_keys() -> None:
    """Extends Lightning's check of the list of callbacks, once."""
    check_callbacks_first(refuse_same_state_key)


def refuse_same_state_key(callbacks: Sequence[Callback]) -> None:
    """Raises an error for two callbacks of this package that would share one state in checkpoints.

    Raises:
        MisconfigurationException: there are two; the message says what to do.
    """
    seen = set()
    for callback in callbacks:
        if not (is_of_this_package(callback) and is_overridden("state_dict", callback, Callback)):
            continue
        if callback.state_key in seen:
            kind = type(callback).__name__
            remedy = "keep one of them"
            if "name" in arguments_of(type(callback)):
                remedy = f"give one of them another name, such as {kind}(name='second', …)"
            raise MisconfigurationException(
                f"This Trainer has two {kind}, whose states a checkpoint could not tell apart: {remedy}."
            )
        seen.add(callback.state_key)
