"""What autodoc has to be told about this package's classes."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule
from sphinx.ext.napoleon import GoogleDocstring

from cl_callbacks.rules import rule_options

HOOKS = {*dir(Callback), *dir(LightningModule), *dir(LightningDataModule)}


def resolve_annotations(kind: type) -> None:
    """Replaces texts in a class's signature, such as the name of a union of strings, by the types."""
    names = dict(vars(rule_options))
    for base in reversed(kind.__mro__):
        names |= vars(sys.modules[base.__module__])
    parameters = [
        p.replace(annotation=eval(p.annotation, names)) if isinstance(p.annotation, str) else p
        for p in inspect.signature(kind).parameters.values()
    ]
    kind.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]


def sentences(self: GoogleDocstring) -> tuple[str, list[str]]:
    """An attribute's docstring begins with a sentence, which may have a colon, and not with its type."""
    return "", GoogleDocstring(self._dedent(self._consume_to_end()), self._config).lines()


def skip_hooks(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out what Lightning calls: the docstring of the class says what happens."""
    return True if name in HOOKS or name.startswith("on_") else None


def setup(app: Any) -> dict[str, bool]:
    """Registers the three."""
    GoogleDocstring._consume_inline_attribute = sentences  # type: ignore[method-assign]
    for name, module in sorted(sys.modules.items()):
        for kind in vars(module).values() if name.startswith("cl_callbacks") else ():
            if isinstance(kind, type) and kind.__module__ == name and "__init__" in vars(kind):
                resolve_annotations(kind)
    app.connect("autodoc-skip-member", skip_hooks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
