"""Functions on tensors in containers of any nesting: dicts, lists, named tuples, dataclasses, and objects."""

from __future__ import annotations

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

_NO_DATA = Tensor, type, ModuleType, nn.Module  # whose attributes are no part of a batch


def children(tree: Any) -> list[tuple[Any, Any]] | None:
    """Keys and values of a mapping, sequence or dataclass; ``None`` for anything else."""
    if isinstance(tree, Mapping):
        return list(tree.items())
    if isinstance(tree, list | tuple):
        return list(enumerate(tree))
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        names = (field.name for field in dataclasses.fields(tree))
        return [(name, getattr(tree, name)) for name in names if hasattr(tree, name)]
    return None


def flat_tensors(tree: Any) -> list[Tensor]:
    """List of the tensors in nested containers, in order; containers are only read."""
    if isinstance(tree, Tensor):
        return [tree]
    return [tensor for _, value in children(tree) or () for tensor in flat_tensors(value)]


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Applies a function to each tensor in nested containers, and returns containers of the same types.

    The checks of named tuples and dataclasses, which are made when these are constructed, are not made again:
    their fields may not be what they check for in between. Other objects are returned as they are.

    Example:
        >>> map_tensors(torch.neg, {"x": [torch.ones(1)], "name": "a"})
        {'x': [tensor([-1.])], 'name': 'a'}
    """
    if isinstance(tree, Tensor):
        return function(tree)
    inner = children(tree)
    if inner is None:
        return tree
    return _rebuilt(tree, [(key, map_tensors(function, value)) for key, value in inner], inner)


def with_leaves(tree: Any, leaves: Iterator[Any], is_leaf: Callable[[Any], bool]) -> Any:
    """Returns containers of the same types with other leaves, in order.

    Args:
        tree: nested containers.
        leaves: what is put in place of each leaf.
        is_leaf: whether a value counts as a leaf although it is a container; what is none always does.

    Example:
        >>> with_leaves({"x": [1, (2,)], "y": 3}, iter("abc"), lambda value: False)
        {'x': ['a', ('b',)], 'y': 'c'}
    """
    inner = None if is_leaf(tree) else children(tree)
    if inner is None:
        return next(leaves)
    return _rebuilt(tree, [(key, with_leaves(value, leaves, is_leaf)) for key, value in inner], inner)


def _rebuilt(tree: Any, items: list[tuple[Any, Any]], before: list[tuple[Any, Any]]) -> Any:
    """A container of the same type with other items; the same one if none has changed."""
    values = [value for _, value in items]
    if type(tree) in (dict, list, tuple):
        return dict(items) if isinstance(tree, dict) else type(tree)(values)
    changed = [(key, value) for (key, value), (_, old) in zip(items, before, strict=True) if value is not old]
    if not changed:
        return tree
    if isinstance(tree, tuple):
        # A named tuple's `_make` passes over a `__new__` that checks the fields, as that of PackedSequence.
        return tree._make(values) if hasattr(tree, "_make") else type(tree)(values)
    if isinstance(tree, Mapping) and not isinstance(tree, MutableMapping):
        return type(tree)(dict(items))  # type: ignore[call-arg]
    if isinstance(tree, Mapping) and not isinstance(tree, dict | UserDict):
        # A shallow copy of such a mapping may keep its values where the mapping itself does.
        old = dict(before)
        new: Any = copy.deepcopy(tree, {id(old[key]): value for key, value in changed})
        changed = [(key, value) for key, value in changed if new[key] is not value]
    else:
        new = copy.copy(tree)
    for key, value in changed:
        if isinstance(new, MutableMapping | list):
            new[key] = value
        else:
            object.__setattr__(new, key, value)  # also where a dataclass is frozen
    return new


def copied(batch: Any, device: torch.device | str | None = None) -> Any:
    """Copies a batch of any type, objects included, to a device; default: the one that each tensor is on.

    Raises:
        TypeError: an object that cannot be copied.
    """
    if isinstance(batch, Tensor):
        return batch.to(batch.device if device is None else device, non_blocking=True, copy=True)
    inner = children(batch)
    ours = isinstance(batch, dict | UserDict | list | tuple) or not hasattr(batch, "to")
    if inner is not None and ours and not isinstance(batch, PackedSequence):
        return _rebuilt(batch, [(key, copied(value, device)) for key, value in inner], inner)
    try:
        apart = copy.deepcopy(batch)
    except Exception as error:
        raise TypeError(f"a {type(batch).__name__} cannot be copied ({error})") from error
    return apart.to(device) if device is not None and hasattr(apart, "to") else apart


def moved(batch: Any, device: torch.device) -> Any:
    """Moves a batch to a device: objects that have a method ``to`` by that, and else tensor by tensor."""
    if not isinstance(batch, Tensor) and hasattr(batch, "to"):
        return batch.to(device)
    inner = children(batch)
    if isinstance(batch, Tensor) or inner is None:
        return map_tensors(lambda t: t.to(device), batch)
    items = [(key, moved(value, device)) for key, value in inner]
    return _rebuilt(batch, items, inner)


def nodes(tree: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yields all that a batch holds, with the path to it: containers, their values, attributes of objects.

    Example:
        >>> [path for path, _ in nodes({"x": [1, 2]})]
        [(), ('x',), ('x', 0), ('x', 1)]
    """
    seen: set[int] = set()
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), tree)]
    while waiting:
        path, node = waiting.pop()
        yield path, node
        inner = None if isinstance(node, _NO_DATA) else children(node)
        if inner is None and hasattr(node, "__dict__") and not isinstance(node, _NO_DATA):
            inner = list(vars(node).items())
        if inner and id(node) not in seen:  # objects may refer to each other
            seen.add(id(node))
            waiting += [((*path, key), value) for key, value in reversed(inner)]


def plain_containers(batch: Any) -> Any:
    """Converts the containers of a batch to dicts, lists and tuples, as a checkpoint may hold them."""
    if isinstance(batch, Mapping):
        return {key: plain_containers(value) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        items = [plain_containers(item) for item in batch]
        return items if isinstance(batch, list) else tuple(items)
    return batch


def is_plain(batch: Any) -> bool:
    """Whether :func:`plain_containers` can stand for the batch without loss.

    Example:
        >>> is_plain({"x": [torch.zeros(1), "a", None]}), is_plain(object())
        (True, False)
    """
    if isinstance(batch, Mapping):
        return all(is_plain(value) for value in batch.values())
    if isinstance(batch, list | tuple):
        return not hasattr(batch, "_fields") and all(is_plain(item) for item in batch)
    return batch is None or isinstance(batch, Tensor) or type(batch) in (str, bytes, bool, int, float)
