"""The command line: LightningCLI with the modules, data and callbacks that a YAML file names."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

from cl_callbacks.guards.command_errors import in_one_sentence, sentence_of
from cl_callbacks.guards.optional import optional

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningCLI

_NAME = "cl-callbacks"


def run(args: list[str] | None = None) -> LightningCLI:
    """Runs LightningCLI with arguments such as ``["fit", "--config", "configs/digits.yaml"]``.

    Model, data, callbacks and loggers are classes given by ``class_path`` and ``init_args``; classes of this
    package need no module path. Files given by several ``--config`` are merged in order. Arguments that are
    wrong end in one sentence, or with the environment variable ``JSONARGPARSE_DEBUG=true`` in a traceback.

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
        """Says in a sentence what is wrong, with the nearest right name."""

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            if _debugging() or not self.exit_on_error:
                super().error(str(message), ex)
            keys = [option.lstrip("-") for action in self._actions for option in action.option_strings]
            _end(in_one_sentence(str(message), _classes(), keys), 2)

    return LightningCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        parser_class=Parser,
        parser_kwargs={"prog": _NAME},
        save_config_kwargs={"overwrite": True},  # a resumed run may log into the same folder
        args=args,
    )


def _classes() -> set[str]:
    """Names of the classes that need no module path: those that have been imported."""
    from lightning.pytorch import Callback, LightningDataModule, LightningModule
    from lightning.pytorch.loggers import Logger

    found: set[type] = set()
    new: set[type] = {Callback, LightningDataModule, LightningModule, Logger}
    while new:
        found |= new
        children: list[type] = []
        for parent in new:
            children += type.__subclasses__(parent)
        new = set(children) - found
    return {kind.__name__ for kind in found if not kind.__name__.startswith("_")}


def _end(sentence: str, status: int) -> NoReturn:
    sys.stdout.flush()
    print(f"{_NAME}: {sentence}", file=sys.stderr)
    sys.exit(status)


def _debugging() -> bool:
    return os.environ.get("JSONARGPARSE_DEBUG", "").lower() == "true"


def main() -> None:
    """Entry point of ``python -m cl_callbacks`` and of the command ``cl-callbacks``."""
    if "" not in sys.path:
        sys.path.insert(0, "")  # finds modules in the working directory, as `python -m` does
    try:
        run()
    except Exception as error:
        sentence = None if _debugging() else sentence_of(error)
        if sentence is None:
            raise
        _end(sentence, 1)
