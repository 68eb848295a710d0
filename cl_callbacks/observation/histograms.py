"""Histograms for loggers that can show them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from cl_callbacks.guards.safe_names import readable_key
from cl_callbacks.training.lightning_private import logged_step
from cl_callbacks.training.log import offer

BINS = 64


def histogram(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts ``(64,)`` and edges ``(65,)`` of equal bins from the least to the greatest value.

    Example:
        >>> counts, edges = histogram(np.array([0.0, 1.0, 1.0]))
        >>> int(counts[0]), int(counts[-1]), float(edges[0]), float(edges[-1])
        (1, 2, 0.0, 1.0)
    """
    low, high = float(values.min()), float(values.max())
    # numpy refuses a range that is too narrow for so many bins, as for values that differ by rounding.
    return np.histogram(values.astype(np.float64), BINS, (low, max(high, low + 1e-6 * abs(low))))


def log_histograms(trainer: Trainer, values: Mapping[str, np.ndarray]) -> None:
    """Logs histograms of finite values to W&B and TensorBoard, at the step that Lightning logs at."""
    finite = {key: array[np.isfinite(array)] for key, array in values.items()}
    finite = {readable_key(key): array for key, array in finite.items() if len(array)}
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
