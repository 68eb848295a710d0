"""The command line: LightningCLI with the modules, data and callbacks that a YAML file names."""

from __future__ import annotations

import pkgutil
import re
import sys
from typing import TYPE_CHECKING, NoReturn

from cl_callbacks.guards.optional import optional
from cl_callbacks.guards.signatures import nearest_argument

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningCLI


def run(args: list[str] | None = None) -> LightningCLI:
    """Runs LightningCLI with arguments such as ``["fit", "--config", "configs/digits.yaml"]``.

    Model, data, callbacks and loggers are classes given by ``class_path`` and ``init_args``; classes of this
    package need no module path. Files given by several ``--config`` are merged in order.

    Args:
        args: command-line arguments; ``None`` for those of the process.

    Returns:
        The LightningCLI, with the ``trainer``, ``model`` and ``datamodule`` that it has created.

    Raises:
        ImportError: ``jsonargparse`` is not installed.
    """
    optional("jsonargparse", "cli")
    from lightning.pytorch import LightningDataModule, LightningModule
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

    class Parser(LightningArgumentParser):
        """Names the nearest argument where one is not known."""

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            super().error(_with_nearest_names(str(message)), ex)

    return LightningCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        parser_class=Parser,
        parser_kwargs={"prog": "cl-callbacks"},
        save_config_kwargs={"overwrite": True},  # a resumed run may log into the same folder
        args=args,
    )


def _with_nearest_names(message: str) -> str:
    """Adds to an error about an option the nearest one that the class has."""

    def named(found: re.Match[str]) -> str:
        nearest = nearest_argument(pkgutil.resolve_name(found["path"]), found["option"])
        return found[0] + (f"; the nearest is {nearest!r}" if nearest else "")

    problem = r"class_path '(?P<path>[\w.]+)':\s+Option '(?P<option>\w+)' is not accepted"
    return re.sub(problem, named, message)


def main() -> None:
    """Entry point of ``python -m cl_callbacks`` and of the command ``cl-callbacks``."""
    if "" not in sys.path:
        sys.path.insert(0, "")  # finds modules in the working directory, as `python -m` does
    try:
        run()
    except ImportError as error:
        if error.__cause__ is None or "cl_callbacks[" not in str(error):
            raise
        sys.exit(str(error))
