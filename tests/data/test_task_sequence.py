"""Sequences of tasks: what they show, and how they follow the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import nn

from cl_callbacks import EWC, EpochBoundaries, FitBoundaries, TaskSequence
from cl_callbacks.data import digits
from cl_callbacks.data.image_tasks import Rotate, image_tensors
from tests.small import Net, make_trainer


def images(n: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 10


def pictures() -> DatasetDict:
    rows = [Image.fromarray(np.full((4, 4), 51 * i, np.uint8)) for i in range(5)]
    split = Dataset.from_dict({"image": rows, "label": list(range(5))})
    return DatasetDict(train=split, test=split)


def test_digits_are_whole_and_always_the_same() -> None:
    data = digits()
    x, y = image_tensors(data["train"])
    assert x.shape == (1437, 1, 8, 8)
    assert (x.min(), x.max()) == (0.0, 1.0)
    assert y.bincount().min() > 130
    again, _ = image_tensors(digits()["train"])
    assert torch.equal(x, again)


def test_images_of_every_kind() -> None:
    x, y = image_tensors(pictures()["train"])
    assert x.shape == (5, 1, 4, 4)
    assert torch.allclose(x[:, 0, 0, 0], torch.arange(5) / 5)
    assert y.tolist() == [0, 1, 2, 3, 4]
    colour = np.zeros((2, 4, 4, 3), np.uint8)
    colour[..., 2] = 255
    x, _ = image_tensors((colour, np.zeros(2, int)))
    assert x.shape == (2, 3, 4, 4)
    assert x[:, 2].eq(1).all()
    assert image_tensors((torch.zeros(2, 16), torch.zeros(2)))[0].shape == (2, 1, 4, 4)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (Dataset.from_dict({"x": [1], "label": [0]}), r"no column 'image'; they have \['x', 'label'\]"),
        ("text", "expected an"),
        ((torch.zeros(2, 3, 3), torch.zeros(5)), "cannot read"),
        ((torch.zeros(2, 3, 3), torch.tensor([0.0, 0.5])), "labels of images are whole numbers"),
        ((torch.full((2, 3, 3), 256), torch.zeros(2)), "from 0 to 255, and these from 256 to 256"),
        ((torch.full((2, 3, 3), -1), torch.zeros(2)), "from 0 to 255, and these from -1"),
    ],
)
def test_what_are_no_images(data: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        image_tensors(data)


def test_permuted_tasks_rearrange_the_same_pixels() -> None:
    x, y = images()
    data = TaskSequence.permuted({"train": (x, y), "test": (x, y)}, tasks=3, seed=1, pad=1)
    shown = [task["train"].__getitems__([0, 1])[0] for task in data.tasks]
    for found in shown:
        assert found.shape == (2, 1, 6, 6)
        assert torch.equal(found[0].flatten().sort()[0][-16:], x[0].flatten().sort()[0])
    assert not torch.equal(shown[0], shown[1])
    again = TaskSequence.permuted({"train": (x, y)}, tasks=3, seed=1, pad=1)
    assert torch.equal(again.tasks[2]["train"].__getitems__([0, 1])[0], shown[2])
    other = TaskSequence.permuted({"train": (x, y)}, tasks=3, seed=2, pad=1)
    assert not torch.equal(other.tasks[2]["train"].__getitems__([0, 1])[0], shown[2])


def test_rotated_tasks_turn() -> None:
    x, y = images()
    assert torch.allclose(Rotate(0.0)(x), x, atol=1e-6)
    assert torch.allclose(Rotate(90.0)(x), x.rot90(1, (2, 3)), atol=1e-5)
    data = TaskSequence.rotated((x, y), degrees=[0, 180])
    one, two = (data.tasks[k]["test"].__getitems__([0])[0] for k in (0, 1))
    assert torch.allclose(two, one.flip(2, 3), atol=1e-5)


def test_split_tasks_hold_their_labels() -> None:
    data = TaskSequence.split_by_label(pictures(), groups=[(0, 1), (4, 2)], batch_size=2)
    assert sorted(data.tasks[1]["train"].labels.tolist()) == [2, 4]
    relabelled = TaskSequence.split_by_label(pictures(), groups=[(0, 1), (4, 2)], relabel=True)
    assert relabelled.tasks[1]["train"].labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"no image with a label of \[9\]"):
        TaskSequence.split_by_label(pictures(), groups=[(9,)])


def test_evaluation_may_see_few_images_of_each_label() -> None:
    labels = torch.arange(400) % 4
    order = labels.argsort()  # as in a sorted file
    data = {split: (torch.rand(400, 1, 4, 4), labels[order]) for split in ("train", "test")}
    few: dict[str, Any] = {"eval_examples_per_label": 3}
    for sequence, own in (
        (TaskSequence.split_by_label(data, groups=[(0, 1), (3,)], **few), [(0, 1), (3,)]),
        (TaskSequence.permuted(data, tasks=2, **few), [range(4)] * 2),
        (TaskSequence.rotated(data, degrees=[0, 90], **few), [range(4)] * 2),
    ):
        for task, group in zip(sequence.tasks, own, strict=True):
            assert sorted(task["test"].labels.tolist()) == [label for label in group for _ in range(3)]
            assert len(task["train"]) == 100 * len(group)
    first, again, other = (
        TaskSequence.rotated(data, degrees=[0], seed=seed, **few).tasks[0]["test"].images
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_single_data_set_is_divided_without_overlap() -> None:
    x, y = images()
    data = TaskSequence.permuted((x, y), tasks=1)
    parts = [data.tasks[0][s].images.flatten(1).sum(1) for s in ("train", "test")]
    assert [len(p) for p in parts] == [16, 4]
    assert len(torch.cat(parts).unique()) == 20
    assert len(TaskSequence.permuted(pictures()["train"], tasks=1).tasks[0]["test"]) == 1


def test_loaders() -> None:
    data = TaskSequence.permuted(images(), tasks=3, batch_size=8, eval_batch_size=3)
    x, y = next(iter(data.train_dataloader()))
    assert (x.shape, y.shape) == ((8, 1, 4, 4), (8,))
    assert [len(loader.dataset) for loader in data.val_dataloader()] == [4, 4, 4]
    assert len(data.test_dataloader()) == len(data) == 3
    with pytest.raises(ValueError, match="tasks must be a list"):
        TaskSequence([])
    with pytest.raises(ValueError, match="task 1 has no data set 'train'"):
        TaskSequence([{"train": [0]}, {"test": [0]}])
    with pytest.raises(ValueError, match="no split of"):
        TaskSequence([{"train": [0]}]).test_dataloader()


class Watching(Net):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(16, 10)))
        self.served: list[int] = []

    def on_train_epoch_start(self) -> None:
        self.served.append(self.trainer.datamodule.current_task)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        expected = self.trainer.datamodule.tasks[self.served[-1]]["train"]
        assert self.trainer.train_dataloader.dataset is expected
        return super().training_step(batch, batch_idx)


def test_one_fit_follows_the_tasks_and_stops_after_the_last() -> None:
    data, model, ewc = TaskSequence.permuted(images(), tasks=3), Watching(), EWC(1.0)
    trainer = make_trainer(ewc, EpochBoundaries(2), max_epochs=-1, reload_dataloaders_every_n_epochs=1)
    trainer.fit(model, data)
    assert model.served == [0, 0, 1, 1, 2, 2]
    assert ewc.tasks == 3
    with pytest.raises(ValueError, match="all 3 tasks of the sequence have been trained"):
        data.train_dataloader()


@pytest.mark.parametrize("boundaries", [[FitBoundaries()], []])
def test_one_fit_per_task(boundaries: list[Any]) -> None:
    data, model = TaskSequence.permuted(images(), tasks=3), Watching()
    trainer = make_trainer(*boundaries)
    for _ in range(3):
        trainer.fit(model, data)
        trainer.fit_loop.max_epochs += 1
    assert model.served == [0, 1, 2]


def test_the_current_task_survives_a_resume(tmp_path: Path) -> None:
    def run(epochs: int, ckpt: Path | None = None) -> list[int]:
        data, model = TaskSequence.permuted(images(), tasks=4), Watching()
        saving = ModelCheckpoint(tmp_path / str(epochs), save_last=True)
        trainer = make_trainer(
            EpochBoundaries(2), saving, enable_checkpointing=True, max_epochs=epochs,
            reload_dataloaders_every_n_epochs=1,
        )  # fmt: skip
        trainer.fit(model, data, ckpt_path=ckpt, weights_only=True)
        return model.served

    assert run(3) == [0, 0, 1]
    assert run(8, tmp_path / "3" / "last.ckpt") == [1, 2, 2, 3, 3]


def test_hugging_face_data_sets_are_tasks_as_they_are() -> None:
    tasks = [
        DatasetDict(train=Dataset.from_dict({"x": [[0.0] * 6] * 4, "labels": [k] * 4}).with_format("torch"))
        for k in range(2)
    ]

    class Mapping(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step((batch["x"], batch["labels"]), batch_idx)

    ewc = EWC(1.0, estimator="empirical")
    trainer = make_trainer(ewc, EpochBoundaries(1), max_epochs=2, reload_dataloaders_every_n_epochs=1)
    trainer.fit(Mapping(), TaskSequence(tasks))
    assert ewc.tasks == 2
