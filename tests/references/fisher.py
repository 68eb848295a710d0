"""Slow diagonal Fisher estimators, one sample at a time, to check fast ones against.

Nothing here changes the mode of the model: the caller decides between ``eval()`` and ``train()``.
Every mean is over samples, and a parameter which the loss does not use has a Fisher of zero.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

IGNORE_INDEX = -100


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Collect the parameters which are differentiated by default.

    theta = {name: p for every named parameter p that requires a gradient}.
    """
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def gradient(scalar: Tensor, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Differentiate a scalar, with zeros where it does not depend on a parameter.

    g_i = d scalar / d theta_i.
    """
    if not scalar.requires_grad:
        return {name: torch.zeros_like(p) for name, p in parameters.items()}
    # The graph is kept because the exact Fisher differentiates one forward once per class.
    grads = torch.autograd.grad(scalar, list(parameters.values()), retain_graph=True, allow_unused=True)
    result = {}
    for (name, p), g in zip(parameters.items(), grads, strict=True):
        result[name] = torch.zeros_like(p) if g is None else g.detach()
    return result


def zeros(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Start an accumulation.

    F_i = 0.
    """
    return {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}


def log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum the log-probabilities of the labels, over samples and positions alike.

    l = sum_t [y_t != -100] log softmax(z_t)[y_t].
    """
    # Class logits are the case of one position per sample, hence one flattening for both shapes.
    log_p = torch.log_softmax(logits, dim=-1).reshape(-1, logits.shape[-1])
    flat = labels.reshape(-1)
    kept = torch.nonzero(flat != IGNORE_INDEX).reshape(-1)
    # Indexing, and not a Python sum, so that a fully masked sequence still has a (zero) gradient.
    return log_p[kept, flat[kept]].sum()


def exact_fisher(
    model: nn.Module, inputs: Tensor, parameters: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Fisher of a classifier with logits (N, C), the expectation over labels being a sum.

    F_i = 1/N sum_n sum_c p(c|x_n) (d log p(c|x_n) / d theta_i)^2.
    """
    parameters = trainable(model) if parameters is None else parameters
    fisher = zeros(parameters)
    for n in range(len(inputs)):
        log_p = torch.log_softmax(model(inputs[n : n + 1])[0], dim=-1)
        for c in range(len(log_p)):
            # The probability is the weight of an expectation, so no gradient goes through it.
            p_c = log_p[c].detach().exp()
            for name, g in gradient(log_p[c], parameters).items():
                fisher[name] += p_c * g**2 / len(inputs)
    return fisher


def labelled_fisher(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    parameters: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Fisher at given labels: empirical if they are the true ones, sampled if drawn from p.

    F_i = 1/N sum_n (d log p(y_n|x_n) / d theta_i)^2, log p(y|x) = sum_t log p(y_t|x) if (N, T).
    """
    parameters = trainable(model) if parameters is None else parameters
    fisher = zeros(parameters)
    for n in range(len(inputs)):
        value = log_likelihood(model(inputs[n : n + 1]), labels[n : n + 1])
        for name, g in gradient(value, parameters).items():
            # A fully masked sequence is still a sample: it adds zero and counts in N.
            fisher[name] += g**2 / len(inputs)
    return fisher


def reversed_fisher(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    parameters: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Reverse the logits (EWC-DR), so that the importance does not vanish with confidence.

    F_i = 1/N sum_n (d CE(-z_n, y_n) / d theta_i)^2.
    """
    parameters = trainable(model) if parameters is None else parameters
    fisher = zeros(parameters)
    for n in range(len(inputs)):
        value = -log_likelihood(-model(inputs[n : n + 1]), labels[n : n + 1])
        for name, g in gradient(value, parameters).items():
            fisher[name] += g**2 / len(inputs)
    return fisher


def gaussian_fisher(
    model: nn.Module, inputs: Tensor, parameters: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Fisher of a unit-variance Gaussian whose mean is the output f(x), of shape (N, D).

    F_i = 1/N sum_n sum_d (d f_d(x_n) / d theta_i)^2.
    """
    parameters = trainable(model) if parameters is None else parameters
    fisher = zeros(parameters)
    for n in range(len(inputs)):
        mean = model(inputs[n : n + 1])[0]
        for d in range(len(mean)):
            for name, g in gradient(mean[d], parameters).items():
                fisher[name] += g**2 / len(inputs)
    return fisher


def gaussian_labelled_fisher(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    parameters: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Fisher of a unit-variance Gaussian at given targets, which are of shape (N, D).

    F_i = 1/N sum_n (d [-1/2 ||y_n - f(x_n)||^2] / d theta_i)^2.
    """
    parameters = trainable(model) if parameters is None else parameters
    fisher = zeros(parameters)
    for n in range(len(inputs)):
        mean = model(inputs[n : n + 1])
        # Broadcasting (1, D) against (D,) or (1,) would silently give another likelihood.
        if mean.shape != targets[n : n + 1].shape:
            raise ValueError("targets must have the shape of the model's output")
        value = -0.5 * ((targets[n : n + 1] - mean) ** 2).sum()
        for name, g in gradient(value, parameters).items():
            fisher[name] += g**2 / len(inputs)
    return fisher


def bernoulli_fisher(
    model: nn.Module, inputs: Tensor, parameters: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Fisher of independent labels of 0 and 1 with logits (N, ...), as a sum over all vectors of labels.

    F_i = 1/N sum_n sum_y p(y|x_n) (d log p(y|x_n) / d theta_i)^2, log p(y|x) = sum_d log p(y_d|x).
    """
    parameters = trainable(model) if parameters is None else parameters
    fisher = zeros(parameters)
    for n in range(len(inputs)):
        z = model(inputs[n : n + 1]).flatten()
        for bits in itertools.product((0.0, 1.0), repeat=len(z)):
            value = bernoulli_log_likelihood(z, torch.tensor(bits, dtype=z.dtype))
            for name, g in gradient(value, parameters).items():
                fisher[name] += value.detach().exp() * g**2 / len(inputs)
    return fisher


def bernoulli_labelled_fisher(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    parameters: dict[str, Tensor] | None = None,
    ignore_index: float = IGNORE_INDEX,
) -> dict[str, Tensor]:
    """Fisher of independent labels at given ones, from 0 to 1.

    F_i = 1/N sum_n (d sum_d [y_nd known] log p(y_nd|x_n) / d theta_i)^2.
    """
    parameters = trainable(model) if parameters is None else parameters
    fisher = zeros(parameters)
    for n in range(len(inputs)):
        z, y = model(inputs[n : n + 1]).flatten(), targets[n].flatten()
        value = bernoulli_log_likelihood(z[y != ignore_index], y[y != ignore_index])
        for name, g in gradient(value, parameters).items():
            fisher[name] += g**2 / len(inputs)
    return fisher


def bernoulli_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum the log-probabilities of independent labels from 0 to 1.

    l = sum_d y_d log p_d + (1 - y_d) log(1 - p_d), p = 1 / (1 + exp(-z)).
    """
    p = 1.0 / (1.0 + torch.exp(-logits))
    return (labels * torch.log(p) + (1.0 - labels) * torch.log(1.0 - p)).sum()


def cross_entropy_fisher(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    parameters: dict[str, Tensor] | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> dict[str, Tensor]:
    """Fisher at given labels, as torch's own cross-entropy of logits (N, C, ...) sums it over positions.

    F_i = 1/N sum_n (d CE(z_n, y_n) / d theta_i)^2.
    """
    parameters = trainable(model) if parameters is None else parameters
    fisher = zeros(parameters)
    for n in range(len(inputs)):
        value = nn.functional.cross_entropy(
            model(inputs[n : n + 1]), labels[n : n + 1], reduction="sum", ignore_index=ignore_index
        )
        for name, g in gradient(value, parameters).items():
            fisher[name] += g**2 / len(inputs)
    return fisher


def batched_fisher(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    batch_size: int,
    parameters: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """WRONG on purpose: squares the gradient of the batch mean, about F/B at an optimum.

    W_i = sum_b (B_b/N) (d [1/B_b sum_{n in b} log p(y_n|x_n)] / d theta_i)^2.
    """
    parameters = trainable(model) if parameters is None else parameters
    fisher = zeros(parameters)
    for start in range(0, len(inputs), batch_size):
        x, y = inputs[start : start + batch_size], labels[start : start + batch_size]
        value = log_likelihood(model(x), y) / len(x)
        for name, g in gradient(value, parameters).items():
            # Weighted by size, so that a short last batch does not count as much as a full one.
            fisher[name] += g**2 * len(x) / len(inputs)
    return fisher
