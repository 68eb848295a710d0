"""The README: what it shows runs as it stands, and where it points to there is something."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn

import cl_callbacks
from cl_callbacks import SynapticCallback
from tests.small import Net, loader
from tests.tiny_transformers import requests, tiny_encoder

README = (Path(__file__).parents[1] / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
HUB = "sentence-transformers/all-MiniLM-L6-v2"


class Images(Net):
    """The reader's module, which logs the score that the README names."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(256, 10)))

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())


def images(task: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(task)
    return torch.rand(16, 1, 16, 16, generator=generator), torch.arange(16) % 10


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[lightning.Trainer]:
    """The Trainers that were built, which take few batches and write nothing."""
    found: list[lightning.Trainer] = []
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    few = {"accelerator": "cpu", "limit_train_batches": 1, "limit_val_batches": 1, "num_sanity_val_steps": 0}
    build: Callable[..., lightning.Trainer] = partial(lightning.Trainer, **quiet, **few)

    def built(**arguments: Any) -> lightning.Trainer:
        found.append(build(**arguments))
        return found[-1]

    monkeypatch.setattr(lightning, "Trainer", built)
    return found


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_a_snippet_runs(
    number: int, trainers: list[lightning.Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    requests().save_to_disk("my_data")
    names: dict[str, Any] = {"my_module": Images(), "my_tasks": [loader(*images(task)) for task in range(3)]}
    snippet = SNIPPETS[number]
    exec(snippet.replace(HUB, tiny_encoder(tmp_path / "encoder")), names)
    (trainer,) = trainers
    tasks = len(names["tasks"]) if "tasks" in names else 3
    rules = [c for c in trainer.callbacks if isinstance(c, SynapticCallback)]  # type: ignore[attr-defined]
    assert rules and all(rule.tasks == tasks for rule in rules)


def test_the_table_of_rules_has_every_rule() -> None:
    public = {name: getattr(cl_callbacks, name) for name in cl_callbacks.__all__}
    rules = {
        name
        for name, kind in public.items()
        if isinstance(kind, type) and issubclass(kind, SynapticCallback) and kind is not SynapticCallback
    }
    table = README[README.index("## Which rule?") : README.index("## Pretrained")]
    assert not {name for name in rules if f"`{name}" not in table}


def test_it_is_a_screen_or_three() -> None:
    assert len(README.splitlines()) <= 130
