"""What optimizers have in common, be they of torch or not: parameters, a closure, others that they wrap."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor


def inner_optimizers(optimizer: Any) -> list[Any]:
    """The optimizers that an optimizer keeps among its attributes, and so steps within its own step.

    They are those of which it has all parameters, as sharpness-aware minimisation and Lookahead have a base
    optimizer.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.SGD([weight])
        >>> optimizer.base = torch.optim.Adam([weight])
        >>> [type(base).__name__ for base in inner_optimizers(optimizer)]
        ['Adam']
    """
    attributes = getattr(optimizer, "__dict__", {})
    found = [value for name, value in attributes.items() if name not in ("state", "param_groups", "defaults")]
    members = [m for value in found for m in _members(value) if _is_optimizer(m) and m is not optimizer]
    return [member for member in members if shares_parameters(optimizer, member)]


def with_inner(optimizers: Iterable[Any]) -> list[Any]:
    """Optimizers with all that they wrap, directly or not; each once."""
    found: list[Any] = []
    waiting = list(optimizers)
    while waiting:
        optimizer = waiting.pop(0)
        if not any(optimizer is each for each in found):
            found.append(optimizer)
            waiting += inner_optimizers(optimizer)
    return found


def parameters_of(optimizer: Any) -> Iterator[Tensor]:
    """Parameters of an optimizer, group by group."""
    return (p for group in optimizer.param_groups for p in group["params"])


def shares_parameters(optimizer: Any, other: Any) -> bool:
    """Whether the first parameter of ``other`` is one of the optimizer's."""
    first = next(parameters_of(other), None)
    return any(p is first for p in parameters_of(optimizer))


def _members(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else [value]


def _is_optimizer(value: Any) -> bool:
    return callable(getattr(value, "step", None)) and isinstance(getattr(value, "param_groups", None), list)


def closure_of(optimizer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[..., Any] | None:
    """The closure among the arguments of ``step``, of which the first is the optimizer; ``None`` without.

    Raises:
        MisconfigurationException: something else was given in its place.
    """
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if closure is not None and not callable(closure):
        raise MisconfigurationException(
            f"{type(optimizer).__name__}.step was given a {type(closure).__name__} in place of a closure, so "
            f"that its gradients are not known before it steps, when the rules add their pull: compute them "
            f"before the step or in a closure, or derive it from no optimizer, but let it keep one as an "
            f"attribute and step with that."
        )
    return closure


def with_closure(
    closure: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments of ``step`` with another closure."""
    if "closure" in kwargs:
        return args, {**kwargs, "closure": closure}
    return (args[0], closure, *args[2:]), dict(kwargs)
