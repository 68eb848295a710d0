"""Experience replay as a plain loop over batches and a list of remembered samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Chosen = Callable[[int, int], list[int]]
"""From the number of the step and of samples seen before it, to the numbers of the samples that are drawn."""


def replay(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[tuple[Tensor, Tensor]],
    chosen: Chosen,
    *,
    weight: float = 1.0,
    accumulate: int = 1,
) -> None:
    """Trains a network on the batches of a stream, and in each step on earlier samples of it."""
    seen: list[tuple[Tensor, Tensor]] = []
    new: list[tuple[Tensor, Tensor]] = []
    steps = 0
    for index, (x, y) in enumerate(batches):
        (F.cross_entropy(net(x), y) / accumulate).backward()
        new += list(zip(x, y, strict=True))
        if (index + 1) % accumulate:
            continue
        numbers = chosen(steps, len(seen))
        if numbers:
            old_x, old_y = (torch.stack(part) for part in zip(*(seen[n] for n in numbers), strict=True))
            (weight * F.cross_entropy(net(old_x), old_y)).backward()
        optimizer.step()
        optimizer.zero_grad()
        seen, new, steps = seen + new, [], steps + 1


def dark_loss(
    outputs: Tensor, stored: Tensor, replayed: Tensor, labels: Tensor, alpha: float, beta: float
) -> Any:
    """What dark experience replay adds to the loss, sample by sample."""
    distances = [((z - old) ** 2).mean() for z, old in zip(outputs, stored, strict=True)]
    entropies = [-z.log_softmax(0)[label] for z, label in zip(replayed, labels, strict=True)]
    return alpha * sum(distances) / len(distances) + beta * sum(entropies) / len(entropies)
