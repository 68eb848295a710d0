"""Sequences of image tasks: what pixels and labels each has, from data of every kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL.Image import fromarray

from cl_callbacks import VisionTasks
from cl_callbacks.data.processed_images import ProcessImages, image_processor
from tests.tiny_vision import digit, four_digits, save_processor


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_processor(tmp_path_factory.mktemp("processor"))


def by_side(processor: str, data: Any = None, **options: Any) -> VisionTasks:
    settings = {"processor": processor, "task_column": "side", "batch_size": 4} | options
    return VisionTasks(four_digits() if data is None else data, **settings)


def labels(data: VisionTasks, split: str = "train") -> list[list[int]]:
    return [sorted({row["labels"] for row in task[split]}) for task in data.tasks]


@pytest.mark.parametrize(
    ("scenario", "expected", "heads"),
    [("task", [[0, 1], [0, 1]], [2, 2]), ("class", [[0, 1], [2, 3]], [4])],
)
def test_labels_are_numbered_as_of_texts(processor: str, scenario: Any, expected: Any, heads: Any) -> None:
    for options in ({}, {"task_column": None, "label_groups": {"left": ["zero", 1], "right": [3, "two"]}}):
        data = by_side(processor, scenario=scenario, **options)
        assert labels(data) == labels(data, "test") == expected
        assert (data.num_labels, data.task_names) == (heads, ["left", "right"])


def test_a_list_of_data_sets_is_a_list_of_tasks(processor: str) -> None:
    data = VisionTasks([four_digits(), four_digits(8, 4)], processor=processor, scenario="domain")
    assert labels(data) == [[0, 1, 2, 3]] * 2
    assert [len(task["train"]) for task in data.tasks] == [16, 8]
    assert data.num_labels == [4]


def test_a_batch_has_pixels_as_the_model_wants_them(processor: str) -> None:
    source = four_digits()["train"]
    rows = [i for i, side in enumerate(source["side"]) if side == 1]
    data = by_side(processor, scenario="task")
    batch = data.collate_fn(data.tasks[1]["train"].__getitems__(list(range(len(rows)))))
    assert set(batch) == {"pixel_values", "labels", "task_id"}
    assert batch["task_id"] == 1
    assert batch["labels"].tolist() == [source[i]["label"] - 2 for i in rows]
    resized = [np.asarray(digit(source[i]["row"]).resize((16, 16), 2)) for i in rows]  # bilinear
    expected = (torch.tensor(np.stack(resized)) / 255 - 0.5) / 0.25
    assert batch["pixel_values"].shape == (len(rows), 3, 16, 16)
    for channel in range(3):
        torch.testing.assert_close(batch["pixel_values"][:, channel], expected, atol=1e-5, rtol=0)


def test_with_one_head_batches_have_no_task(processor: str) -> None:
    data = by_side(processor, scenario="class")
    for batch in (next(iter(data.train_dataloader())), next(iter(data.val_dataloader()[1]))):
        assert set(batch) == {"pixel_values", "labels"}


def test_a_model_of_one_channel_has_grey_images(tmp_path: Path) -> None:
    collate = ProcessImages(image_processor(save_processor(tmp_path, channels=1)))
    colours = fromarray(np.full((8, 8, 3), 255, dtype=np.uint8))
    batch = collate([{"image": image, "labels": 0} for image in (digit(0), colours)])
    assert batch["pixel_values"].shape == (2, 1, 16, 16)


def test_lists_of_numbers_are_images(processor: str) -> None:
    collate = ProcessImages(image_processor(processor))
    own, listed = (
        collate([{"image": image, "labels": 0}]) for image in (digit(3), np.asarray(digit(3)).tolist())
    )
    assert torch.equal(own["pixel_values"], listed["pixel_values"])


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ([[0.0, 0.5]], "whole numbers from 0 to 255"),
        ([[0, 256]], "whole numbers from 0 to 255"),
        (fromarray(np.full((8, 8), 1000, dtype=np.uint16)), "mode I;16, more than 8 bits"),
    ],
)
def test_images_of_unknown_range_are_refused(processor: str, image: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ProcessImages(image_processor(processor))([{"image": image, "labels": 0}])


def test_worker_processes_load_the_same(processor: str) -> None:
    own, theirs = (list(by_side(processor, num_workers=n).val_dataloader()[1]) for n in (0, 2))
    assert len(own) == len(theirs) == 1
    assert torch.equal(own[0]["pixel_values"], theirs[0]["pixel_values"])


def test_columns_may_have_other_names(processor: str) -> None:
    source = four_digits().rename_columns({"image": "img", "label": "digit"})
    data = by_side(processor, source, image_column="img", label_column="digit", scenario="class")
    expected = by_side(processor, scenario="class")
    for batch, own in zip(data.val_dataloader()[1], expected.val_dataloader()[1], strict=True):
        assert torch.equal(batch["labels"], own["labels"])
        assert torch.equal(batch["pixel_values"], own["pixel_values"])


def test_few_examples_of_each_label(processor: str) -> None:
    data = by_side(processor, examples_per_label=2)
    assert [sorted(r["labels"] for r in task["train"]) for task in data.tasks] == [[0, 0, 1, 1]] * 2


# -- sources ---------------------------------------------------------------------------------------


def test_parquet_files_and_saved_data_sets_are_the_same(processor: str, tmp_path: Path) -> None:
    source = four_digits()
    source.save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet").mkdir()
    for split in source:
        source[split].to_parquet(tmp_path / "parquet" / f"{split}.parquet")
    expected = [b["pixel_values"] for b in by_side(processor).val_dataloader()[0]]
    for folder in ("saved", "parquet"):
        data = by_side(processor, str(tmp_path / folder))
        for batch, own in zip(data.val_dataloader()[0], expected, strict=True):
            assert torch.equal(batch["pixel_values"], own)


@pytest.mark.parametrize("splits", [("train", "test"), ("",)])
def test_a_folder_of_images_has_its_labels_in_folders(
    processor: str, tmp_path: Path, splits: tuple[str, ...]
) -> None:
    for split in splits:
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(5):
                digit(i).save(folder / f"{i}.png")
    data = VisionTasks(str(tmp_path), processor=processor, label_groups=[["dog"], ["cat"]], scenario="class")
    assert labels(data) == [[1], [0]]
    assert sum(len(task[s]) for task in data.tasks for s in ("train", "test")) == 10 * len(splits)


# -- what cannot work ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scenario": "domain"}, "share none: use 'class'"),
        ({"task_column": None}, "in one way what the tasks are"),
        ({"image_column": "img"}, r"no column 'img'; they have \['image', 'label', 'side', 'row'\]"),
        ({"label_column": "digit"}, "no column 'digit'"),
        ({"transition_batches": 3, "epochs_per_task": 1}, "a batch has one head"),
    ],
)
def test_what_cannot_work_is_said(processor: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        by_side(processor, **options)


def test_a_batch_of_several_heads_is_refused(processor: str) -> None:
    data = by_side(processor)
    with pytest.raises(ValueError, match=r"must come from one task .* \[0, 1\]"):
        data.collate_fn([task["train"][0] for task in data.tasks])


def test_a_model_without_a_processor_for_pil_is_refused(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "NoSuchThing"}))
    with pytest.raises(ValueError, match=r"no image processor for .* that works with PIL alone"):
        by_side(str(tmp_path))


def test_a_configuration_file_builds_it(processor: str, tmp_path: Path) -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    for split, rows in four_digits().items():
        rows.to_parquet(tmp_path / f"{split}.parquet")
    parser = jsonargparse.ArgumentParser()
    parser.add_subclass_arguments(VisionTasks, "data")
    settings = {
        "data": str(tmp_path), "processor": processor, "label_groups": {"a": ["zero", "one"], "b": [2]},
        "epochs_per_task": 2, "num_workers": 1,
    }  # fmt: skip
    config = parser.parse_object({"data": {"class_path": "cl_callbacks.VisionTasks", "init_args": settings}})
    data = parser.instantiate_classes(config).data
    assert data.task_names == ["a", "b"]
    assert data.num_labels == [2, 1]


def test_every_argument_is_kept_under_its_name(processor: str) -> None:
    data = by_side(processor, seed=3, image_column="image")
    assert (data.processor, data.task_column, data.image_column, data.seed) == (processor, "side", "image", 3)
