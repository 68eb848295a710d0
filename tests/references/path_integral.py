"""Slow path integrals, synaptic intelligence and RWalk, and a plain loop to train with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from tests.references.ewc import Tensors, copied, quadratic
from tests.references.fisher import gradient, trainable, zeros


class SynapticIntelligence:
    """Each parameter's part in the decrease of the loss, per squared distance travelled.

    penalty = strength sum_i Omega_i (theta_i - theta*_i)^2.
    """

    def __init__(self, parameters: Tensors, damping: float, decay: float = 1.0) -> None:
        """Start the first task where the parameters are.

        Omega = 0, omega = 0, theta* = theta.
        """
        self.damping = damping
        self.decay = decay
        self.path = zeros(parameters)
        self.importance = zeros(parameters)
        self.anchor = copied(parameters)

    def step(self, gradients: Tensors, before: Tensors, after: Tensors) -> None:
        """Add one optimizer step, given the gradient of the task loss alone at its start.

        omega_i <- omega_i - g_i (theta_i(after) - theta_i(before)).
        """
        before, after = copied(before), copied(after)
        for name in self.path:
            self.path[name] = self.path[name] - gradients[name] * (after[name] - before[name])

    def boundary(self, parameters: Tensors) -> None:
        """Turn the path of the finished task into importance and start another.

        Omega <- decay Omega + relu(omega / ((theta - theta*)^2 + damping)), theta* <- theta, omega <- 0.
        """
        theta = copied(parameters)
        for name in self.path:
            distance = (theta[name] - self.anchor[name]) ** 2
            gained = torch.relu(self.path[name] / (distance + self.damping))
            self.importance[name] = self.decay * self.importance[name] + gained
        self.anchor = theta
        self.path = zeros(parameters)

    def penalty(self, parameters: Tensors, strength: float) -> Tensor:
        """Return the penalty, a scalar which is zero before the first boundary.

        strength sum_i Omega_i (theta_i - theta*_i)^2.
        """
        return strength * quadratic(self.importance, self.anchor, parameters)


def minmax(tensors: Tensors) -> Tensors:
    """Scale all tensors, as if they were one, to the range from zero to one.

    x_i <- (x_i - min_j x_j) / (max_j x_j - min_j x_j), or 0 if all are equal.
    """
    low = min(t.min().item() for t in tensors.values())
    high = max(t.max().item() for t in tensors.values())
    if high == low:
        return zeros(tensors)
    return {name: (t - low) / (high - low) for name, t in tensors.items()}


class RWalk:
    """A running Fisher plus the decrease of the loss per Fisher distance travelled.

    penalty = strength sum_i (minmax(F)_i + minmax(s)_i) (theta_i - theta*_i)^2.
    """

    def __init__(self, parameters: Tensors, decay: float, window_steps: int, damping: float) -> None:
        """Start the first task, and its first window, where the parameters are.

        F = omega = s_task = s = Omega = 0, theta_w = theta* = theta, t = 0.
        """
        self.decay = decay
        self.window_steps = window_steps
        self.damping = damping
        self.fisher = zeros(parameters)
        self.path = zeros(parameters)
        self.score = zeros(parameters)
        self.total = zeros(parameters)
        self.window_start = copied(parameters)
        self.importance = zeros(parameters)
        self.anchor = copied(parameters)
        self.steps = 0
        self.boundaries = 0

    def step(self, gradients: Tensors, before: Tensors, after: Tensors) -> None:
        """Add one optimizer step and close the window if it is full.

        F <- decay F + (1 - decay) g^2, omega <- omega - g (theta(after) - theta(before)), t <- t + 1.
        """
        before, after = copied(before), copied(after)
        for name in self.path:
            g = gradients[name]
            self.fisher[name] = self.decay * self.fisher[name] + (1 - self.decay) * g**2
            self.path[name] = self.path[name] - g * (after[name] - before[name])
        self.steps += 1
        # The count goes on over tasks, so a window which a boundary cut short makes the next one shorter.
        if self.steps % self.window_steps == 0:
            self.close(after)

    def close(self, parameters: Tensors) -> None:
        """Score the open window and start another.

        s_task <- s_task + relu(omega / (1/2 F (theta - theta_w)^2 + damping)), omega <- 0, theta_w <- theta.
        """
        theta = copied(parameters)
        for name in self.path:
            distance = 0.5 * self.fisher[name] * (theta[name] - self.window_start[name]) ** 2
            self.score[name] = self.score[name] + torch.relu(self.path[name] / (distance + self.damping))
        self.path = zeros(parameters)
        self.window_start = theta

    def boundary(self, parameters: Tensors) -> None:
        """Merge the score of the finished task; the running Fisher is kept.

        s <- s_task at first and then (s + s_task) / 2, Omega = minmax(F) + minmax(s), theta* <- theta.
        """
        self.close(parameters)
        for name in self.total:
            if self.boundaries == 0:
                self.total[name] = self.score[name]
            else:
                self.total[name] = (self.total[name] + self.score[name]) / 2
        self.score = zeros(parameters)
        fisher, total = minmax(self.fisher), minmax(self.total)
        for name in self.importance:
            self.importance[name] = fisher[name] + total[name]
        self.anchor = copied(parameters)
        self.boundaries += 1

    def penalty(self, parameters: Tensors, strength: float) -> Tensor:
        """Return the penalty, a scalar which is zero before the first boundary.

        strength sum_i Omega_i (theta_i - theta*_i)^2.
        """
        return strength * quadratic(self.importance, self.anchor, parameters)


def train_sequence(
    model: nn.Module,
    tasks: Sequence[tuple[Tensor, Tensor]],
    *,
    rule: SynapticIntelligence | RWalk,
    strength: float,
    epochs: int,
    batch_size: int,
    make_optimizer: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer],
    accumulate: int = 1,
    proximal: bool = False,
) -> SynapticIntelligence | RWalk:
    """Train on the tasks in order, without shuffling, a new optimizer and a boundary for each.

    g = d [1/A sum_a CE(model(x_a), y_a)] / d theta; step on g + d penalty / d theta; rule.step(g, ...).
    If proximal: step on g, then theta <- (theta + lr k Omega theta*) / (1 + lr k Omega), k = 2 strength.
    """
    parameters = trainable(model)
    model.train()
    for task, (inputs, labels) in enumerate(tasks):
        optimizer = make_optimizer(model.parameters())
        for _ in range(epochs):
            starts = list(range(0, len(inputs), batch_size))
            for first in range(0, len(starts), accumulate):
                task_gradient = zeros(parameters)
                for start in starts[first : first + accumulate]:
                    x, y = inputs[start : start + batch_size], labels[start : start + batch_size]
                    loss = nn.functional.cross_entropy(model(x), y) / accumulate
                    for name, g in gradient(loss, parameters).items():
                        task_gradient[name] = task_gradient[name] + g
                penalty_gradient = gradient(rule.penalty(parameters, strength), parameters)
                for name, p in parameters.items():
                    p.grad = task_gradient[name].clone()
                    if not proximal:
                        p.grad = p.grad + penalty_gradient[name]
                before = copied(parameters)
                optimizer.step()
                # Before the first boundary there is no anchor.
                if proximal and task > 0:
                    with torch.no_grad():
                        for name, p in parameters.items():
                            pull = optimizer.param_groups[0]["lr"] * 2 * strength * rule.importance[name]
                            p.copy_((p + pull * rule.anchor[name]) / (1 + pull))
                rule.step(task_gradient, before, copied(parameters))
        rule.boundary(parameters)
    return rule
