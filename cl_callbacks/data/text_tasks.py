"""Sequences of text tasks for pretrained transformers."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from cl_callbacks.data.divided_tasks import DividedTasks
from cl_callbacks.data.origin import Origin
from cl_callbacks.data.sequence_options import DividedOptions
from cl_callbacks.data.text_columns import check_texts, check_tokens, check_words
from cl_callbacks.data.tokenised import Collate, Kind, Padding, tokenised, tokeniser
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import Bounds


class TextTasks(DividedTasks):
    """A sequence of text tasks, tokenised once, with batches for networks of ``transformers``.

    Tasks are the values of a column, or groups of labels, or data sets given as a list. A batch is a dict
    of ``input_ids``, ``attention_mask``, further inputs that the tokeniser returns, and ``labels``, padded to
    its longest text; with a head for each task also ``task_id``, an integer.

    Args:
        data: the name of a data set on the hub, a file, a folder, a ``DatasetDict`` or a mapping of splits
            to files (see :func:`~cl_callbacks.data.data_source.load_splits`); or a list of these, one for
            each task.
        tokenizer: the name of a model on the hub, or its folder, whose tokeniser is used.
        kind: ``"sequence_classification"``, one label for a text; ``"token_classification"``, one for each
            word; or ``"causal_lm"``, whose labels are the tokens themselves.
        text_column: name of the column with the texts; in token classification, with lists of words.
        max_length: maximum length in tokens; longer texts are truncated. ``None`` for the model's limit.
        padding: ``"longest"`` to pad to the longest text of a batch; ``"max_length"`` to pad to that length.
        options: ``scenario``, ``task_column``, ``label_groups``, ``batch_size`` and others: see
            :class:`~cl_callbacks.data.divided_tasks.DividedTasks`.

    Attributes:
        num_labels: number of outputs of each head: a list of one number, or of one for each task with a
            head for each; empty for a language model.
        task_names: the tasks' column values, names or numbers.

    Raises:
        ValueError: data, columns or labels from which the tasks cannot be built.
        FileNotFoundError: a path that does not exist.
        ImportError: ``transformers`` is not installed.

    Example:
        >>> data = TextTasks("clinc150/", tokenizer="bert-base-uncased", label_column="intent",
        ...     task_column="domain", scenario="task", epochs_per_task=2)  # doctest: +SKIP
        >>> data.num_labels, data.task_names[0]  # doctest: +SKIP
        ([15, 15, 15, 15, 15, 15, 15, 15, 15, 15], 'banking')
    """

    @checked(max_length=Bounds(least=1, most=2**24))
    def __init__(
        self,
        data: Any,
        *,
        tokenizer: str,
        kind: Kind = "sequence_classification",
        text_column: str = "text",
        max_length: int | None = 128,
        padding: Padding = "longest",
        **options: Unpack[DividedOptions],
    ) -> None:
        self.tokenizer, self.kind, self.text_column = tokenizer, kind, text_column
        self.max_length, self.padding = max_length, padding
        if kind == "causal_lm" and options.get("scenario") != "domain":
            raise ValueError("a causal language model has the same outputs in all tasks: scenario='domain'")
        of_labels = ("label_groups", "examples_per_label", "eval_examples_per_label")
        if kind != "sequence_classification" and any(options.get(name) for name in of_labels):
            raise ValueError(f"{', '.join(of_labels)} are for kind='sequence_classification'")
        tokenise, words = tokeniser(tokenizer), kind == "token_classification"

        def check(rows: Any, origin: Origin) -> None:
            if words:
                check_words(rows, text_column, self.label_column, origin)
            else:
                check_texts(rows, text_column, origin)

        def prepare(rows: Any, origin: Origin) -> Any:
            found = tokenised(rows, tokenise, kind, text_column, self.label_column, max_length)
            check_tokens(found, text_column, origin)
            return found

        super().__init__(
            data,
            check=check,
            prepare=prepare,
            labelled=kind != "causal_lm",
            words=words,
            collate_fn=Collate(tokenise, kind, padding, max_length),
            **options,
        )
