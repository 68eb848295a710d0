"""A pretrained encoder with a linear output layer for each task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Self

from cl_callbacks.data.multi_head import MultiHead, Task
from cl_callbacks.guards.optional import optional

Pooling = Literal["mean", "first", "last"]


def pooled(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Pools the tokens of each text into one vector: ``(N, T, D)`` to ``(N, D)``.

    Args:
        states: last hidden states of the tokens, ``(N, T, D)``.
        mask: attention mask ``(N, T)``, 1 where there is a token.
        pooling: ``"mean"`` over tokens, as in sentence encoders; the ``"first"`` token, BERT's ``[CLS]``;
            the ``"last"``, which in a causal model has seen all others.

    Example:
        >>> states, mask = torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]])
        >>> [pooled(states, mask, how).item() for how in ("mean", "first", "last")]
        [2.0, 1.0, 3.0]
    """
    if pooling == "mean":
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1)
    positions = torch.arange(mask.shape[1], device=mask.device)
    present = mask.bool()
    if pooling == "first":
        chosen = positions.masked_fill(~present, mask.shape[1] - 1).amin(1)
    else:
        chosen = positions.masked_fill(~present, 0).amax(1)
    return states.gather(1, chosen[:, None, None].expand(-1, 1, states.shape[-1])).squeeze(1)


def image_vector(output: Any, pooling: Pooling) -> Tensor:
    """Pools the output of an encoder into one vector ``(N, D)`` for each image.

    Args:
        output: output of a network without head, with ``last_hidden_state``: tokens ``(N, T, D)``, or the
            feature map ``(N, C, H, W)`` of a convolutional network, with its ``pooler_output`` if any.
        pooling: ``"mean"`` or ``"first"`` for tokens; only ``"mean"`` for a feature map.

    Raises:
        ValueError: a pooling other than ``"mean"`` for a feature map.
    """
    states = output.last_hidden_state
    if states.ndim == 3:
        return pooled(states, torch.ones(states.shape[:2], device=states.device), pooling)
    if pooling != "mean":
        raise ValueError(f"pooling={pooling!r} is for tokens, and this network makes a map: use 'mean'")
    made = getattr(output, "pooler_output", None)
    return states.mean((2, 3)) if made is None else made.flatten(1)


class TaskHeads(nn.Module):
    """An encoder with one linear head, or with one per task, selected by the batch's ``task_id``.

    Args:
        encoder: a network whose output has ``last_hidden_state``.
        width: size D of the vectors that the heads read.
        num_labels: number of outputs of each head.
        pooling: pooling of a text's or an image's tokens into a vector; ``None`` for a label on each token.
        frozen_encoder: whether the heads alone are trained: the encoder stays in evaluation mode, and is in
            no graph.
    """

    def __init__(
        self,
        encoder: nn.Module,
        width: int,
        num_labels: Sequence[int],
        pooling: Pooling | None,
        frozen_encoder: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.pooling, self.frozen_encoder = encoder, pooling, frozen_encoder
        self.heads = MultiHead(width, num_labels)
        if frozen_encoder:
            encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Sets the mode, but for a frozen encoder."""
        super().train(mode)
        if self.frozen_encoder:
            self.encoder.eval()
        return self

    def forward(self, task_id: Task | None = None, **inputs: Tensor) -> Any:
        """Returns the output of the task's head, with ``logits`` ``(N, C)``, or ``(N, T, C)`` for tokens.

        A list has the task of each sample. With ``task_id="all"`` the logits are those of all heads,
        ``(N, H, C)`` or ``(N, T, H, C)``: see :class:`~cl_callbacks.MultiHead`.

        Raises:
            ValueError: several heads and no ``task_id``, or one out of range.
        """
        outputs = optional("transformers", "transformers").modeling_outputs
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen_encoder):
            found = self.encoder(**inputs)
        if "pixel_values" in inputs:
            assert self.pooling is not None
            logits = self._logits(image_vector(found, self.pooling), task_id)
            return outputs.ImageClassifierOutput(logits=logits)
        states = found.last_hidden_state
        if self.pooling is None:
            return outputs.TokenClassifierOutput(logits=self._logits(states, task_id))
        mask = inputs.get("attention_mask")
        mask = torch.ones(states.shape[:2], device=states.device) if mask is None else mask
        logits = self._logits(pooled(states, mask, self.pooling), task_id)
        return outputs.SequenceClassifierOutput(logits=logits)

    def _logits(self, vectors: Tensor, task_id: Task | None) -> Tensor:
        if task_id is None and len(self.heads) > 1:
            raise ValueError(
                f"the network has {len(self.heads)} heads, and the batch has no `task_id`: use data such as "
                f"TextTasks or VisionTasks(scenario='task'), or a single number for num_labels"
            )
        return self.heads(vectors, 0 if task_id is None else task_id)
