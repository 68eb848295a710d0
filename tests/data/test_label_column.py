"""What labels may be; a column with others is refused by file, column and row."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from cl_callbacks.data.data_source import load_splits
from cl_callbacks.data.label_column import NARROW, SPARSE, LabelColumn, check_alike, check_width
from cl_callbacks.data.origin import Origin

ORIGIN = Origin("here", ("labels.csv",))
NAMES = Features(label=ClassLabel(names=["a", "b", "c"]))


def labels(values: list[Any], features: Features | None = None, words: bool = False) -> LabelColumn:
    return LabelColumn(Dataset.from_dict({"label": values}, features), "label", ORIGIN, words)


def rows(column: LabelColumn) -> range:
    return range(column.size)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0, None, 1, None], "row 1 .*: there is no label, in 2 of 4 rows"),
        ([None, None], "row 0 .*: there is no label, in 2 of 2 rows"),
        ([0.0, 1.0, float("nan")], "row 2 .*: there is no label"),
        (["a", None], "row 1 .*: there is no label"),
        (["a", ""], "row 1 .*: the label is empty"),
        ([0, -1, 1], "row 1 .*: the label is -1, in 1 of 3 rows; .* not known: leave .* `splits`"),
        ([0, 1, -7], "row 2 .*: the label is -7"),
        ([-100, 0], "row 0 .*: the label is -100"),
        ([0.0, 0.5], "row 1 .*: 0.5 is no class"),
        ([0.0, float("inf")], "row 1 .*: inf is no class"),
        ([1e300, 0.0], "row 0 .*: 1e[+]300 is no class"),
        ([[0], [1]], "one label in each row is needed, and there are lists of whole numbers"),
        ([{"a": 0}], "there are mappings"),
        ([b"a"], "there are binary values"),
        ([date(2020, 1, 1)], "there are date32"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_label(values: list[Any], said: str) -> None:
    with pytest.raises(ValueError, match=rf"^labels.csv, column 'label'.*{said}"):
        labels(values).of(range(len(values)))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0, 1], "a list with one label per word is needed, and there are whole numbers"),
        ([[0], None], "row 1 .*: there is no list of labels"),
        ([[0], [], [1, None]], "row 2 .*: there is no label, in 1 of 3 rows; -100 stands for"),
        ([[0], [1, -1, -1]], "row 1 .*: the label is -1, in 1 of 2 rows"),
    ],
)
def test_what_cannot_be_labels_of_words(values: list[Any], said: str) -> None:
    with pytest.raises(ValueError, match=rf"^labels.csv, column 'label'.*{said}"):
        labels(values, words=True).of(range(len(values)))


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([3, 1, 3], {1, 3}),
        ([True, False], {0, 1}),
        ([2.0, 0.0], {0, 2}),
        (["b", "a", "b"], {"a", "b"}),
    ],
)
def test_what_can(values: list[Any], found: set[Any]) -> None:
    assert labels(values).of(range(len(values))) == found


def test_words_without_a_label_are_passed_over() -> None:
    assert labels([[-100, 2], [0]], words=True).of([0, 1]) == {0, 2}


def test_only_the_rows_in_use_need_a_label() -> None:
    assert labels([0, None, -1, 2]).of([0, 3]) == {0, 2}
    assert labels([[0], None, [-1], [2]], words=True).of([0, 3]) == {0, 2}
    with pytest.raises(ValueError, match=r"row 2 .*: the label is -1, in 1 of 2 rows"):
        labels([0, None, -1, 2]).of([0, 2])


def test_a_class_without_a_name(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    Dataset.from_dict({"label": [0, 1, 2]}, NAMES).to_parquet(path)
    data = load_splits({"train": str(path)})["train"]
    fewer = data.with_format(None)
    fewer.info.features["label"].names = ["a", "b"]
    with pytest.raises(ValueError, match=r"row 2 .*: the label 2 is none of the 2 classes"):
        LabelColumn(fewer, "label", ORIGIN).of(range(3))


def test_splits_are_alike() -> None:
    check_alike([labels([0, 1, 2], NAMES), labels([0], NAMES), labels([0])])
    with pytest.raises(
        ValueError, match=r"^labels.csv, column 'label': the labels are texts, and numbers in"
    ):
        check_alike([labels([0, 1]), labels(["a"])])
    check_alike([labels(["a"]), labels([None])])  # of which is said that it has none
    other = Features(label=ClassLabel(names=["c", "b", "a"]))
    with pytest.raises(ValueError, match=r"the classes are \['c', 'b', 'a'\], and \['a', 'b', 'c'\] in"):
        check_alike([labels([0], NAMES), labels([0], other)])


def test_a_head_is_not_much_wider_than_there_are_labels() -> None:
    for fits in ([0, NARROW - 1], list(range(0, SPARSE * 200, SPARSE)), ["a", "b"]):
        column = labels(fits)
        check_width(column.of(rows(column)), [column])
    column = labels([3, 10**6, 3])
    with pytest.raises(
        ValueError, match=r"^labels.csv, column 'label', row 1 .*: the largest label is 1000000"
    ):
        check_width(column.of(rows(column)), [column])
    for chosen in ([0], [0, 2]):  # what other rows have does not count, but that they are there does
        check_width(column.of(chosen), [column])
    small = LabelColumn(Dataset.from_dict({"label": [1]}, Features(label=Value("int8"))), "label", ORIGIN)
    with pytest.raises(ValueError, match=r"row 1 .*: the largest label is 1000000"):
        check_width({10**6}, [small, column])
    many = labels([*range(200), SPARSE * 200])
    check_width({0, SPARSE * 200}, [many])


def test_the_row_is_that_of_the_file(tmp_path: Path) -> None:
    lines = [f"{i},{'' if i == 7 else i % 2}" for i in range(20)]
    (tmp_path / "all.csv").write_text("\n".join(["text,label", *lines]))
    for seed in range(3):
        found = load_splits(tmp_path / "all.csv", seed=seed)
        part = next(name for name, split in found.items() if None in split["label"])
        column = LabelColumn(found[part], "label", found.origins[part])
        with pytest.raises(
            ValueError, match=r"all\.csv, column 'label', row 7 .*: there is no label, .* CSV"
        ):
            column.of(rows(column))


def test_the_file_is_that_of_the_row(tmp_path: Path) -> None:
    for part, values in enumerate([[0, 1, 0], [1], [0, None]]):
        Dataset.from_dict({"label": values}, Features(label=NAMES["label"])).to_parquet(
            tmp_path / f"train-{part}.parquet"
        )
    found = load_splits(tmp_path)
    with pytest.raises(ValueError, match=r"train-2\.parquet, column 'label', row 1 .*, in 1 of 6 rows"):
        LabelColumn(found["train"], "label", found.origins["train"]).of(range(6))


def test_a_second_column_of_the_name(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label,label\na,0,1\nb,1,1\n")
    found = load_splits(tmp_path)
    with pytest.raises(ValueError, match=r"train\.csv, column 'label': there are 2 columns of this name"):
        LabelColumn(found["train"], "label", found.origins["train"])


def test_values_of_several_kinds(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"label": 1}\n{"label": "a"}\n')
    found = load_splits(tmp_path)
    with pytest.raises(
        ValueError, match=r"train\.jsonl, column 'label': .* there are values of several kinds"
    ):
        LabelColumn(found["train"], "label", found.origins["train"])


def test_data_in_memory_are_named_by_split() -> None:
    found = load_splits(DatasetDict(train=Dataset.from_dict({"label": [None]})), called="data[2]")
    with pytest.raises(ValueError, match=r"^data\[2\], split 'train', column 'label', row 0"):
        LabelColumn(found["train"], "label", found.origins["train"]).of([0])
