"""The command line: LightningCLI over whatever modules, data and callbacks a YAML file names."""

from __future__ import annotations

import importlib
import re
import sys
from typing import TYPE_CHECKING, NoReturn

from cl_callbacks.guards.optional import optional
from cl_callbacks.guards.signatures import nearest_argument

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningCLI


def run(args: list[str] | None = None) -> LightningCLI:
    """Does what the arguments say, such as ``["fit", "--config", "configs/digits.yaml"]``.

    Model and data are classes given by ``class_path`` and ``init_args``, and so are callbacks and loggers;
    those of this package by their bare names. Files given by several ``--config`` are merged in order.

    Args:
        args: of the command line; ``None`` for those of the process.

    Returns:
        The command line, with the ``trainer``, ``model`` and ``datamodule`` that it has made.

    Raises:
        ImportError: ``jsonargparse`` is not installed.
    """
    optional("jsonargparse", "cli")
    from lightning.pytorch import LightningDataModule, LightningModule
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

    class Parser(LightningArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            super().error(_with_nearest_names(str(message)), ex)

    return LightningCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        parser_class=Parser,
        parser_kwargs={"prog": "cl-callbacks"},
        save_config_kwargs={"overwrite": True},  # a run that is resumed may log into the folder it had
        args=args,
    )


def _with_nearest_names(message: str) -> str:
    """Adds to an error about an option the nearest one that the class has."""

    def named(found: re.Match[str]) -> str:
        module, _, name = found["path"].rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        nearest = nearest_argument(kind, found["option"])
        return found[0] + (f"; the nearest is {nearest!r}" if nearest else "")

    problem = r"class_path '(?P<path>[\w.]+)':\s+Option '(?P<option>\w+)' is not accepted"
    return re.sub(problem, named, message)


def main() -> None:
    """What ``python -m cl_callbacks`` and the command ``cl-callbacks`` do."""
    if "" not in sys.path:
        sys.path.insert(0, "")  # modules of the folder that it is run in, as with `python -m`
    try:
        run()
    except ImportError as error:
        if error.__cause__ is None or "cl_callbacks[" not in str(error):
            raise
        sys.exit(str(error))
