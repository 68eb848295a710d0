"""Distillation, number by number, and learning without forgetting as a plain loop."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


def softmax(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp(z / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def distilled(
    outputs: list[list[float]], teacher: list[list[float]], likelihood: str, t: float, reverse: bool
) -> float:
    """Mean over rows, of outputs as many as the teacher has."""
    found: list[float] = []
    for new, old in zip(outputs, teacher, strict=True):
        new = new[: len(old)]
        if likelihood == "gaussian":
            found += [(a - b) ** 2 for a, b in zip(new, old, strict=True)]
            continue
        pairs = [(old, new)]
        if likelihood == "bernoulli":
            pairs = [([b, 0.0], [a, 0.0]) for a, b in zip(new, old, strict=True)]
        for sides in pairs:
            p, q = (softmax(z, t) for z in (reversed(sides) if reverse else sides))
            found.append(t**2 * divergence(p, q))
    return sum(found) / len(found)


def without_forgetting(
    net: nn.Module,
    optimizer: Any,
    tasks: Sequence[Sequence[tuple[Tensor, Tensor]]],
    *,
    strength: float,
    temperature: float = 2.0,
    accumulate: int = 1,
) -> None:
    """Trains on one task after the other, from the second on beside a frozen copy of the network."""
    old: nn.Module | None = None
    for batches in tasks:
        for index, (x, y) in enumerate(batches):
            logits = net(x)
            loss: Any = F.cross_entropy(logits, y)
            if old is not None:
                p = F.softmax(old(x).detach() / temperature, 1)
                log_q = F.log_softmax(logits / temperature, 1)
                kl = (p * (p.log() - log_q)).sum() / len(x)
                loss = loss + strength * temperature**2 * kl
            (loss / accumulate).backward()
            if (index + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
        old = copy.deepcopy(net).eval()
