"""Histograms for loggers that can show them."""

from __future__ import annotations

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

BINS = 64


def histogram(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts and edges of equal bins from the least to the greatest value.

    Example:
        >>> counts, edges = histogram(np.array([0.0, 1.0, 1.0]))
        >>> counts[0], counts[-1], edges[0], edges[-1]
        (np.int64(1), np.int64(2), np.float64(0.0), np.float64(1.0))
    """
    low, high = float(values.min()), float(values.max())
    # So many bins find no room between numbers that differ by rounding.
    return np.histogram(values.astype(np.float64), BINS, (low, max(high, low + 1e-6 * abs(low))))


def show_histogram(trainer: Trainer, key: str, values: np.ndarray) -> None:
    """Gives the finite ones of some numbers to W&B and TensorBoard, at the x axis of Lightning's metrics."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return
    step = trainer.fit_loop.epoch_loop._batches_that_stepped
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            logger.log_metrics({key: wandb.Histogram(np_histogram=histogram(finite))}, step=step)  # type: ignore[dict-item]
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_histogram(key, finite, global_step=step, bins=BINS)
