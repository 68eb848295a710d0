"""A logger that ignores what is logged, in place of a user's."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger


class SilentLogger(DummyLogger):
    """Replaces a logger: has its folders and names, and ignores what is logged.

    Args:
        logger: that is replaced.
    """

    def __init__(self, logger: Logger) -> None:
        super().__init__()
        self._logger = logger

    @property
    def log_dir(self) -> Any:
        """Folder of the logger's run, where it has one."""
        return getattr(self._logger, "log_dir", None)

    @property
    def save_dir(self) -> str | None:
        """Folder of the logger, or of its run where runs have one, since ``trainer.log_dir`` reads this."""
        own = isinstance(self._logger, TensorBoardLogger | CSVLogger)
        return self.log_dir if own else self._logger.save_dir

    @property
    def name(self) -> Any:
        """Name of the logger's experiment."""
        return self._logger.name

    @property
    def version(self) -> Any:
        """Version of the logger's run."""
        return self._logger.version
