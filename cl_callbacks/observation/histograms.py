"""Histograms for loggers that can show them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from cl_callbacks.training.lightning_private import logged_step
from cl_callbacks.training.log import offer

BINS = 64


def histogram(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts and edges of equal bins from the least to the greatest value.

    Example:
        >>> counts, edges = histogram(np.array([0.0, 1.0, 1.0]))
        >>> int(counts[0]), int(counts[-1]), float(edges[0]), float(edges[-1])
        (1, 2, 0.0, 1.0)
    """
    low, high = float(values.min()), float(values.max())
    # So many bins find no room between numbers that differ by rounding.
    return np.histogram(values.astype(np.float64), BINS, (low, max(high, low + 1e-6 * abs(low))))


def log_histograms(trainer: Trainer, values: Mapping[str, np.ndarray]) -> None:
    """Gives the finite ones of some numbers to W&B and TensorBoard, at the x axis of Lightning's metrics."""
    finite = {key: array[np.isfinite(array)] for key, array in values.items()}
    finite = {key: array for key, array in finite.items() if len(array)}
    step = logged_step(trainer)
    if finite:
        offer(trainer, lambda logger: _log_to(logger, finite, step))


def _log_to(logger: Logger, values: Mapping[str, np.ndarray], step: int) -> None:
    if isinstance(logger, WandbLogger):
        import wandb

        bars = {key: wandb.Histogram(np_histogram=histogram(array)) for key, array in values.items()}
        logger.log_metrics(bars, step=step)  # type: ignore[arg-type]
    elif isinstance(logger, TensorBoardLogger):
        for key, array in values.items():
            logger.experiment.add_histogram(key, array, global_step=step, bins=BINS)
