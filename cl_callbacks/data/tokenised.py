"""Tokenisation of texts, and their collation into batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from cl_callbacks.data.task_rows import with_task
from cl_callbacks.guards.optional import optional
from cl_callbacks.guards.pretrained_files import from_pretrained

Kind = Literal["sequence_classification", "token_classification", "causal_lm"]
Padding = Literal["longest", "max_length"]


def tokeniser(name: str) -> Any:
    """Loads a tokeniser from the hub or a folder; without a padding token it pads with the end token."""
    found = from_pretrained(optional("transformers", "transformers").AutoTokenizer, name, "tokeniser")
    if found.pad_token is None:
        if found.eos_token is None:
            raise ValueError(f"the tokeniser {name} has neither a padding token nor an end token to pad with")
        found.pad_token = found.eos_token
    return found


def tokenised(
    data: Any, tokeniser: Any, kind: Kind, text_column: str, label_column: str, max_length: int | None
) -> Any:
    """Tokenises a data set into the columns that a model takes, and ``labels`` with unchanged values.

    In token classification a word's label is that of its first token; other tokens have none. A causal
    language model's labels are its tokens.

    The result is cached, as by any ``Dataset.map`` of Hugging Face. For the arguments see
    :class:`~cl_callbacks.TextTasks`; in token classification, a label is a list with one per word. The
    columns are there, and sound.
    """
    tokeniser("x", truncation=True, max_length=max_length)  # sets its truncation, part of the cache key
    columns = {"text": text_column, "label": label_column}
    return data.map(
        _rows,
        batched=True,
        remove_columns=data.column_names,
        fn_kwargs={"tokeniser": tokeniser, "kind": kind, "columns": columns, "max_length": max_length},
        desc="tokenising",
    )


def _rows(
    batch: Mapping[str, list[Any]],
    tokeniser: Any,
    kind: Kind,
    columns: Mapping[str, str],
    max_length: int | None,
) -> dict[str, Any]:
    words = kind == "token_classification"
    encoded = tokeniser(
        batch[columns["text"]], truncation=True, max_length=max_length, is_split_into_words=words
    )
    rows = {name: encoded[name] for name in tokeniser.model_input_names if name in encoded}
    if kind == "causal_lm":
        return rows | {"labels": rows["input_ids"]}
    labels = batch[columns["label"]]
    if words:
        labels = [_of_first_tokens(encoded.word_ids(i), own) for i, own in enumerate(labels)]
    return rows | {"labels": labels}


def _of_first_tokens(words: Sequence[int | None], labels: Sequence[Any]) -> list[Any]:
    before = [None, *words]
    return [
        None if word is None or word == last else labels[word]
        for word, last in zip(words, before, strict=False)
    ]


class Collate:
    """Collates rows into a batch of padded tensors, with ``task_id`` if rows have one.

    For the arguments see :class:`~cl_callbacks.TextTasks`.
    """

    def __init__(
        self, tokeniser: Any, kind: Kind, padding: Padding = "longest", max_length: int | None = None
    ) -> None:
        transformers = optional("transformers", "transformers")
        # A language model's labels are padded like token labels: DataCollatorForLanguageModeling would also
        # ignore every end token where that is the padding token.
        collator = (
            transformers.DataCollatorWithPadding
            if kind == "sequence_classification"
            else transformers.DataCollatorForTokenClassification
        )
        self.pad = collator(tokeniser, padding=padding, max_length=max_length)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns the batch as a dict; its tensors have shape ``(N, T)``, or ``(N,)`` for labels of texts."""
        return with_task(rows, lambda inputs: dict(self.pad(inputs)))
