"""Methods of one module that are wrapped for a while."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

from lightning.pytorch import LightningModule


class ShadowMethod:
    """Wraps a method of one module; a deep copy of the module gets the original method.

    Args:
        module: the module.
        name: of the method.
        call: what is called in its place, with the method and then its arguments.
    """

    def __init__(self, module: LightningModule, name: str, call: Callable[..., Any]) -> None:
        self.module, self.name = module, name
        # Lightning reads the signature of the user's own method from there.
        self.__wrapped__ = getattr(module, name)
        self._own = {name: vars(module)[name]} if name in vars(module) else {}
        self._call = partial(call, self.__wrapped__)

    def attach(self) -> None:
        """Puts the wrapped method in the place of the module's own."""
        vars(self.module)[self.name] = self

    def detach(self) -> None:
        """Puts the module's own method back."""
        vars(self.module).pop(self.name, None)
        vars(self.module).update(self._own)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the wrapper."""
        return self._call(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return MethodType(getattr(type(self.module), self.name), memo.get(id(self.module), self.module))


def own_method(pl_module: LightningModule, name: str) -> Callable[..., Any]:
    """A method of a module without what this package has wrapped around it."""
    method = getattr(pl_module, name)
    while isinstance(method, ShadowMethod):
        method = method.__wrapped__
    return method
