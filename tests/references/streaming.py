"""Slow importance and anchor without task boundaries, by moving averages over the steps."""

from __future__ import annotations

from typing import Literal

import torch

from tests.references.ewc import Tensors, copied
from tests.references.fisher import zeros


class Streaming:
    """A moving importance and a moving anchor, both updated at each optimizer step.

    pull_i = strength Omega_i (theta_i - theta*_i).
    """

    def __init__(
        self,
        parameters: Tensors,
        importance: Literal["fisher", "sensitivity", "path"],
        importance_decay: float,
        anchor_decay: float,
        damping: float,
    ) -> None:
        """Start the averages at zero, for which bias correction compensates.

        m = 0, a = 0, t = 0.
        """
        if importance not in ("fisher", "sensitivity", "path"):
            raise ValueError("importance must be 'fisher', 'sensitivity' or 'path'")
        self.importance = importance
        self.importance_decay = importance_decay
        self.anchor_decay = anchor_decay
        self.damping = damping
        self.raw_importance = zeros(parameters)
        self.raw_anchor = zeros(parameters)
        self.steps = 0

    def step(self, gradients: Tensors, before: Tensors, after: Tensors) -> None:
        """Add one optimizer step.

        m <- beta_I m + (1 - beta_I) x, x = g^2 or |g|; or m <- beta_I m - g (theta(after) - theta(before));
        a <- beta_A a + (1 - beta_A) theta(after), t <- t + 1.
        """
        before, after = copied(before), copied(after)
        self.steps += 1
        beta = self.importance_decay
        for name, m in self.raw_importance.items():
            g = gradients[name]
            if self.importance == "fisher":
                self.raw_importance[name] = beta * m + (1 - beta) * g**2
            elif self.importance == "sensitivity":
                self.raw_importance[name] = beta * m + (1 - beta) * g.abs()
            else:
                self.raw_importance[name] = beta * m - g * (after[name] - before[name])
        beta = self.anchor_decay
        for name, a in self.raw_anchor.items():
            self.raw_anchor[name] = beta * a + (1 - beta) * after[name]

    def anchor(self) -> Tensors:
        """Return the average of the weights so far, undefined before the first step.

        theta* = a / (1 - beta_A^t).
        """
        if self.steps == 0:
            raise ValueError("there is no anchor before the first step")
        return {name: a / (1 - self.anchor_decay**self.steps) for name, a in self.raw_anchor.items()}

    def effective(self, parameters: Tensors) -> Tensors:
        """Return the importance at the given weights, zero before the first step.

        Omega = m / (1 - beta_I^t), or relu(m) / ((theta - theta*)^2 + damping) for a path.
        """
        if self.steps == 0:
            return zeros(parameters)
        theta, anchor = copied(parameters), self.anchor()
        omega = {}
        for name, m in self.raw_importance.items():
            if self.importance == "path":
                # A sum and not an average, hence without a bias to correct.
                omega[name] = torch.relu(m) / ((theta[name] - anchor[name]) ** 2 + self.damping)
            else:
                omega[name] = m / (1 - self.importance_decay**self.steps)
        return omega

    def pull(self, parameters: Tensors, strength: float) -> Tensors:
        """Return the pull, to be added to the gradient; zero before the first step.

        strength Omega_i (theta_i - theta*_i).
        """
        if self.steps == 0:
            return zeros(parameters)
        theta, anchor, omega = copied(parameters), self.anchor(), self.effective(parameters)
        return {name: strength * omega[name] * (theta[name] - anchor[name]) for name in omega}
