"""Continual backpropagation of a network with one hidden layer, unit by unit."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class PlainContinualBackprop:
    """What is replaced after each step; the new incoming weights are for the caller to give."""

    replacement_rate: float
    maturity: int
    decay: float
    units: int
    utility: list[float] = field(default_factory=list)
    mean: list[float] = field(default_factory=list)
    age: list[int] = field(default_factory=list)
    due: float = 0.0

    def __post_init__(self) -> None:
        self.utility, self.mean, self.age = [0.0] * self.units, [0.0] * self.units, [0] * self.units

    def after_step(self, hidden: Tensor, reader: nn.Linear) -> list[int]:
        """Takes the hidden activations of the batch, ``(N, units)``, and returns the units to be replaced."""
        for i in range(self.units):
            size = float(hidden[:, i].abs().mean())
            outgoing = float(sum(abs(w) for w in reader.weight[:, i].tolist()))
            self.utility[i] = self.decay * self.utility[i] + (1 - self.decay) * size * outgoing
            self.mean[i] = self.decay * self.mean[i] + (1 - self.decay) * float(hidden[:, i].mean())
            self.age[i] += 1
        mature = [i for i in range(self.units) if self.age[i] > self.maturity]
        self.due += self.replacement_rate * len(mature)
        number = int(self.due)
        self.due -= number
        ranked = sorted(mature, key=lambda i: self.utility[i] / (1 - self.decay ** self.age[i]))
        return ranked[:number]

    @torch.no_grad()
    def replace(self, unit: int, layer: nn.Linear, reader: nn.Linear, incoming: Tensor) -> None:
        """Replaces one unit."""
        mean = self.mean[unit] / (1 - self.decay ** self.age[unit])
        for k in range(len(reader.weight)):
            reader.bias[k] += reader.weight[k, unit] * mean
            reader.weight[k, unit] = 0.0
        layer.weight[unit], layer.bias[unit] = incoming, 0.0
        self.utility[unit], self.mean[unit], self.age[unit] = 0.0, 0.0, 0
