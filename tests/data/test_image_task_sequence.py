"""Image tasks that a configuration file can describe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cl_callbacks import ImageTasks, TaskSequence
from cl_callbacks.data import digits
from tests.pictures import write_pictures


def all_training_data(data: TaskSequence) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [task["train"].__getitems__(list(range(len(task["train"])))) for task in data.tasks]


@pytest.mark.parametrize(
    ("described", "made"),
    [
        ({"permutations": 3, "seed": 4}, lambda: TaskSequence.permuted(digits(), tasks=3, seed=4, pad=1)),
        ({"degrees": [0, 30]}, lambda: TaskSequence.rotated(digits(), degrees=[0, 30], pad=1)),
        (
            {"label_groups": [[3, 1], [2]], "relabel": True},
            lambda: TaskSequence.split_by_label(digits(), groups=[[3, 1], [2]], relabel=True, pad=1),
        ),
    ],
)
def test_tasks_are_those_of_the_methods(described: dict[str, Any], made: Any) -> None:
    found, expected = all_training_data(ImageTasks(**described, pad=1)), all_training_data(made())
    for (x, y), (images, labels) in zip(found, expected, strict=True):
        assert torch.equal(x, images)
        assert torch.equal(y, labels)


@pytest.mark.parametrize("tasks", [{"permutations": 2}, {"degrees": [0, 90]}])
def test_few_images_of_each_label_to_evaluate_on(tasks: dict[str, Any]) -> None:
    for task in ImageTasks(**tasks, eval_examples_per_label=4).tasks:
        assert task["test"].labels.bincount().tolist() == [4] * 10
        assert len(task["train"]) > 1000


def test_pictures_of_a_folder(tmp_path: Path) -> None:
    write_pictures(tmp_path, train=20, test=10)
    data = ImageTasks(str(tmp_path), permutations=2, batch_size=4)
    x, _ = next(iter(data.train_dataloader()))
    assert x.shape == (4, 1, 28, 28)
    assert [len(loader.dataset) for loader in data.val_dataloader()] == [10, 10]  # type: ignore[arg-type]


@pytest.mark.parametrize("ways", [{}, {"permutations": 2, "degrees": [0.0, 1.0]}])
def test_tasks_are_said_in_one_way(ways: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="in one way what the tasks are: permutations=10"):
        ImageTasks("digits", **ways)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        ImageTasks(str(tmp_path / "no"), permutations=2)
