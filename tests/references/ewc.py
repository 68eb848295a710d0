"""Slow elastic weight consolidation and a plain training loop, to check callbacks against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Tensors = dict[str, Tensor]


def copied(tensors: Tensors) -> Tensors:
    """Take a snapshot which later optimizer steps, being in place, cannot change.

    theta* = theta.
    """
    return {name: t.detach().clone() for name, t in tensors.items()}


def quadratic(fisher: Tensors, anchor: Tensors, parameters: Tensors) -> Tensor:
    """Sum the squared distances from an anchor, weighted by the Fisher, differentiably.

    q = sum_i F_i (theta_i - theta*_i)^2, over the parameters which have a Fisher.
    """
    first = next(iter(parameters.values()))
    total = torch.zeros((), dtype=first.dtype, device=first.device)
    for name in fisher:
        total = total + (fisher[name] * (parameters[name] - anchor[name]) ** 2).sum()
    return total


class SeparateEWC:
    """One Fisher and one anchor per task, as in the original method.

    penalty = strength/2 sum_k decay^(K-1-k) sum_i F_ki (theta_i - theta*_ki)^2.
    """

    def __init__(self, decay: float = 1.0) -> None:
        """Start without tasks.

        K = 0.
        """
        self.decay = decay
        self.tasks: list[tuple[Tensors, Tensors]] = []

    def add(self, fisher: Tensors, parameters: Tensors) -> None:
        """Store a finished task.

        (F_K, theta*_K) = (fisher, parameters), K <- K + 1.
        """
        self.tasks.append((copied(fisher), copied(parameters)))

    def penalty(self, parameters: Tensors, strength: float) -> Tensor:
        """Return the penalty, a scalar which is zero before the first task is stored.

        strength/2 sum_k decay^(K-1-k) sum_i F_ki (theta_i - theta*_ki)^2.
        """
        total = quadratic({}, {}, parameters)
        for k, (fisher, anchor) in enumerate(self.tasks):
            age = len(self.tasks) - 1 - k
            total = total + self.decay**age * quadratic(fisher, anchor, parameters)
        return strength / 2 * total


class OnlineEWC:
    """One running Fisher and one anchor, the latest parameters.

    penalty = strength/2 sum_i F_i (theta_i - theta*_i)^2.
    """

    def __init__(self, decay: float = 1.0) -> None:
        """Start without tasks.

        F = 0, theta* undefined.
        """
        self.decay = decay
        self.fisher: Tensors = {}
        self.anchor: Tensors = {}

    def add(self, fisher: Tensors, parameters: Tensors) -> None:
        """Merge a finished task into the running Fisher and move the anchor.

        F <- decay F + F_new, theta* <- theta.
        """
        merged = copied(fisher)
        for name, old in self.fisher.items():
            # A parameter without a new Fisher keeps its decayed importance.
            merged[name] = self.decay * old + merged.get(name, torch.zeros_like(old))
        self.fisher = merged
        self.anchor = copied(parameters)

    def penalty(self, parameters: Tensors, strength: float) -> Tensor:
        """Return the penalty, a scalar which is zero before the first task is stored.

        strength/2 sum_i F_i (theta_i - theta*_i)^2.
        """
        return strength / 2 * quadratic(self.fisher, self.anchor, parameters)


def train_sequence(
    model: nn.Module,
    tasks: Sequence[tuple[Tensor, Tensor]],
    *,
    strength: float,
    epochs: int,
    batch_size: int,
    make_optimizer: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer],
    anchors: Literal["latest", "each"],
    fisher: Callable[[nn.Module, Tensor, Tensor], Tensors],
    decay: float = 1.0,
) -> SeparateEWC | OnlineEWC:
    """Train on the tasks in order, consolidating after each, without shuffling.

    Step on CE(model(x), y) + penalty(theta); at a task's end add(fisher(model, X, Y), theta).
    """
    if anchors not in ("latest", "each"):
        raise ValueError("anchors must be 'latest' or 'each'")
    ewc = SeparateEWC(decay) if anchors == "each" else OnlineEWC(decay)
    parameters: Tensors = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for inputs, labels in tasks:
        optimizer = make_optimizer(model.parameters())
        model.train()
        for _ in range(epochs):
            for start in range(0, len(inputs), batch_size):
                x, y = inputs[start : start + batch_size], labels[start : start + batch_size]
                loss = nn.functional.cross_entropy(model(x), y)
                loss = loss + ewc.penalty(parameters, strength)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        # Dropout and batch statistics would make the Fisher that of another function.
        model.eval()
        ewc.add(fisher(model, inputs, labels), parameters)
        model.train()
    return ewc
