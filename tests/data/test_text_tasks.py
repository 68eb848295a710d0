"""Sequences of text tasks: which rows and labels each has, from data of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict

from cl_callbacks import TextTasks
from cl_callbacks.data.data_source import load_splits
from cl_callbacks.data.task_division import numbered
from tests.tiny_transformers import INTENTS, requests, tagged_words, tiny_encoder, tiny_language_model


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def by_domain(encoder: str, data: Any = None, **options: Any) -> TextTasks:
    settings = {"tokenizer": encoder, "label_column": "intent", "task_column": "domain"} | options
    return TextTasks(requests() if data is None else data, **settings)


def labels(data: TextTasks, split: str = "train") -> list[list[int]]:
    return [sorted({row["labels"] for row in task[split]}) for task in data.tasks]


# -- scenarios -------------------------------------------------------------------------------------


def test_with_a_head_for_each_task_labels_count_from_0_and_batches_say_their_task(encoder: str) -> None:
    data = by_domain(encoder, scenario="task", batch_size=5)
    assert labels(data) == labels(data, "test") == [[0, 1], [0, 1]]
    assert (data.num_labels, data.task_names) == ([2, 2], ["bank", "music"])
    assert [next(iter(loader))["task_id"] for loader in data.val_dataloader()] == [0, 1]
    data.current_task = 1
    batch = next(iter(data.train_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "labels", "task_id"}
    assert batch["task_id"] == 1
    assert batch["labels"].shape == (5,)


def test_with_one_head_over_all_labels_they_stay_apart(encoder: str) -> None:
    data = by_domain(encoder, scenario="class")
    assert labels(data) == [[0, 1], [2, 3]]
    assert data.num_labels == [4]
    assert "task_id" not in next(iter(data.train_dataloader()))


def test_domains_share_their_labels(encoder: str) -> None:
    rows = {"text": ["pay", "stop"] * 4, "label": ["yes", "no"] * 4, "shop": [1, 1, 2, 2] * 2}
    data = TextTasks(
        Dataset.from_dict(rows).train_test_split(test_size=4, shuffle=False),
        tokenizer=encoder, scenario="domain", task_column="shop",
    )  # fmt: skip
    assert labels(data) == [[0, 1], [0, 1]]
    assert (data.num_labels, data.task_names) == ([2], [1, 2])
    assert [row["labels"] for row in data.tasks[0]["train"]] == [1, 0]  # yes after no


def test_rows_and_their_labels_stay_together(encoder: str) -> None:
    data = by_domain(encoder, scenario="class")
    source = requests()["train"]
    texts = [
        data.collate_fn.pad.tokenizer.decode(r["input_ids"][1:-1]) for t in data.tasks for r in t["train"]
    ]
    assert texts == list(source["text"])
    assert [r["labels"] for t in data.tasks for r in t["train"]] == list(source["intent"])


@pytest.mark.parametrize(
    ("scenario", "expected", "heads"),
    [("task", [[0, 1, 2, 3]] * 2, [4, 4]), ("class", [[0, 1, 2, 3], [4, 5, 6, 7]], [8]),
     ("domain", [[0, 1, 2, 3]] * 2, [4])],
)  # fmt: skip
def test_a_list_of_data_sets_is_a_list_of_tasks(
    encoder: str, scenario: Any, expected: list[list[int]], heads: list[int]
) -> None:
    data = TextTasks([requests()] * 2, tokenizer=encoder, label_column="intent", scenario=scenario)
    assert labels(data) == expected
    assert data.num_labels == heads
    assert len(data.tasks[0]["train"]) == 16


def test_groups_of_labels_by_number_or_name(encoder: str) -> None:
    for groups, names in [([[3, 0], [1]], [0, 1]), ({"a": ["stop", "pay"], "b": ["block"]}, ["a", "b"])]:
        data = by_domain(encoder, task_column=None, label_groups=groups, scenario="class")
        assert labels(data) == [[0, 3], [1]]
        assert data.task_names == names


def test_the_order_of_tasks_may_be_given(encoder: str) -> None:
    for order in (["music", "bank"], [1, 0]):
        data = by_domain(encoder, task_order=order, scenario="class")
        assert labels(data) == [[2, 3], [0, 1]]
        assert data.task_names == ["music", "bank"]
    assert len(by_domain(encoder, task_order=["music"])) == 1


# -- other kinds -----------------------------------------------------------------------------------


def test_a_word_has_its_label_on_its_first_token(encoder: str) -> None:
    data = TextTasks(
        tagged_words(), tokenizer=encoder, kind="token_classification", scenario="class",
        text_column="tokens", label_column="tags", task_column="domain", task_order=["music", "bank"],
    )  # fmt: skip
    first = data.tasks[0]["train"][0]  # [CLS] play ##s my song ##s [SEP]
    assert first["labels"] == [-100, 2, -100, 0, 1, -100, -100]
    assert data.num_labels == [3]
    batch = next(iter(data.val_dataloader()[0]))
    assert batch["labels"].shape == batch["input_ids"].shape == (2, 7)
    assert batch["labels"][1].tolist() == [-100, 2, 0, 1, -100, -100, -100]


def test_a_language_models_labels_are_its_tokens_without_the_padding(tmp_path: Path) -> None:
    data = TextTasks(
        requests(), tokenizer=tiny_language_model(tmp_path), kind="causal_lm", scenario="domain",
        task_column="domain", eval_batch_size=8,
    )  # fmt: skip
    batch = next(iter(data.val_dataloader()[0]))
    present = batch["attention_mask"].bool()
    assert not present.all()
    assert (batch["labels"][present] == batch["input_ids"][present]).all()
    assert (batch["labels"][~present] == -100).all()
    assert data.num_labels == []


# -- batches ---------------------------------------------------------------------------------------


def test_texts_are_padded_to_the_longest_of_their_batch_or_all_alike(encoder: str) -> None:
    widths = {b["input_ids"].shape[1] for b in by_domain(encoder, batch_size=1).train_dataloader()}
    assert widths == {4, 5, 6, 7}
    data = by_domain(encoder, batch_size=1, padding="max_length", max_length=9)
    assert {b["input_ids"].shape[1] for b in data.train_dataloader()} == {9}
    assert max(len(row["input_ids"]) for row in by_domain(encoder, max_length=5).tasks[0]["train"]) == 5


def test_a_batch_of_several_heads_is_refused(encoder: str) -> None:
    data = by_domain(encoder)
    mixed = [task["train"][0] for task in data.tasks]
    with pytest.raises(ValueError, match=r"must come from one task .* \[0, 1\]"):
        data.collate_fn(mixed)


def test_few_examples_of_each_label_are_chosen_by_seed(encoder: str) -> None:
    def chosen(seed: int) -> list[list[int]]:
        data = by_domain(encoder, requests(copies=5), examples_per_label=3, seed=seed)
        assert [len(task["test"]) for task in data.tasks] == [40, 40]
        assert [sorted(r["labels"] for r in task["train"]) for task in data.tasks] == [[0] * 3 + [1] * 3] * 2
        return [row["input_ids"] for task in data.tasks for row in task["train"]]

    assert chosen(1) == chosen(1)
    assert chosen(1) != chosen(2)


def test_evaluation_may_see_few_examples_of_each_label_of_a_sorted_file(encoder: str) -> None:
    def chosen(seed: int) -> list[list[int]]:
        source = DatasetDict({s: rows.sort("intent") for s, rows in requests(copies=5).items()})
        source["validation"] = source["test"]
        data = by_domain(encoder, source, eval_examples_per_label=3, seed=seed)
        for split, each in (("train", 20), ("validation", 3), ("test", 3)):
            of_task = [sorted(row["labels"] for row in task[split]) for task in data.tasks]
            assert of_task == [[0] * each + [1] * each] * 2, split
        return [row["input_ids"] for task in data.tasks for row in task["test"]]

    assert chosen(1) == chosen(1)
    assert chosen(1) != chosen(2)


def test_worker_processes_load_the_same(encoder: str) -> None:
    own, theirs = (list(by_domain(encoder, num_workers=n).val_dataloader()[1]) for n in (0, 1))
    assert [b["input_ids"].tolist() for b in own] == [b["input_ids"].tolist() for b in theirs]


# -- sources ---------------------------------------------------------------------------------------


def write(kind: str, folder: Path) -> Any:
    data = requests()
    for name, split in data.items():
        match kind:
            case "parquet":
                split.to_parquet(folder / f"{name}.parquet")
            case "parts":
                split.select(range(9)).to_parquet(folder / f"{name}-00000-of-00002.parquet")
                split.select(range(9, 16)).to_parquet(folder / f"{name}-00001-of-00002.parquet")
            case "json":
                split.to_json(folder / f"{name}.jsonl")
            case "csv" | "files":
                split.to_csv(folder / f"{name}.csv")
    if kind == "files":
        return {name: str(folder / f"{name}.csv") for name in data}
    if kind == "saved":
        data.save_to_disk(folder)
    (folder / "labels.json").write_text("[]")  # of no split
    return str(folder)


@pytest.mark.parametrize("kind", ["parquet", "parts", "json", "csv", "files", "saved"])
def test_data_from_every_place_are_the_same(kind: str, tmp_path: Path) -> None:
    found = load_splits(write(kind, tmp_path))
    assert list(found) == ["train", "test"]
    for split in found.values():
        assert list(split["text"]) == list(requests()["train"]["text"])
        assert list(split["intent"]) == list(requests()["train"]["intent"])


def test_data_without_splits_are_divided_by_seed(tmp_path: Path) -> None:
    requests()["train"].to_parquet(tmp_path / "all.parquet")
    for source in (str(tmp_path / "all.parquet"), requests()["train"]):
        found = load_splits(source, seed=1)
        assert {name: len(split) for name, split in found.items()} == {"train": 12, "test": 4}
        assert list(found["test"]["text"]) == list(load_splits(source, seed=1)["test"]["text"])


def test_splits_of_other_names(tmp_path: Path) -> None:
    requests()["train"].to_parquet(tmp_path / "small.parquet")
    requests()["train"].select(range(3)).to_parquet(tmp_path / "dev.parquet")
    names = {"train": "small", "validation": "dev"}
    found = load_splits(str(tmp_path), splits=names)
    assert {name: len(split) for name, split in found.items()} == {"train": 16, "validation": 3}
    with pytest.raises(ValueError, match=r"no split \['dev'\]; they have \['train', 'test'\]"):
        load_splits(requests(), splits={"train": "train", "validation": "dev"})


@pytest.mark.parametrize(
    ("source", "error", "said"),
    [
        ("nowhere/train.parquet", FileNotFoundError, "no folder 'nowhere' either"),
        ("./nowhere", FileNotFoundError, "no file or folder"),
        (3, ValueError, "got a int"),
        (DatasetDict(test=Dataset.from_dict({"text": ["a"]})), ValueError, r"no split \['train'\]"),
        ({"train": "a.parquet", "test": "b.csv"}, ValueError, "of one kind"),
    ],
)
def test_what_is_no_data(source: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        load_splits(source)


def test_the_nearest_name_is_said(tmp_path: Path) -> None:
    (tmp_path / "clinc150").mkdir()
    with pytest.raises(FileNotFoundError, match=r"the nearest name there is 'clinc150'$"):
        load_splits(str(tmp_path / "clinc_150"))


@pytest.mark.parametrize("source", ["a" * 5000, "a\0b.csv"])
def test_what_is_no_path(source: str) -> None:
    with pytest.raises(FileNotFoundError) as error:
        load_splits(source)
    assert len(str(error.value)) < 300


def test_a_split_without_rows_or_of_another_kind() -> None:
    data = requests()
    with pytest.raises(ValueError, match=r"^data, split 'test' has no rows"):
        load_splits(data | {"test": data["test"].select([])})
    assert list(load_splits(data | {"test": data["test"].select([])}, splits={"train": "train"})) == ["train"]
    with pytest.raises(ValueError, match=r"^data, split 'test' is a IterableDataset"):
        load_splits(data | {"test": data["test"].to_iterable_dataset()})
    with pytest.raises(ValueError, match=r"^data: 1 rows cannot be divided"):
        load_splits(data["train"].select([0]))


def test_a_folder_without_splits_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "other.txt").touch()
    with pytest.raises(ValueError, match=r"no file of a split .* \['other.txt'\]"):
        load_splits(tmp_path)


# -- what cannot work ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "regression"}, "kind must be 'sequence_classification'"),
        ({"scenario": "heads"}, "scenario must be 'task'"),
        ({"scenario": "domain"}, "share none: use 'class'"),
        ({"kind": "causal_lm"}, "same outputs in all tasks"),
        ({"task_column": None}, "in one way what the tasks are"),
        ({"label_groups": [[0], [1]]}, "in one way what the tasks are"),
        ({"task_column": "shop"}, r"no column 'shop'; they have \['text', 'intent', 'domain'\]"),
        ({"task_order": ["bank", "zoo"]}, r"no training data has domain=\['zoo'\]"),
        ({"label_column": "label"}, "no column 'label'"),
        ({"task_column": None, "label_groups": [["pay", "fly"]]}, r"no training data has intent=\['fly'\]"),
        ({"examples_per_label": 0}, "examples_per_label must be a whole number, at least 1"),
        ({"eval_examples_per_label": 0}, "eval_examples_per_label must be a whole number, at least 1"),
        ({"transition_batches": 3, "epochs_per_task": 1}, "a batch has one head"),
        ({"text_column": "words"}, "no column 'words'"),
    ],
)
def test_what_cannot_work_is_said(encoder: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        by_domain(encoder, **options)


def test_rows_that_belong_to_no_task_need_no_label(encoder: str) -> None:
    rows = {"text": ["pay", "stop", "my"], "label": [0, 1, -1], "shop": ["a", "b", None]}
    data = Dataset.from_dict(rows)
    source = DatasetDict(train=data, test=data)
    groups = TextTasks(source, tokenizer=encoder, label_groups=[[0], [1]], scenario="class")
    assert [len(task["train"]) for task in groups.tasks] == [1, 1]
    column = TextTasks(source, tokenizer=encoder, task_column="shop", task_order=["b", "a"])
    assert column.num_labels == [1, 1]
    with pytest.raises(ValueError, match=r"column 'label', row 2 .*: the label is -1"):
        TextTasks(source, tokenizer=encoder, label_groups=[[0, -1], [1]])
    with pytest.raises(ValueError, match=r"split 'train', column 'shop', row 2 .*: there is no value"):
        TextTasks(source, tokenizer=encoder, task_column="shop")


def test_a_task_is_one_value(encoder: str) -> None:
    data = Dataset.from_dict({"text": ["pay"], "label": [0], "shop": [["a"]]})
    with pytest.raises(
        ValueError, match="column 'shop': one value in each row is needed, and there are lists"
    ):
        by_domain(encoder, DatasetDict(train=data), label_column="label", task_column="shop")


def test_tasks_of_other_names_in_another_split_are_refused(encoder: str) -> None:
    data = requests()
    data["test"] = data["test"].cast_column("domain", ClassLabel(names=["music", "bank"]))
    with pytest.raises(
        ValueError, match=r"split 'test', column 'domain': the classes are \['music', 'bank'\]"
    ):
        by_domain(encoder, data)


def test_a_task_without_evaluation_rows_is_refused(encoder: str) -> None:
    data = requests()
    data["test"] = data["test"].select(range(8))
    with pytest.raises(ValueError, match=r"task music has no rows in the splits \['test'\]"):
        by_domain(encoder, data)


def test_domains_with_labels_of_other_names_are_refused(encoder: str) -> None:
    other = requests().cast_column("intent", ClassLabel(names=list("abcd")))
    with pytest.raises(ValueError, match="the same labels in all tasks; these have"):
        TextTasks([requests(), other], tokenizer=encoder, label_column="intent", scenario="domain")


def test_whole_numbers_as_texts_are_numbered_by_their_values() -> None:
    labels = {str(number) for number in range(12)}
    numbers, heads = numbered("domain", [labels, labels], None, separate=False)
    assert numbers[0] == {str(number): number for number in range(12)}
    assert heads == [12]


def test_strings_are_numbered_in_order() -> None:
    numbers, heads = numbered("class", [{"b"}, {"a", "c"}], None, separate=False)
    assert numbers == [{"a": 0, "b": 1, "c": 2}] * 2
    assert heads == [3]


def test_every_argument_is_kept_under_its_name(encoder: str) -> None:
    data = by_domain(encoder, max_length=7, seed=3)
    assert (data.tokenizer, data.task_column, data.max_length, data.seed) == (encoder, "domain", 7, 3)


def test_a_configuration_file_builds_it(encoder: str, tmp_path: Path) -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    requests()["train"].to_parquet(tmp_path / "train.parquet")
    requests()["test"].to_parquet(tmp_path / "test.parquet")
    parser = jsonargparse.ArgumentParser()
    parser.add_subclass_arguments(TextTasks, "data")
    settings = {
        "data": str(tmp_path), "tokenizer": encoder, "label_column": "intent",
        "label_groups": {"first": INTENTS[:2], "second": INTENTS[2:]}, "epochs_per_task": 2,
    }  # fmt: skip
    config = parser.parse_object({"data": {"class_path": "cl_callbacks.TextTasks", "init_args": settings}})
    data = parser.instantiate_classes(config).data
    assert data.task_names == ["first", "second"]
    assert data.epochs_per_task == 2
