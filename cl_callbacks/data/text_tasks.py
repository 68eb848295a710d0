"""Sequences of text tasks for pretrained transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from cl_callbacks.arguments import whole
from cl_callbacks.data.task_division import (
    SCENARIOS,
    Rows,
    Scenario,
    by_column,
    by_labels,
    class_names,
    column_of,
    distinct,
    few_of_each,
    numbered,
)
from cl_callbacks.data.task_sequence import TaskSequence
from cl_callbacks.data.text_source import load_splits
from cl_callbacks.data.tokenised import Collate, Kind, Padding, TextTask, tokenised, tokeniser


class TextTasks(TaskSequence):
    """A sequence of text tasks, tokenised once, whose batches are what transformers take.

    Tasks are the values of a column, or groups of labels, or data sets given as a list. A batch is a dict
    of ``input_ids``, ``attention_mask``, what else the tokeniser gives, and ``labels``, padded to its
    longest text; with a head for each task also ``task_id``, a number.

    Args:
        data: the name of a data set on the hub, a file, a folder, a ``DatasetDict`` or a mapping of splits
            to files (see :func:`~cl_callbacks.data.text_source.load_splits`); or a list of these, one for
            each task.
        tokenizer: the name of a model on the hub, or its folder.
        kind: ``"sequence_classification"``, one label for a text; ``"token_classification"``, one for each
            word; or ``"causal_lm"``, in which a text is its own label.
        scenario: ``"task"``: a head for each task, and labels numbered from 0 within the task; ``"domain"``:
            the same labels in all tasks; ``"class"``: one head over the labels of all tasks.
        task_column: the column whose values are the tasks.
        task_order: values of that column in the order of the tasks; others are left out. Default: all, in
            the order of their numbers or else sorted.
        label_groups: the labels of each task, or their names; as a mapping, with the tasks' names.
        text_column: of the texts; in token classification, of lists of words.
        label_column: of the labels.
        config: of a data set on the hub that has several.
        splits: what the data call the splits ``train``, ``validation`` and ``test``; those not named are
            left out. Default: by their own names, as far as there are.
        examples_per_label: at most so many training texts for each label of a task, chosen at random;
            ``None`` for all.
        max_length: of a text in tokens; longer ones are cut. ``None`` for the model's own limit.
        padding: ``"longest"``: to the longest text of a batch; ``"max_length"``: all alike.
        seed: of the choice of examples, and of the division of data without splits.
        epochs_per_task: as in :class:`~cl_callbacks.TaskSequence`.
        transition: as in :class:`~cl_callbacks.TaskSequence`; not with a head for each task.
        shuffle_seed: as in :class:`~cl_callbacks.TaskSequence`.
        batch_size: of training, per process.
        eval_batch_size: of validation and test.
        num_workers: of each loader.

    Attributes:
        num_labels: outputs of each head: one number, or with a head for each task one number for each;
            empty for a language model.
        task_names: values, names or numbers of the tasks.

    Raises:
        ValueError: data, columns or labels that do not make such tasks.
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
        transition: int = 0,
        shuffle_seed: int | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 128,
        num_workers: int = 0,
    ) -> None:
        self.data, self.tokenizer, self.kind, self.scenario = data, tokenizer, kind, scenario
        self.task_column, self.task_order, self.label_groups = task_column, task_order, label_groups
        self.text_column, self.label_column = text_column, label_column
        self.config, self.splits, self.seed = config, splits, seed
        self.examples_per_label, self.max_length, self.padding = examples_per_label, max_length, padding
        self._check(transition)
        one_each = isinstance(data, Sequence) and not isinstance(data, str)
        sources = [load_splits(source, config, splits, seed) for source in (data if one_each else [data])]
        self.task_names, rows = self._divided(sources)
        if not one_each:
            sources = sources * len(rows)
        self.num_labels: list[int] = []
        numbers: list[Any] = [None] * len(rows)
        if kind != "causal_lm":
            numbers, self.num_labels = self._numbers(sources, rows, separate=one_each)
        tokenise = tokeniser(tokenizer)
        super().__init__(
            self._tasks(sources, rows, numbers, tokenise),
            epochs_per_task=epochs_per_task,
            transition=transition,
            shuffle_seed=shuffle_seed,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            collate_fn=Collate(tokenise, kind, padding, max_length),
        )

    def _check(self, transition: int) -> None:
        for name, value, known in [
            ("kind", self.kind, get_args(Kind)),
            ("scenario", self.scenario, SCENARIOS),
            ("padding", self.padding, get_args(Padding)),
        ]:
            if value not in known:
                raise ValueError(f"{name}={value!r} is not one of {known}")
        if self.kind == "causal_lm" and self.scenario != "domain":
            raise ValueError("a causal language model has the same outputs in all tasks: scenario='domain'")
        if self.kind != "sequence_classification" and (self.label_groups or self.examples_per_label):
            raise ValueError("label_groups and examples_per_label are for kind='sequence_classification'")
        if self.scenario == "task" and transition:
            raise ValueError(
                "transition mixes tasks within a batch, and with scenario='task' a batch has one head: use "
                "scenario='domain' or 'class'"
            )
        if self.examples_per_label is not None:
            whole("examples_per_label", self.examples_per_label, least=1)

    def _divided(self, sources: list[dict[str, Any]]) -> tuple[list[Any], list[Rows]]:
        several = not isinstance(self.data, str) and isinstance(self.data, Sequence)
        ways = [several, self.task_column is not None, self.label_groups is not None]
        if sum(ways) != 1:
            raise ValueError(
                "say in one way what the tasks are: task_column='domain', label_groups=[[0, 1], [2, 3]], or "
                "a list of data sets"
            )
        if self.task_column is not None:
            names, rows = by_column(sources[0], self.task_column, self.task_order)
        elif self.label_groups is not None:
            names, rows = by_labels(sources[0], self.label_column, self.label_groups)
        else:
            names = [source if isinstance(source, str) else i for i, source in enumerate(self.data)]
            rows = [{split: list(range(len(d))) for split, d in source.items()} for source in sources]
        for name, task in zip(names, rows, strict=True):
            empty = [split for split, chosen in task.items() if not chosen]
            if empty:
                raise ValueError(f"task {name} has no rows in the splits {empty}")
        return names, rows

    def _numbers(
        self, sources: list[dict[str, Any]], rows: list[Rows], separate: bool
    ) -> tuple[list[dict[Any, int]], list[int]]:
        column = self.label_column
        known: dict[int, list[Any]] = {}  # columns of sources that several tasks share
        labels: list[set[Any]] = []
        for source, task in zip(sources, rows, strict=True):
            own: set[Any] = set()
            for split, chosen in task.items():
                values = known.setdefault(id(source[split]), []) or column_of(source[split], column)
                known[id(source[split])] = values
                own |= distinct(values[i] for i in chosen)
            labels.append(own)
        names = [class_names(source["train"], column) for source in sources]
        if self.scenario == "domain" and any(own != names[0] for own in names):
            raise ValueError(f"scenario='domain' means the same labels in all tasks; these have {names}")
        return numbered(self.scenario, labels, names[0], separate)

    def _tasks(
        self, sources: list[dict[str, Any]], rows: list[Rows], numbers: list[Any], tokenise: Any
    ) -> list[dict[str, TextTask]]:
        known: dict[int, Any] = {}
        tasks = []
        for index, (source, chosen) in enumerate(zip(sources, rows, strict=True)):
            task = {}
            for split, own in chosen.items():
                data = source[split]
                if id(data) not in known:
                    known[id(data)] = tokenised(
                        data, tokenise, self.kind, self.text_column, self.label_column, self.max_length
                    )
                if split == "train" and self.examples_per_label is not None:
                    own = few_of_each(
                        column_of(data, self.label_column), own, self.examples_per_label, self.seed
                    )
                task_id = index if self.scenario == "task" else None
                task[split] = TextTask(known[id(data)].select(own), numbers[index], task_id)
            tasks.append(task)
        return tasks
