"""Loads pretrained networks with suitable output layers, low-rank adapters and frozen parameters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from cl_callbacks.data.tokenised import Kind as TextKind
from cl_callbacks.fine_tuning.task_heads import Pooling, TaskHeads, image_vector
from cl_callbacks.guards.optional import optional
from cl_callbacks.guards.pretrained_files import from_pretrained

Kind = Literal[TextKind, "image_classification"]

_CLASSES: dict[str, tuple[str, str | None]] = {
    "sequence_classification": ("AutoModelForSequenceClassification", "SEQ_CLS"),
    "token_classification": ("AutoModelForTokenClassification", "TOKEN_CLS"),
    "causal_lm": ("AutoModelForCausalLM", "CAUSAL_LM"),
    "image_classification": ("AutoModelForImageClassification", None),
}


@dataclass(frozen=True)
class LowRank:
    """Low-rank adapters (LoRA): their rank, scale, dropout, and the modules that get one."""

    rank: int
    alpha: float
    dropout: float
    targets: str | Sequence[str] | None


def pretrained(
    model: str,
    kind: Kind,
    num_labels: Sequence[int],
    pooling: Pooling | None,
    low_rank: LowRank | None = None,
    gradient_checkpointing: bool = False,
    frozen_encoder: bool = False,
) -> nn.Module:
    """Loads a pretrained network and returns it in training mode.

    For the arguments see :class:`~cl_callbacks.SequentialFineTuner`. ``num_labels`` has the number of outputs
    of each head, and is empty for a language model. :class:`TaskHeads` are used with a pooling, for
    several heads, and on a frozen encoder.

    Raises:
        FileNotFoundError: no such model.
    """
    transformers = optional("transformers", "transformers")
    name, task_type = _CLASSES[kind]
    own_heads = len(num_labels) > 1 or pooling is not None or frozen_encoder
    images = kind == "image_classification"
    options: dict[str, Any] = {}
    if own_heads:
        name, task_type = "AutoModel", None if images else "FEATURE_EXTRACTION"
    elif num_labels:
        # Image classifiers have a head for their own labels; one of another size is initialised anew.
        options = {"num_labels": num_labels[0]} | ({"ignore_mismatched_sizes": True} if images else {})
    network = from_pretrained(getattr(transformers, name), model, "model", **options)
    config = network.config.get_text_config()
    if not images and config.pad_token_id is None:  # text classifiers read the last token that is not padding
        config.pad_token_id = config.eos_token_id
    width = 0 if not own_heads else _width(network, pooling or "mean") if images else config.hidden_size
    if gradient_checkpointing:
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if own_heads and getattr(network, "pooler", None) is not None:
        network.pooler.requires_grad_(False)  # the heads do not read it
    if low_rank is not None:
        # peft finds the head by its task type, which exists for texts but not for images.
        head = "classifier" if images and not own_heads else None
        network = _with_adapters(network, low_rank, task_type, head)
    if own_heads:
        how = None if kind == "token_classification" else pooling or "mean"
        network = TaskHeads(network, width, num_labels, how, frozen_encoder)
    return network.train()  # transformers loads in evaluation mode


def freeze(network: nn.Module, patterns: Sequence[str]) -> None:
    """Freezes the parameters whose names match one of the regular expressions.

    Raises:
        ValueError: an expression without a match, or no parameter left to train.
    """
    named = dict(network.named_parameters())
    for pattern in patterns:
        found = [p for name, p in named.items() if re.search(pattern, name)]
        if not found:
            raise ValueError(f"freeze: {pattern!r} is in no parameter's name; these are {list(named)[:8]} …")
        for parameter in found:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in named.values()):
        raise ValueError(f"freeze={list(patterns)} leaves nothing to train")


def _width(network: Any, pooling: Pooling) -> int:
    """Measures the width of an image's vector, for which configurations have no common name."""
    size = getattr(network.config, "image_size", None) or 64
    height, width = (size, size) if isinstance(size, int) else size
    channels = getattr(network.config, "num_channels", 3)
    blank = torch.zeros(1, channels, height, width, dtype=network.dtype, device=network.device)
    with torch.no_grad():
        return image_vector(network.eval()(pixel_values=blank), pooling).shape[-1]


def _with_adapters(network: Any, low_rank: LowRank, task_type: str | None, head: str | None) -> nn.Module:
    peft = optional("peft", "transformers")
    targets = low_rank.targets
    config = peft.LoraConfig(
        task_type=task_type,
        r=low_rank.rank,
        lora_alpha=low_rank.alpha,
        lora_dropout=low_rank.dropout,
        target_modules=targets if targets is None or isinstance(targets, str) else list(targets),
        modules_to_save=None if head is None else [head],
    )
    return peft.get_peft_model(network, config)
