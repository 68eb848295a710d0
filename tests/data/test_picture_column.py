"""Images that cannot be trained on are refused by file, column and row when the data are built."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, Value, load_dataset
from PIL.Image import fromarray

from cl_callbacks import ImageTasks, VisionTasks
from cl_callbacks.data import picture_column
from cl_callbacks.data.origin import Origin
from cl_callbacks.data.picture_column import check_pictures
from tests.tiny_vision import digit, save_processor

ORIGIN = Origin("here", ("images.parquet",))
FEATURES = Features(image=Image(), label=Value("int64"))
PARTS = Features(image={"bytes": Value("binary"), "path": Value("string")}, label=Value("int64"))


def picture(kind: str = "png", size: int = 40) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (size, size), dtype=np.uint8)
    fromarray(noise).save(file, kind)
    return file.getvalue()


def images(values: list[Any]) -> Dataset:
    return Dataset.from_dict({"image": values, "label": [0] * len(values)}, FEATURES)


def stored(content: bytes) -> dict[str, Any]:
    return {"bytes": content, "path": None}


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_processor(tmp_path_factory.mktemp("processor"))


def vision(data: Any, processor: str) -> Any:
    return VisionTasks([data], processor=processor, scenario="domain")


def in_memory(data: Any, processor: str) -> Any:
    return ImageTasks(data, permutations=2)


def flipped(content: bytes) -> bytes:
    return content[:60] + b"\0" * 20 + content[80:]


@pytest.mark.parametrize("build", [vision, in_memory])
@pytest.mark.parametrize(
    "damage",
    [lambda c: c[:-200], flipped, lambda c: b"", lambda c: b"<html>"],
    ids=["cut", "flipped", "0", "html"],
)
def test_a_damaged_picture_in_a_folder(
    tmp_path: Path, processor: str, build: Callable[..., Any], damage: Callable[[bytes], bytes]
) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                (tmp_path / split / name / f"{i}.png").write_bytes(picture())
    damaged = tmp_path / "test" / "dog" / "1.png"
    damaged.write_bytes(damage(picture()))
    with pytest.raises(ValueError, match=r"split 'test', column 'image', row 4 .*cannot be read") as error:
        build(str(tmp_path), processor)
    assert str(damaged) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("build", [vision, in_memory])
@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"image": None}, "column 'image', row 1 .*: there is no image, in 1 of 3 rows"),
        ({"image": stored(picture()[:-200])}, "column 'image', row 1 .*: the image cannot be read"),
        ({"image": {"bytes": None, "path": "gone.png"}}, "column 'image', row 1 .* gone.png cannot be read"),
        ({"label": None}, "column 'label', row 1 .*: there is no label, in 1 of 3 rows"),
        ({"label": -1}, "column 'label', row 1 .*: the label is -1"),
        ({"label": 10**6}, "column 'label', row 1 .*: the largest label is 1000000"),
    ],
)
def test_rows_of_files(
    tmp_path: Path, processor: str, build: Callable[..., Any], row: dict[str, Any], said: str
) -> None:
    good = {"image": stored(picture()), "label": 0}
    rows = {"train": [good] * 3, "test": [good, good | row, good]}
    for split, values in rows.items():
        columns = {name: [value[name] for value in values] for name in good}
        pq.write_table(
            Dataset.from_dict(columns, PARTS).cast(FEATURES).data.table, tmp_path / f"{split}.parquet"
        )
    with pytest.raises(ValueError, match=rf"test\.parquet, {said}"):
        build(str(tmp_path), processor)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([[[1, 2], [3]], [[1, 2], [3, 4]]], "row 0 .*: its rows have several lengths"),
        ([[[[1], [2]], [[3], [4]]], [[[1], [2]], [[1, 1], [2]]]], "row 1 .*: its rows have several lengths"),
        ([[[1, 2]], [[None, 2]]], "row 1 .*: a number is missing"),
        ([[[1, 2]], [[1, 2], None]], "row 1 .*: a number is missing|row 1 .*: its rows have several"),
        ([[[1, 2]], None], "row 1 .*: there is no image"),
        ([[[1, 256]], [[0, 0]]], "row 0 .*: a number is not from 0 to 255"),
        ([[[0, 0]], [[-1, 0]]], "row 1 .*: a number is not from 0 to 255"),
        ([[[0.0, 0.0]], [[float("nan"), 0.0]]], "row 1 .*: a number is not finite"),
        (["a.png", "b.png"], "there are texts; `cast_column"),
        ([0, 1], "there are whole numbers"),
        ([[["a"]], [["b"]]], "there are lists of lists of texts"),
    ],
)  # fmt: skip
def test_nested_numbers(values: list[Any], said: str) -> None:
    with pytest.raises(ValueError, match=rf"^images.parquet, column 'image'.*({said})"):
        check_pictures(Dataset.from_dict({"image": values}), "image", ORIGIN)


def test_images_of_several_sizes_are_no_fault_of_a_column() -> None:
    check_pictures(Dataset.from_dict({"image": [[[1, 2]], [[1], [2], [3]]]}), "image", ORIGIN)


def test_pictures_beyond_the_first_are_decoded_only_if_they_do_not_look_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(picture_column, "_DECODED", 2)
    seen: list[Any] = []
    whole = [stored(picture(kind)) for kind in ("png", "jpeg", "gif", "webp", "bmp")] * 2
    check_pictures(images([*whole, stored(picture("tiff"))]), "image", ORIGIN, seen.append)
    assert len(seen) == 3  # the first two, and one of a format that is not looked into
    for kind in ("png", "jpeg", "gif", "webp", "bmp"):
        with pytest.raises(ValueError, match=r"row 2 .*: the image cannot be read"):
            check_pictures(images([*whole[:2], stored(picture(kind)[:100])]), "image", ORIGIN)


def test_more_than_eight_bits(processor: str) -> None:
    deep = fromarray(np.full((8, 8), 1000, dtype=np.uint16))
    data = images([digit(i) for i in range(3)] + [deep])
    with pytest.raises(
        ValueError, match=r"data\[0\], split 'train', column 'image', row 3 .*more than 8 bits"
    ):
        vision({"train": data, "test": data}, processor)
    with pytest.raises(ValueError, match="from 0 to 255"):
        in_memory({"train": images([deep] * 2), "test": images([deep])}, processor)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([digit(0).resize((9, 9)), digit(1)], r"row 1 .*shape \(8, 8\), and the first has \(9, 9\)"),
        ([digit(0), digit(0).convert("RGB")], r"row 1 .*shape \(8, 8, 3\)"),
    ],
)
def test_tensors_need_images_of_one_shape(values: list[Any], said: str) -> None:
    data = images(values)
    with pytest.raises(ValueError, match=rf"data, split 'train', column 'image', {said}"):
        ImageTasks({"train": data, "test": data}, permutations=2)


def test_tensors_need_numbers_as_labels_of_the_rows_in_use() -> None:
    numbers = {"image": [[[0, 1]], [[2, 3]], [[4, 5]]], "label": [1, -1, None]}
    data = Dataset.from_dict(numbers)
    tasks = ImageTasks({"train": data, "test": data}, label_groups=[[1]])
    assert [len(tasks.tasks[0][split]) for split in ("train", "test")] == [1, 1]
    with pytest.raises(ValueError, match=r"column 'label', row 2 .*: there is no label"):
        ImageTasks({"train": data, "test": data}, permutations=1)
    words = Dataset.from_dict(numbers | {"label": ["a", "b", "c"]})
    with pytest.raises(ValueError, match="column 'label': the labels are texts; `class_encode_column"):
        ImageTasks({"train": words, "test": words}, permutations=1)


def test_a_picture_that_is_found_damaged_in_training_is_named(
    tmp_path: Path, processor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "train" / name / f"{i}.png").write_bytes(picture())
    damaged = tmp_path / "train" / "dog" / "2.png"
    damaged.write_bytes(flipped(picture()))
    monkeypatch.setattr(picture_column, "_DECODED", 0)
    data = VisionTasks(
        {"train": load_dataset("imagefolder", data_dir=str(tmp_path))["train"]},
        processor=processor,
        label_groups=[[0], [1]],
        scenario="class",
    )
    data.current_task = 1
    with pytest.raises(ValueError, match=r"split 'train', row 5 .*, cannot be read: .*2\.png"):
        list(data.train_dataloader())
