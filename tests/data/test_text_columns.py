"""Texts and words that cannot be tokenised are refused by file, column and row before any is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict

from cl_callbacks import TextTasks
from cl_callbacks.data import text_tasks
from cl_callbacks.data.data_source import load_splits
from cl_callbacks.data.origin import Origin
from cl_callbacks.data.text_columns import check_texts, check_words
from tests.packages import NEW_PANDAS
from tests.tiny_transformers import requests, tagged_words, tiny_encoder, tiny_language_model

ORIGIN = Origin("here", ("texts.json",))


def not_utf8(good: list[str], bad: bytes) -> Any:
    raw = pa.array([*(text.encode() for text in good), bad])
    return pa.StringArray.from_buffers(len(raw), *raw.buffers()[1:])


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["a", None], "row 1 .*: there is no text, in 1 of 2 rows"),
        ([None, None], "texts are needed, and there are no values"),
        ([1, 2], "texts are needed, and there are whole numbers"),
        ([["a"], ["b"]], "texts are needed, and there are lists of texts"),
        ([b"a", b"b"], "texts are needed, and there are binary values"),
        (not_utf8(["a", "b"], b"caf\xe9"), "row 2 .*: the text is not UTF-8, in 1 of 3 rows"),
    ],
)
def test_what_is_no_text(texts: Any, said: str) -> None:
    data = Dataset(pa.table({"text": texts}))
    with pytest.raises(ValueError, match=rf"^texts.json, column 'text'.*{said}"):
        check_texts(data, "text", ORIGIN)


def test_texts_of_any_batch_are_looked_at() -> None:
    data = Dataset.from_dict({"text": [*["a"] * 20_003, None, "b", None]})
    with pytest.raises(ValueError, match=r"row 20003 .* in 2 of 20006 rows"):
        check_texts(data, "text", ORIGIN)
    check_texts(data.select([1, 2, 20_004]), "text", ORIGIN)
    with pytest.raises(ValueError, match=r"row 1 .* in 1 of 2 rows"):
        check_texts(data.select([4, 20_003]), "text", ORIGIN)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("null,0", "no text.* NA, null"),
        pytest.param("pa\0y,0", "has a NUL byte", marks=NEW_PANDAS),
    ],
)
def test_what_csv_files_do_to_texts(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "train.csv").write_text(f"text,label\npay,1\n{line}\n")
    found = load_splits(tmp_path)
    with pytest.raises(ValueError, match=rf"train\.csv, column 'text', row 1 .*{said}"):
        check_texts(found["train"], "text", found.origins["train"])


@pytest.mark.parametrize(
    ("words", "tags", "column", "said"),
    [
        ([["a", "b"], ["c"]], [[0], [1]], "tags", "row 0 .*: there are not as many labels as words"),
        ([["a"], ["c"]], [[0], [1, 1]], "tags", "row 1 .*: there are not as many labels as words"),
        ([["a"], ["c"]], [[0], None], "tags", "row 1 .*: there is no list of labels"),
        ([["a"], ["c"]], [0, 1], "tags", "a list with one label per word is needed"),
        ([["a"], None], [[0], [1]], "words", "row 1 .*: there is no list of words"),
        ([["a"], [], ["b", None]], [[0], [], [1, 1]], "words", "row 2 .*: a word is missing"),
        (["a", "b"], [[0], [1]], "words", "a list with the words is needed, and there are texts"),
        ([[1], [2]], [[0], [1]], "words", "words are needed, and there are lists of whole numbers"),
    ],
)
def test_what_are_no_words(words: Any, tags: Any, column: str, said: str) -> None:
    data = Dataset.from_dict({"words": words, "tags": tags})
    with pytest.raises(ValueError, match=rf"^texts.json, column '{column}'.*{said}"):
        check_words(data, "words", "tags", ORIGIN)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("text", ["pay", None], "column 'text', row 1 .*: there is no text"),
        ("intent", [-1, 0], "column 'intent', row 0 .*: the label is -1"),
        ("intent", [0, 10**6], "column 'intent', row 1 .*: the largest label is 1000000"),
        ("domain", ["a", None], "column 'domain', row 1 .*: there is no value"),
    ],
)
def test_nothing_is_tokenised_before_all_is_checked(
    encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str, values: list[Any], said: str
) -> None:
    rows = {"text": ["pay", "stop"], "intent": [0, 1], "domain": ["a", "a"]}
    Dataset.from_dict(rows).to_parquet(tmp_path / "train.parquet")
    Dataset.from_dict(rows | {column: values}).to_parquet(tmp_path / "test.parquet")
    monkeypatch.setattr(text_tasks, "tokenised", lambda *_: pytest.fail("tokenised too early"))
    with pytest.raises(ValueError, match=rf"test\.parquet, {said}"):
        TextTasks(
            str(tmp_path), tokenizer=encoder, label_column="intent", scenario="domain", task_column="domain"
        )


def test_a_text_without_tokens(tmp_path: Path) -> None:
    data = requests()
    data["test"] = data["test"].map(lambda row, i: {"text": "" if i == 5 else row["text"]}, with_indices=True)
    with pytest.raises(ValueError, match=r"split 'test', column 'text', row 5 .*: the text has no tokens"):
        TextTasks(
            data, tokenizer=tiny_language_model(tmp_path), kind="causal_lm", scenario="domain",
            task_column="domain",
        )  # fmt: skip


def test_words_labelled_as_of_no_interest_are_ignored(encoder: str) -> None:
    rows = {"words": [["pay", "my", "bill"], ["my", "card"]], "tags": [[1, -100, 0], [-100, 0]]}
    split = Dataset.from_dict(rows)
    data = TextTasks(
        [DatasetDict(train=split, test=split)], tokenizer=encoder, kind="token_classification",
        text_column="words", label_column="tags", scenario="domain",
    )  # fmt: skip
    assert data.num_labels == [2]
    assert [row["labels"] for row in data.tasks[0]["train"]] == [
        [-100, 1, -100, 0, -100],
        [-100, -100, 0, -100],
    ]


@pytest.mark.parametrize("labels", [[True, False], [1.0, 0.0], ["1", "0"]])
def test_labels_are_numbers_whatever_they_are_written_as(encoder: str, labels: list[Any]) -> None:
    split = Dataset.from_dict({"text": ["pay", "stop"], "label": labels})
    data = TextTasks([DatasetDict(train=split, test=split)], tokenizer=encoder, scenario="domain")
    (batch,) = data.val_dataloader()[0]
    assert batch["labels"].tolist() == [1, 0]
    assert not batch["labels"].is_floating_point()


def test_tags_of_another_split_are_checked_too(encoder: str) -> None:
    data = tagged_words()
    data["test"] = Dataset.from_dict({"tokens": [["my"]], "tags": [[0, 1]], "domain": ["bank"]})
    with pytest.raises(ValueError, match=r"split 'test', column 'tags', row 0 .* as many labels as words"):
        TextTasks(
            data, tokenizer=encoder, kind="token_classification", scenario="class", text_column="tokens",
            label_column="tags", task_column="domain", task_order=["bank"],
        )  # fmt: skip
