"""Hears every step of the optimizers, whoever calls it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import wraps
from inspect import signature
from types import MethodType
from typing import Any
from weakref import ref

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from cl_callbacks.synapses.optimizers import with_inner

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments and keyword arguments of ``step``, the optimizer first."""

_REASON: dict[str, Any] = {"reason": "rules act before and after each step: compile without fullgraph=True"}
if "reason" not in signature(torch.compiler.disable).parameters:
    _REASON = {}

_LOCK = threading.RLock()
_listening: tuple[ref[StepHooks], ...] = ()  # replaced as a whole, since another thread may be calling them
_handles: list[Any] = []  # of torch's hooks, of which there is one pair for all that listen


class StepHooks:
    """Calls functions before and after each step of any optimizer in the thread that listens.

    Steps in other threads are those of other trainings, unless the optimizer is attached. Those of
    ``torch.optim.Optimizer`` are heard by torch's global hooks, so that it makes no difference
    whether a Trainer, a module or another optimizer calls ``step``, nor whether the Trainer knows the
    optimizer. Among the optimizers attached, and those that they wrap, are objects without these hooks: they
    have Lightning's ``Optimizable`` protocol only, or an ``__init__`` that does not call ``super()``, or
    another ``step`` in place of their class's, such as a compiled one. Their ``step`` is wrapped.

    Args:
        before: called with the optimizer and the arguments of the step, the optimizer first; may return
            others in their place.
        after: called likewise after the step, unless it raised an exception.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.SGD([weight])
        >>> hooks = StepHooks(lambda *_: print("before"), lambda *_: print("after"))
        >>> _ = hooks.attach([optimizer]); optimizer.step(); hooks.detach()
        before
        after
        >>> optimizer.step()
    """

    def __init__(self, before: Callable[..., Arguments | None], after: Callable[..., None]) -> None:
        self.before, self.after = before, after
        self._thread = 0  # in which it listens; 0 before
        self._wrapped: list[tuple[Any, MethodType, dict[str, Any]]] = []
        self._attached: dict[int, Any] = {}  # by id()

    @property
    def attached(self) -> list[Any]:
        """The optimizers given to :meth:`attach`, and those that they wrap."""
        return list(self._attached.values())

    def is_attached(self, optimizer: Any) -> bool:
        """Whether an optimizer is among those attached."""
        return self._attached.get(id(optimizer)) is optimizer

    def attach(self, optimizers: Iterable[Any]) -> list[Any]:
        """Begins to listen; returns the optimizers with those that they wrap, whose ``step`` may be wrapped.

        Raises:
            MisconfigurationException: steps of an optimizer cannot be heard.
        """
        if not self._thread:
            self._thread = threading.get_ident()
            _change_listening(add=self)
        found = with_inner(optimizers)
        for optimizer in found:
            if not self.is_attached(optimizer):
                self._attached[id(optimizer)] = optimizer
                if not _is_hooked(optimizer):
                    self._wrap(optimizer)
        return found

    def detach(self) -> None:
        """Stops listening, and gives the optimizers their own ``step`` back."""
        _change_listening(remove=self)
        for optimizer, step, own in self._wrapped:
            # Where somebody has wrapped it once more, it stays, and only passes on from now on.
            if vars(optimizer).get("step") is step:
                del optimizer.step
                vars(optimizer).update(own)
        self._thread, self._wrapped, self._attached = 0, [], {}

    def hears(self, optimizer: Any) -> bool:
        """Whether the steps of an optimizer in this thread are heard: those of other trainings are not."""
        return self._thread == threading.get_ident() or self.is_attached(optimizer)

    def _wrap(self, optimizer: Any) -> None:
        own = optimizer.step
        function = getattr(own, "__func__", None)

        # As a method, since schedulers look for its function, and a copy of the optimizer steps itself.
        @torch.compiler.disable(recursive=False, **_REASON)
        @wraps(own)
        def step(self_: Any, *args: Any, **kwargs: Any) -> Any:
            listening = self.is_attached(self_)
            arguments = ((self_, *args), kwargs)
            if listening:
                arguments = self.before(self_, *arguments) or arguments
            given, named = arguments
            found = function(*given, **named) if function else own(*given[1:], **named)
            if listening:
                self.after(self_, *arguments)
            return found

        bound = MethodType(step, optimizer)
        before = {name: value for name, value in getattr(optimizer, "__dict__", {}).items() if name == "step"}
        try:
            optimizer.step = bound
        except AttributeError as error:
            raise MisconfigurationException(
                f"Steps of {type(optimizer).__name__} cannot be heard: it has no step hooks of torch, and "
                f"its `step` cannot be replaced. Derive it from torch.optim.Optimizer, with a call of "
                f"`super().__init__(params, defaults)` in its `__init__`."
            ) from error
        self._wrapped.append((optimizer, bound, before))


def _change_listening(add: StepHooks | None = None, remove: StepHooks | None = None) -> None:
    """Begins or ends to call a listener, and forgets those that are gone.

    Torch goes through its hooks in each step, in whatever thread, and fails if there are others meanwhile. So
    they change with the first listener and the last one only.
    """
    global _listening
    with _LOCK:
        left = [known for known in _listening if known() not in (None, remove)]
        _listening = (*left, *([] if add is None else [ref(add)]))
        if _listening and not _handles:
            _handles.append(register_optimizer_step_pre_hook(_before_any_step))
            _handles.append(register_optimizer_step_post_hook(_after_any_step))
        while _handles and not _listening:
            _handles.pop().remove()


def _those_that_hear(optimizer: Any) -> list[StepHooks]:
    """The listeners of a step; a hook keeps none of them alive."""
    found = (known() for known in _listening)
    return [each for each in found if each is not None and each.hears(optimizer)]


@torch.compiler.disable(**_REASON)  # not traced where a user compiles the step
def _before_any_step(optimizer: Any, args: Any, kwargs: Any) -> Arguments | None:
    changed = None
    for each in _those_that_hear(optimizer):
        changed = each.before(optimizer, *(changed or (args, kwargs))) or changed
    return changed


@torch.compiler.disable(**_REASON)
def _after_any_step(optimizer: Any, args: Any, kwargs: Any) -> None:
    for each in _those_that_hear(optimizer):
        each.after(optimizer, args, kwargs)


def _is_hooked(optimizer: Any) -> bool:
    """Whether torch calls the global hooks in each step, as it does once ``Optimizer.__init__`` has run."""
    own = "step" in getattr(optimizer, "__dict__", {})
    return isinstance(optimizer, Optimizer) and getattr(type(optimizer).step, "hooked", False) and not own
