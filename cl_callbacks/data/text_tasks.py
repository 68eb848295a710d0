"""Sequences of text tasks for pretrained transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from cl_callbacks.data.divided_tasks import DividedTasks
from cl_callbacks.data.task_division import Scenario
from cl_callbacks.data.tokenised import Collate, Kind, Padding, tokenised, tokeniser


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
        scenario: ``"task"``: a head for each task, and labels numbered from 0 within the task; ``"domain"``:
            the same labels in all tasks; ``"class"``: one head over the labels of all tasks.
        task_column: the column whose values are the tasks.
        task_order: values of that column in the order of the tasks; others are left out. Default: all, in
            the order of the class numbers or else sorted.
        label_groups: the labels of each task, or their names; a mapping also gives the tasks' names.
        text_column: name of the column with the texts; in token classification, with lists of words.
        label_column: name of the column with the labels.
        config: name of the configuration, for a data set on the hub that has several.
        splits: names that the splits ``train``, ``validation`` and ``test`` have in the data; those not
            listed are left out. Default: these same names, as far as they exist.
        examples_per_label: maximum number of training texts for each label of a task, chosen at random;
            ``None`` for all.
        max_length: maximum length in tokens; longer texts are truncated. ``None`` for the model's limit.
        padding: ``"longest"`` to pad to the longest text of a batch; ``"max_length"`` to pad to that length.
        seed: seed of the choice of examples, and of the division of data without splits.
        epochs_per_task: as in :class:`~cl_callbacks.TaskSequence`.
        transition_batches: as in :class:`~cl_callbacks.TaskSequence`; must be 0 with a head for each task.
        shuffle_seed: as in :class:`~cl_callbacks.TaskSequence`.
        batch_size: batch size of training, per process.
        eval_batch_size: batch size of validation and test.
        num_workers: number of worker processes of each loader.

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

    def __init__(
        self,
        data: Any,
        *,
        tokenizer: str,
        kind: Kind = "sequence_classification",
        scenario: Scenario = "task",
        task_column: str | None = None,
        task_order: Sequence[str | int] | None = None,
        label_groups: Mapping[str, Sequence[str | int]] | Sequence[Sequence[str | int]] | None = None,
        text_column: str = "text",
        label_column: str = "label",
        config: str | None = None,
        splits: Mapping[str, str] | None = None,
        examples_per_label: int | None = None,
        max_length: int | None = 128,
        padding: Padding = "longest",
        seed: int = 0,
        epochs_per_task: int | None = None,
        transition_batches: int = 0,
        shuffle_seed: int | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 128,
        num_workers: int = 0,
    ) -> None:
        self.tokenizer, self.kind, self.text_column = tokenizer, kind, text_column
        self.max_length, self.padding = max_length, padding
        for name, value, known in [("kind", kind, get_args(Kind)), ("padding", padding, get_args(Padding))]:
            if value not in known:
                raise ValueError(f"{name}={value!r} is not one of {known}")
        if kind == "causal_lm" and scenario != "domain":
            raise ValueError("a causal language model has the same outputs in all tasks: scenario='domain'")
        if kind != "sequence_classification" and (label_groups or examples_per_label):
            raise ValueError("label_groups and examples_per_label are for kind='sequence_classification'")
        tokenise = tokeniser(tokenizer)
        super().__init__(
            data,
            prepare=lambda rows: tokenised(rows, tokenise, kind, text_column, label_column, max_length),
            labelled=kind != "causal_lm",
            scenario=scenario,
            task_column=task_column,
            task_order=task_order,
            label_groups=label_groups,
            label_column=label_column,
            config=config,
            splits=splits,
            examples_per_label=examples_per_label,
            seed=seed,
            epochs_per_task=epochs_per_task,
            transition_batches=transition_batches,
            shuffle_seed=shuffle_seed,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            collate_fn=Collate(tokenise, kind, padding, max_length),
        )
