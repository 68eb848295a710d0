"""Vision models as small as they can be, with an image processor, as folders that a user would name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL.Image import Image as Picture
from PIL.Image import fromarray
from sklearn.datasets import load_digits
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTModel
from transformers.models.vit import image_processing_pil_vit

DIGITS = ["zero", "one", "two", "three"]
SIDES = ["left", "right"]


def save_processor(folder: Path, channels: int = 3) -> str:
    """An image processor that makes 16 × 16 pixels; returns the folder."""
    processor = image_processing_pil_vit.ViTImageProcessorPil(
        size={"height": 16, "width": 16}, image_mean=[0.5] * channels, image_std=[0.25] * channels
    )
    processor.save_pretrained(folder)
    return str(folder)


def tiny_vit(folder: Path) -> str:
    """A ViT of two layers and four patches; returns the folder."""
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=16,
        patch_size=8,
    )  # fmt: skip
    ViTModel(config).save_pretrained(folder)
    return save_processor(folder)


def tiny_resnet(folder: Path) -> str:
    """A ResNet of two stages; returns the folder."""
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(folder)
    return save_processor(folder)


def digit(row: int) -> Picture:
    """A grey picture of 8 × 8 pixels."""
    return fromarray((load_digits().images[row] * 15).astype("uint8"))


def four_digits(train: int = 16, test: int = 8) -> DatasetDict:
    """Digits 0 to 3 as pictures: ``image``, ``label``, and their ``side``, left for 0 and 1."""
    labels = load_digits().target
    each = [np.flatnonzero(labels == d)[: (train + test) // 4] for d in range(4)]
    rows = np.stack(each, axis=1).flatten().tolist()
    columns = {
        "image": [digit(row) for row in rows],
        "label": [int(labels[row]) for row in rows],
        "side": [int(labels[row]) // 2 for row in rows],
        "row": rows,
    }
    features = Features(
        image=Image(), label=ClassLabel(names=DIGITS), side=ClassLabel(names=SIDES), row=Value("int32")
    )
    split = Dataset.from_dict(columns, features)
    return DatasetDict(train=split.select(range(train)), test=split.select(range(train, train + test)))
