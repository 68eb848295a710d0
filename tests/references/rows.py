"""Slow per-sample importance where a sample is a row of the outputs of one forward of a whole batch.

Nothing here changes the mode of the model, or looks into a batch: a loop over the rows of given outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.references.fisher import gradient, zeros

Score = Callable[[Tensor, int], list[Tensor]]


def exact_scores(outputs: Tensor, n: int) -> list[Tensor]:
    """sqrt(p_c) log p_c of row n, for every class c: their squared gradients sum to its Fisher."""
    log_p = torch.log_softmax(outputs[n], dim=-1)
    return [log_p[c].detach().exp().sqrt() * log_p[c] for c in range(len(log_p))]


def labelled_scores(labels: Tensor) -> Score:
    """log p of the label of row n."""
    return lambda outputs, n: [torch.log_softmax(outputs[n], dim=-1)[labels[n]]]


def reversed_scores(labels: Tensor) -> Score:
    """log p of the label of row n, by the reversed logits."""
    return lambda outputs, n: [torch.log_softmax(-outputs[n], dim=-1)[labels[n]]]


def norm_scores(outputs: Tensor, n: int) -> list[Tensor]:
    """||f(x_n)||^2, whose gradient is the sensitivity of row n."""
    return [outputs[n].square().sum()]


def mean_over_rows(
    outputs: Tensor,
    parameters: dict[str, Tensor],
    scores: Score,
    magnitude: Callable[[Tensor], Tensor] = torch.square,
    rows: int | None = None,
) -> dict[str, Tensor]:
    """M_i = 1/N sum_n sum_k |d score_k(n) / d theta_i|^2, over the first rows, or with another magnitude."""
    rows = len(outputs) if rows is None else rows
    total = zeros(parameters)
    for n in range(rows):
        for score in scores(outputs, n):
            for name, g in gradient(score, parameters).items():
                total[name] += magnitude(g) / rows
    return total
