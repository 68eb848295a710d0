"""Reads outputs and labels for a Fisher information, each batch as the labels of the first one tell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from cl_callbacks.functional.fisher import Estimator, check_fisher, fisher_cotangents
from cl_callbacks.functional.labels import IGNORED
from cl_callbacks.functional.likelihood import Likelihood, Reading, decide_reading


class FisherReader:
    """Cotangents of a Fisher information, for every rule and function that measures one.

    How outputs and labels are read is decided at the first batch: a later one may leave it open, as sequences
    do that are just as long as there are classes.

    Args:
        estimator: of :func:`~cl_callbacks.functional.fisher.fisher_cotangents`.
        likelihood: of the labels; ``None`` if these are classes, which is checked.
        class_dim: 1 or -1; ``None`` if the shape of the labels tells it.
        ignore_index: label of positions without a target.

    Raises:
        ValueError: arguments that cannot work together.

    Example:
        >>> import torch
        >>> reader = FisherReader("sampled")
        >>> reader.decide(torch.randn(2, 4, 7), torch.zeros(2, 7, dtype=torch.long))
        >>> [v.shape for v in reader.cotangents(torch.randn(2, 4, 4), torch.zeros(2, 4, dtype=torch.long))]
        [torch.Size([2, 4, 4])]
    """

    def __init__(
        self,
        estimator: Estimator,
        likelihood: Likelihood | None = None,
        class_dim: int | None = None,
        ignore_index: int = IGNORED,
    ) -> None:
        check_fisher(estimator, likelihood, class_dim)
        self.estimator, self.likelihood = estimator, likelihood
        self.class_dim, self.ignore_index = class_dim, ignore_index
        self._reading: Reading | None = None

    def decide(self, outputs: Tensor, labels: Any) -> None:
        """Decides anew how batches are read, or raises if outputs and labels contradict the arguments."""
        self._reading = None
        next(self.cotangents(outputs, labels))

    def cotangents(self, outputs: Tensor, labels: Any) -> Iterator[Tensor]:
        """Yields those of :func:`~cl_callbacks.functional.fisher.fisher_cotangents`.

        Labels of another type than a tensor count as none.
        """
        outputs, labels = outputs.detach(), labels if isinstance(labels, Tensor) else None
        if self._reading is None:
            self._reading = decide_reading(
                outputs,
                labels,
                likelihood=self.likelihood,
                class_dim=self.class_dim,
                ignore_index=self.ignore_index,
            )
        yield from fisher_cotangents(outputs, labels, estimator=self.estimator, **self._reading._asdict())
