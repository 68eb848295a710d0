"""The command line: LightningCLI with the modules, data and callbacks that a YAML file names."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cl_callbacks.commands.config_files import refuse_lost_additions, refuse_unreadable, replaced_callbacks
from cl_callbacks.commands.explain import explain
from cl_callbacks.commands.list_callbacks import list_callbacks
from cl_callbacks.commands.mistakes import sentence_of
from cl_callbacks.commands.parser_messages import in_one_sentence
from cl_callbacks.guards.optional import optional

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningCLI

_NAME = "cl-callbacks"
_SUBCOMMANDS = ("fit", "validate", "test", "predict", "rules", "explain")
_DESCRIPTION = f"""Continual learning with PyTorch Lightning. Besides what Lightning's Trainer does there are
`{_NAME} rules [NAME]`, which lists the callbacks of this package, or the arguments of one, and
`{_NAME} explain ...`, which says in words what `{_NAME} fit ...` would do."""

_EXPLAIN_HELP = f"""usage: {_NAME} explain [what {_NAME} fit takes]

Says in words what `{_NAME} fit` would do with the same arguments, without doing it: no model is built and no
data are read. `{_NAME} fit --help` lists the arguments."""


def run(args: list[str] | None = None, *, only_explain: bool = False) -> LightningCLI:
    """Runs LightningCLI with arguments such as ``["fit", "--config", "configs/digits.yaml"]``.

    Model, data, callbacks and loggers are classes given by ``class_path`` and ``init_args``; classes of this
    package need no module path. Files given by several ``--config`` are merged in order. Arguments that are
    wrong end in one sentence, or with the environment variable ``JSONARGPARSE_DEBUG=true`` in a traceback.

    Args:
        args: command-line arguments; ``None`` for those of the process.
        only_explain: print what a ``fit`` would do instead, and exit; no model is built and no data are read.

    Returns:
        The LightningCLI, with the ``trainer``, ``model`` and ``datamodule`` that it has created.

    Raises:
        ImportError: ``jsonargparse`` is not installed.
    """
    optional("jsonargparse", "cli")
    from lightning.pytorch import LightningDataModule, LightningModule
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

    parsers: list[LightningArgumentParser] = []  # of the command, and of each subcommand

    class Parser(LightningArgumentParser):
        """Says in a sentence what is wrong, with the nearest right name."""

        def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Any:
            refuse_unreadable(Path(path))
            return super().parse_path(path, *args, **kwargs)

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            if _debugging() or not self.exit_on_error:
                super().error(str(message), ex)
            actions = [action for parser in parsers for action in parser._actions]
            options = [option.lstrip("-") for action in actions for option in action.option_strings]
            _end(in_one_sentence(str(message), _classes(), options, _SUBCOMMANDS), 2)

    class CommandLine(LightningCLI):
        """Looks at the files together once each has been read."""

        def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
            parsers.append(super().init_parser(**kwargs))
            return parsers[-1]

        def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
            super().parse_arguments(parser, args)
            config = self.config[self.config.subcommand]
            files = [Path(file) for file in config.config or [] if file is not None]
            refuse_lost_additions(files)
            for note in replaced_callbacks(files):
                print(f"{_NAME}: {note}", file=sys.stderr)
            if only_explain:
                explain(config.as_dict())
                parser.exit()

    return CommandLine(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        parser_class=Parser,
        parser_kwargs={"prog": _NAME, "description": _DESCRIPTION},
        save_config_kwargs={"overwrite": True},  # a resumed run may log into the same folder
        args=args,
    )


def _classes() -> dict[str, type]:
    """The classes that need no module path, by name: those that have been imported, this package's last."""
    from lightning.pytorch import Callback, LightningDataModule, LightningModule
    from lightning.pytorch.loggers import Logger
    from torch.optim import Optimizer

    found: set[type] = set()
    new: set[type] = {Callback, LightningDataModule, LightningModule, Logger, Optimizer}
    while new:
        found |= new
        children: list[type] = []
        for parent in new:
            children += type.__subclasses__(parent)
        new = set(children) - found
    public = [
        kind for kind in found if not kind.__name__.startswith("_") and "<locals>" not in kind.__qualname__
    ]
    public.sort(
        key=lambda kind: (kind.__module__.startswith(f"{__package__}."), kind.__module__, kind.__name__)
    )
    return {kind.__name__: kind for kind in public}


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
    command, rest = sys.argv[1:2], sys.argv[2:]
    try:
        if command == ["rules"]:
            list_callbacks(rest)
        elif command == ["explain"] and {"-h", "--help"} & set(rest):
            print(_EXPLAIN_HELP)
        elif command == ["explain"]:
            sys.argv[1] = "fit"  # which takes the same arguments
            run(only_explain=True)
        else:
            run()
    except Exception as error:
        sentence = None if _debugging() else sentence_of(error)
        if sentence is None:
            raise
        _end(sentence, 1)
