"""Base of task sequences made from Hugging Face data sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from typing_extensions import Unpack

from cl_callbacks.data.data_source import Splits, load_splits
from cl_callbacks.data.label_column import LabelColumn, check_alike, check_width
from cl_callbacks.data.origin import Origin
from cl_callbacks.data.sequence_options import SequenceOptions
from cl_callbacks.data.task_division import (
    RowsBySplit,
    Scenario,
    by_column,
    by_labels,
    column_of,
    few_of_each,
    numbered,
)
from cl_callbacks.data.task_rows import TaskRows
from cl_callbacks.data.task_sequence import TaskSequence
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import AT_LEAST_ONE, NON_NEGATIVE


class DividedTasks(TaskSequence):
    """Divides Hugging Face data sets into tasks and numbers their labels; subclasses prepare the rows.

    Args:
        data: as in :class:`~cl_callbacks.TextTasks`.
        check: refuses a data set whose rows cannot be prepared; all are checked before one is prepared.
        prepare: maps a data set to the rows that are served, with a column ``labels``.
        collate_fn: makes a batch of such rows.
        labelled: whether rows have labels that must be numbered.
        words: whether a row has a list of labels, one for each word.
        scenario: ``"task"``: a head for each task, and labels numbered from 0 within the task; ``"domain"``:
            the same labels in all tasks; ``"class"``: one head over the labels of all tasks.
        task_column: the column whose values are the tasks.
        task_order: values of that column in the order of the tasks; others are left out. Default: all, in
            the order of the class numbers or else sorted.
        label_groups: the labels of each task, or their names; a mapping also gives the tasks' names.
        label_column: name of the column with the labels.
        config: name of the configuration, for a data set on the hub that has several.
        splits: names that the splits ``train``, ``validation`` and ``test`` have in the data; those not
            listed are left out. Default: these same names, as far as they exist.
        examples_per_label: maximum number of training examples for each label of a task, chosen at random;
            ``None`` for all.
        eval_examples_per_label: the same for each of validation and test. The Trainer's ``limit_val_batches``
            takes the first rows, which in a sorted file are of few labels.
        seed: seed of the choice of examples, and of the division of data without splits.
        eval_batch_size: batch size of validation and test.
        options: ``epochs_per_task``, ``batch_size`` and others of :class:`~cl_callbacks.TaskSequence`;
            ``transition_batches`` must be 0 with a head for each task.

    Raises:
        ValueError: data, columns or labels from which the tasks cannot be built.
        FileNotFoundError: a path that does not exist.
    """

    @checked(
        examples_per_label=AT_LEAST_ONE,
        eval_examples_per_label=AT_LEAST_ONE,
        seed=NON_NEGATIVE,
        eval_batch_size=AT_LEAST_ONE,
    )
    def __init__(
        self,
        data: Any,
        *,
        check: Callable[[Any, Origin], None],
        prepare: Callable[[Any, Origin], Any],
        collate_fn: Callable[[list[Any]], Any],
        labelled: bool = True,
        words: bool = False,
        scenario: Scenario = "task",
        task_column: str | None = None,
        task_order: Sequence[str | int] | None = None,
        label_groups: Mapping[str, Sequence[str | int]] | Sequence[Sequence[str | int]] | None = None,
        label_column: str = "label",
        config: str | None = None,
        splits: Mapping[str, str] | None = None,
        examples_per_label: int | None = None,
        eval_examples_per_label: int | None = None,
        seed: int = 0,
        eval_batch_size: int = 128,
        **options: Unpack[SequenceOptions],
    ) -> None:
        self.data, self.scenario, self.label_column = data, scenario, label_column
        self.task_column, self.task_order, self.label_groups = task_column, task_order, label_groups
        self.config, self.splits, self.seed = config, splits, seed
        self.examples_per_label = examples_per_label
        self.eval_examples_per_label = eval_examples_per_label
        if scenario == "task" and options.get("transition_batches"):
            raise ValueError(
                "transition_batches mixes tasks within a batch, and with scenario='task' a batch has one "
                "head: use scenario='domain' or 'class'"
            )
        one_each = isinstance(data, Sequence) and not isinstance(data, str)
        listed = {f"data[{i}]": source for i, source in enumerate(data)} if one_each else {"data": data}
        sources = [load_splits(source, config, splits, seed, called) for called, source in listed.items()]
        labels: dict[int, LabelColumn] = {}  # by split, since tasks may share a source
        if labelled:
            for source in sources:
                own = [
                    LabelColumn(split, label_column, source.origins[name], words)
                    for name, split in source.items()
                ]
                check_alike(own)
                labels |= dict(zip(map(id, source.values()), own, strict=True))
        self.task_names, rows = self._divided(sources)
        for source in sources:
            for name, split in source.items():
                check(split, source.origins[name])
        if not one_each:
            sources = sources * len(rows)
        self.num_labels = []
        numbers: list[Any] = [None] * len(rows)
        if labelled:
            numbers, self.num_labels = self._numbers(sources, rows, labels, separate=one_each)
        super().__init__(
            self._tasks(sources, rows, numbers, prepare),
            eval_batch_size=eval_batch_size,
            collate_fn=collate_fn,
            **options,
        )

    def _divided(self, sources: list[Splits]) -> tuple[list[Any], list[RowsBySplit]]:
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
        self,
        sources: list[Splits],
        rows: list[RowsBySplit],
        labels: Mapping[int, LabelColumn],
        separate: bool,
    ) -> tuple[list[dict[Any, int]], list[int]]:
        found = [
            set().union(*(labels[id(source[split])].of(chosen) for split, chosen in task.items()))
            for source, task in zip(sources, rows, strict=True)
        ]
        names = [labels[id(source["train"])].names for source in sources]
        if self.scenario == "domain" and any(own != names[0] for own in names):
            raise ValueError(f"scenario='domain' means the same labels in all tasks; these have {names}")
        if self.scenario == "domain" or (self.scenario == "class" and not separate):
            check_alike(list(labels.values()))
            check_width(set().union(*found), list(labels.values()))  # a label is the number of its output
        return numbered(self.scenario, found, names[0], separate)

    def _tasks(
        self,
        sources: list[Splits],
        rows: list[RowsBySplit],
        numbers: list[Any],
        prepare: Callable[[Any, Origin], Any],
    ) -> list[dict[str, TaskRows]]:
        known: dict[int, Any] = {}
        tasks = []
        for index, (source, chosen) in enumerate(zip(sources, rows, strict=True)):
            task = {}
            for split, own in chosen.items():
                data = source[split]
                if id(data) not in known:
                    known[id(data)] = prepare(data, source.origins[split])
                most = self.examples_per_label if split == "train" else self.eval_examples_per_label
                if most is not None:
                    own = few_of_each(column_of(data, self.label_column), own, most, self.seed)
                task_id = index if self.scenario == "task" else None
                prepared = known[id(data)].select(own)
                task[split] = TaskRows(prepared, numbers[index], task_id, (source.origins[split], own))
            tasks.append(task)
        return tasks
