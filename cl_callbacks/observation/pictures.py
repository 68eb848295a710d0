"""Figures for the loggers of a Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from cl_callbacks.guards.safe_names import file_name, readable_key
from cl_callbacks.guards.whole_file import whole_file
from cl_callbacks.training.log import log_folder, offer, unless_it_fails

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 150
_MOST_CHARACTERS = 100
"""Of a rule's or an evaluation's name in the name of a file, so that what it is of follows."""


def log_figure(trainer: Trainer, key: str, figure: Figure) -> None:
    """Writes a figure as ``figures/KEY.png`` into the log folder, and logs it to W&B and TensorBoard.

    Slashes of the key become dashes in the file name. A figure that cannot be drawn or written is a warning,
    once. Does nothing on ranks other than 0, or without a logger
    that has a folder.
    """
    folder = log_folder(trainer) if trainer.is_global_zero else None
    if folder is None:
        return
    file = folder / "figures" / file_name(readable_key(key, _MOST_CHARACTERS), ".png")
    with unless_it_fails(trainer, file.name):
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as part:
            figure.savefig(part, dpi=_DPI, format="png")
        offer(trainer, lambda logger: _log_to(logger, readable_key(key), file, trainer.global_step))


def _log_to(logger: Logger, key: str, file: Path, step: int) -> None:
    if isinstance(logger, WandbLogger):
        logger.log_image(key, [str(file)], step=step)
    elif isinstance(logger, TensorBoardLogger):
        from matplotlib.image import imread

        logger.experiment.add_image(key, imread(file), step, dataformats="HWC")
