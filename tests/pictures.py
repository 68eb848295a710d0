"""Pictures of nothing, as a folder of parquet files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image


def write_pictures(folder: Path, train: int, test: int) -> None:
    """Writes ``train.parquet`` and ``test.parquet`` in the form of MNIST."""
    generator = np.random.default_rng(0)
    features = Features(image=Image(), label=ClassLabel(10))
    for split, size in (("train", train), ("test", test)):
        pictures = [generator.integers(0, 255, (28, 28), dtype=np.uint8) for _ in range(size)]
        rows = {"image": pictures, "label": generator.integers(0, 10, size).tolist()}
        Dataset.from_dict(rows, features).to_parquet(folder / f"{split}.parquet")
