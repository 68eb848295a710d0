"""Default data without a download: the handwritten digits that come with scikit-learn."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import DatasetDict


def digits(test_size: float = 0.2) -> DatasetDict:
    """Loads handwritten digits of 8 by 8 pixels, without a download.

    1,797 images (UCI optical recognition of handwritten digits, test part) in a stratified split that is
    always the same. Columns: ``image``, float32 from 0 to 1 of shape ``(8, 8)``; ``label``, 0 to 9.

    Args:
        test_size: share of the images in the split ``"test"``; the rest is ``"train"``.

    Example:
        >>> {split: len(rows) for split, rows in digits().items()}
        {'train': 1437, 'test': 360}
    """
    from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16.0).astype("float32").reshape(-1, 8, 8)
    features = Features(image=Array2D((8, 8), "float32"), label=ClassLabel(10))
    train, test = train_test_split(range(len(images)), test_size=test_size, stratify=labels, random_state=0)
    return DatasetDict(
        {
            split: Dataset.from_dict({"image": images[rows], "label": labels[rows]}, features)
            for split, rows in (("train", train), ("test", test))
        }
    )
