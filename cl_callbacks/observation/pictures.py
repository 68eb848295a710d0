"""Figures for whatever loggers a Trainer has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def show(trainer: Trainer, key: str, figure: Figure) -> None:
    """Writes a figure to a PNG file in the log folder; every process has to call this.

    Args:
        trainer: whose log folder it is, or else its ``default_root_dir``.
        key: of the figure; what stands before a slash becomes a folder.
        figure: to be written.
    """
    file = Path(trainer.log_dir or trainer.default_root_dir) / f"{key}.png"
    if trainer.is_global_zero:
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file)
