"""Every snippet of the documentation runs, in the order of its page, imports included.

Names that begin with ``my_`` are the reader's, and so are the folders and models that are named: here they
are small. The Trainer's defaults are set by Lightning's environment variables: nothing is shown, or long.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from cl_callbacks import EWC, TaskSequence
from cl_callbacks.data import digits
from tests.small import Net
from tests.snippets import DOCS, pages, run_snippets, snippets
from tests.tiny_transformers import requests, tiny_encoder, tiny_language_model
from tests.tiny_vision import digit, tiny_vit

DEFAULTS = {
    "ACCELERATOR": "cpu",
    "ENABLE_MODEL_SUMMARY": "False",
    "ENABLE_PROGRESS_BAR": "False",
    "LIMIT_TRAIN_BATCHES": "2",
    "LIMIT_VAL_BATCHES": "1",
    "LOGGER": "False",
}
SLOW = {
    *("guides/boundaries", "guides/images", "guides/language_models", "guides/loggers"),
    *("guides/transformers", "start/choosing_a_strength", "start/five_minutes", "strength"),
}
# What the code of a page must have come to, beyond that it ran.
CHECKS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "guides/boundaries": lambda names: names["trainer"].callbacks[0].tasks == 1,
    "guides/resume": lambda names: names["again"].tasks == 1 and set(names["again"].parameters) == {"weight"},
    "start/five_minutes": lambda names: names["evaluation"].matrix.shape == (6, 5),
    "write/boundary": lambda names: names["boundaries"].task == 2,
    "write/outputs": lambda names: issubclass(names["EWCOnPairs"], EWC),
    "write/rule": lambda names: names["rule"].tasks == 3,
}
PAGES = {str(page.relative_to(DOCS).with_suffix("")): page for page in pages() if snippets(page)}


class MyModule(Net):
    """A classifier of digits, however many pixels they have."""

    def __init__(self) -> None:
        super().__init__(
            nn.Sequential(
                nn.Flatten(), nn.AdaptiveAvgPool1d(64), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)
            )
        )

    def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean(), batch_size=len(y))


def names_of_the_reader() -> dict[str, Any]:
    sequence = TaskSequence.permuted(digits(), tasks=2, seed=0, epochs_per_task=1)
    loaders = []
    for sequence.current_task in range(2):
        loaders.append(sequence.train_dataloader())
    sequence.current_task = 0
    return {
        "my_module": MyModule(),
        "my_tasks": loaders,
        "my_loader": loaders[0],
        "my_data": loaders[0].dataset,
        "my_stream": loaders[0],
        "my_validation": sequence.val_dataloader(),
        "my_sequence": sequence,
    }


def write_texts(folder: Path) -> None:
    (folder / "my_data").mkdir()
    for name, split in requests(copies=2).items():
        split.to_parquet(folder / "my_data" / f"{name}.parquet")
    tiny_encoder(folder / "sentence-transformers" / "all-MiniLM-L6-v2")
    tiny_language_model(folder / "distilgpt2")


def write_images(folder: Path) -> None:
    for split in ("train", "test"):
        for label in ("cat", "dog", "oak", "rose"):
            place = folder / "my_images" / split / label
            place.mkdir(parents=True)
            for row in range(2):
                digit(row).save(place / f"{row}.png")
    tiny_vit(folder / "facebook" / "dinov2-small")


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] if page in SLOW else []) for page in PAGES]
)
def test_snippets_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in DEFAULTS.items():
        monkeypatch.setenv(f"PL_TRAINER_{name}", value)
    text = PAGES[page].read_text()
    if "my_data/" in text:
        write_texts(tmp_path)
    if "my_images/" in text:
        write_images(tmp_path)
    names = names_of_the_reader()
    run_snippets(PAGES[page], names)
    assert CHECKS.get(page, lambda names: True)(names)


def test_a_snippet_that_fails_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\n```python\n>>> x + 1\n3\n```\n")
    with pytest.raises(AssertionError, match=r"line 6.*[\s\S]*Got:\s*2"):
        run_snippets(page, {})
    page.write_text("text\n\n```python\nimport nothing_of_this_name\n```\n")
    with pytest.raises(ModuleNotFoundError):
        run_snippets(page, {})
