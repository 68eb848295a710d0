"""An output layer with a head for each task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import AT_LEAST_ONE

Task = int | Sequence[int] | Tensor | Literal["all"]
"""One task for a batch, the task of each sample, or all heads."""


IMPOSSIBLE = -1e4
"""Logit of a class that a task does not have: of probability 0 in every dtype, and finite, since rules leave
out samples with outputs that are not."""


class MultiHead(nn.ModuleList):
    """A linear output layer for each task: the task of a sample chooses its head.

    The loss of a batch reaches the heads of its own tasks and no other: optimizers leave these as they are.
    Rules and measurements need nothing else where batches are ``(x, labels, task)``, as those of
    ``TaskSequence.split_by_label(..., heads=True)``, and the module's ``forward`` is ``forward(x, task)``.
    Under DDP this needs ``Trainer(strategy="ddp_find_unused_parameters_true")``. Under FSDP2 all processes
    must have samples of the same tasks in a step, which those of replay are not: it is refused.

    Args:
        features: size D of the vectors that the heads read.
        num_labels: number of outputs of each head.

    Raises:
        ValueError: no head, or one without outputs; in ``forward``, a task without a head.

    Example:
        >>> heads = MultiHead(8, [2, 2, 3])
        >>> heads(torch.zeros(5, 8), 2).shape, heads(torch.zeros(5, 8), torch.tensor([0, 1, 1, 0, 0])).shape
        (torch.Size([5, 3]), torch.Size([5, 2]))
    """

    @checked(features=AT_LEAST_ONE, num_labels=AT_LEAST_ONE)
    def __init__(self, features: int, num_labels: Sequence[int]) -> None:
        super().__init__(nn.Linear(features, labels) for labels in num_labels)

    def forward(self, features: Tensor, task: Task) -> Tensor:
        """Returns the logits of each sample's task: ``(N, D)`` to ``(N, C)``, ``(N, T, D)`` to ``(N, T, C)``.

        A tensor of tasks on another device than the CPU is waited for. With ``task="all"`` the logits are
        those of all heads, ``(N, H, C)`` or ``(N, T, H, C)``. Of heads with fewer classes than another beside
        them, the missing ones are -10,000. A single head serves all tasks.

        Args:
            features: what the heads read.
            task: the number of the task, or the numbers of the samples' tasks, or ``"all"``.
        """
        if isinstance(task, str):
            return torch.stack(_logits(self, features), -2)
        given = task.tolist() if isinstance(task, Tensor) else task
        if isinstance(given, int):
            return self[self._number_of(given)](features)
        numbers = [self._number_of(number) for number in given]
        used = sorted(set(numbers))
        if len(used) == 1:
            return self[used[0]](features)
        # Every head reads all vectors: a sample is the same row in each of them.
        found = dict(zip(used, _logits([self[number] for number in used], features), strict=True))
        if isinstance(task, Tensor):
            of = task.view(-1, *[1] * (features.ndim - 1))
            logits = found[used[0]]
            for number in used[1:]:
                logits = torch.where(of == number, found[number], logits)
            return logits
        # An index of rows would have to be copied to the device.
        return torch.stack([found[number][i] for i, number in enumerate(numbers)])

    def _number_of(self, task: int) -> int:
        if len(self) == 1:
            return 0
        if not 0 <= task < len(self):
            raise ValueError(f"the batch is of task {task}, and the network has {len(self)} heads")
        return task


def _logits(heads: Iterable[nn.Module], features: Tensor) -> list[Tensor]:
    """The logits of several heads, of as many classes."""
    found = [head(features) for head in heads]
    most = max(logits.shape[-1] for logits in found)
    return [_with_classes(logits, most) for logits in found]


def _with_classes(logits: Tensor, count: int) -> Tensor:
    """Adds classes of probability 0; NaN where the logits are NaN, as those of a head that is not known."""
    missing = count - logits.shape[-1]
    impossible = logits[..., :1].detach() * 0.0 + IMPOSSIBLE
    return torch.cat([logits, impossible.expand(*logits.shape[:-1], missing)], -1) if missing else logits
