"""Declares the arguments that rules have in common, once for all."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Literal, TypedDict

import torch

Patterns = str | Sequence[str] | None
Anchors = Literal["latest", "each"]
Decay = float | Literal["mean"]
Normalize = Literal["mean"] | None
Select = Literal["reservoir", "balanced", "loss"]


class RuleOptions(TypedDict, total=False):
    """Keyword arguments of every rule: see :class:`~cl_callbacks.SynapticCallback`."""

    parameters: Patterns
    exclude: Patterns
    state_dtype: torch.dtype | str | None
    state_device: str | torch.device | None
    strict: bool
    name: str | None


class AnchoredOptions(RuleOptions, total=False):
    """Keyword arguments of the rules that pull: see :class:`~.anchored_rule.AnchoredRule`."""

    normalize: Normalize
    proximal: bool
    max_importance: float | None


class BoundaryOptions(AnchoredOptions, total=False):
    """Keyword arguments of rules that measure at boundaries: see :class:`~.boundary_rule.BoundaryRule`."""

    # `decay` is not here: each rule declares it, with a default of its own.
    anchors: Anchors
    importance_file: str | PathLike[str] | None


class UncertainOptions(RuleOptions, total=False):
    """Keyword arguments of the rules that sample weights: see :class:`~.uncertain_rule.UncertainRule`."""

    draws: int
    antithetic: bool
    trust_region: float | None
    reduction: Literal["mean", "sum"]
    seed: int


class ReplayOptions(RuleOptions, total=False):
    """Keyword arguments of the rules that remember samples: see :class:`~.replay_rule.ReplayRule`."""

    batch_size: int | None
    every_n_steps: int
    select: Select
    max_bytes: float
    past_only: bool
    save_samples: bool
    seed: int


def state_dtype_of(given: torch.dtype | str | None) -> torch.dtype | None:
    """Converts ``state_dtype`` to a dtype; ``None`` for that of each parameter, at least float32.

    Raises:
        ValueError: not a floating-point type of 16 bits or more.

    Example:
        >>> state_dtype_of("bfloat16")
        torch.bfloat16
    """
    if given is None:
        return None
    dtype = getattr(torch, given, None) if isinstance(given, str) else given
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1):
        raise ValueError(f"state_dtype={given!r} is not a floating-point dtype such as 'float32'")
    return dtype


def state_device_of(given: str | torch.device | None) -> torch.device | None:
    """Converts ``state_device`` to a device; ``None`` for that of each parameter.

    Raises:
        ValueError: not a device, or the meta device, which stores no values.

    Example:
        >>> state_device_of("cpu")
        device(type='cpu')
    """
    if given is None:
        return None
    try:
        device = torch.device(given)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"state_device={given!r} is not a device such as 'cpu'") from error
    if device.type == "meta":
        raise ValueError("state_device='meta' keeps no values: use 'cpu', or None for beside the parameters")
    return device
