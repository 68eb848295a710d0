"""A sequence of tasks as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, DistributedSampler

from cl_callbacks.data.image_tasks import (
    ImageTask,
    Permute,
    Rotate,
    Transform,
    as_is,
    image_tensors,
    pad_images,
    splits_of,
)
from cl_callbacks.data.origin import Origin
from cl_callbacks.data.task_division import few_of_each
from cl_callbacks.data.task_epochs import TaskEpochs
from cl_callbacks.data.transition import Ramp, blended
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import AT_LEAST_ONE, NON_NEGATIVE, Bounds
from cl_callbacks.guards.signatures import declare_arguments
from cl_callbacks.tensors.random_numbers import mixed_seed
from cl_callbacks.training.fit_end import renews_statistics

_OF_IMAGES = {
    "eval_examples_per_label": AT_LEAST_ONE,
    "seed": NON_NEGATIVE,
    "pad": Bounds(least=0, most=1024),
}
_EVALUATION = {"val": ("validation", "val", "test"), "test": ("test",)}


class TaskSequence(LightningDataModule):
    """A sequence of tasks: serves training data of the current task, and evaluation data of all tasks.

    With ``epochs_per_task``, the next task begins after that many epochs, whatever boundary callbacks do.
    That number is said once: a Trainer that was not told otherwise gets
    :class:`~cl_callbacks.EpochBoundaries`, a ``max_epochs`` for all tasks, and
    ``reload_dataloaders_every_n_epochs=1``, which serves the next task's data. Without it, the next task
    begins when a boundary callback ends the current one, and training stops after the last task; the two
    arguments of the Trainer then follow from an :class:`~cl_callbacks.EpochBoundaries`. ``val_dataloader``
    and ``test_dataloader`` give one loader per task; without a validation split, validation uses the test
    split.

    Args:
        tasks: one mapping per task with the data sets ``"train"``, and ``"validation"`` or ``"test"`` or
            both, such as a Hugging Face ``DatasetDict``.
        epochs_per_task: number of epochs of each task; ``None`` to wait for a boundary callback.
        transition_batches: number of batches around each change in which neighbouring tasks are mixed: the
            share of the later one grows linearly from 0 to 1. 0: sudden changes. Needs ``epochs_per_task``.
        shuffle_seed: seed of the order of training data, which then depends on it and on the epoch alone, so
            that training resumed from the end of an epoch sees the same data. ``None`` for torch's global
            random numbers, whose state Lightning does not save.
        batch_size: batch size of training, per process.
        eval_batch_size: batch size of validation and test.
        num_workers: number of worker processes of each loader.
        collate_fn: collate function of the loaders; ``None`` for torch's default.

    Attributes:
        current_task: index of the task that ``train_dataloader`` serves; may be set.
        num_labels: number of outputs of each head, where each task has one; else empty, if not said otherwise
            by a subclass.

    Raises:
        ValueError: no task, a task without training data, or invalid numbers; in training, a transition
            that is longer than a task.
        MisconfigurationException: in ``fit``, a Trainer under which tasks would never change, or which was
            told what contradicts the sequence.

    Example:
        >>> images, labels = torch.rand(20, 1, 8, 8), torch.arange(20) % 10
        >>> data = TaskSequence.permuted((images, labels), tasks=3, seed=0, pad=4, batch_size=8)
        >>> x, y = next(iter(data.train_dataloader()))
        >>> x.shape, len(data.val_dataloader())
        (torch.Size([8, 1, 16, 16]), 3)
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Shows the arguments behind ``**options`` of a subclass in its signature."""
        super().__init_subclass__(**kwargs)
        declare_arguments(cls)

    reads_task_data: ClassVar[bool] = False
    num_labels: Sequence[int] = ()

    @checked(
        epochs_per_task=AT_LEAST_ONE,
        transition_batches=NON_NEGATIVE,
        shuffle_seed=NON_NEGATIVE,
        batch_size=AT_LEAST_ONE,
        eval_batch_size=AT_LEAST_ONE,
        num_workers=NON_NEGATIVE,
    )
    def __init__(
        self,
        tasks: Sequence[Mapping[str, Any]],
        *,
        epochs_per_task: int | None = None,
        transition_batches: int = 0,
        shuffle_seed: int | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 512,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        super().__init__()
        for index, task in enumerate(tasks):
            if "train" not in task:
                raise ValueError(f"task {index} has no data set 'train'; it has {list(task)}")
        if epochs_per_task is None and transition_batches:
            raise ValueError(
                "transition_batches needs epochs_per_task: nobody knows yet when a change will come"
            )
        self.epochs_per_task, self.transition_batches = epochs_per_task, transition_batches
        self.shuffle_seed = shuffle_seed
        self.tasks = list(tasks)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers, self.collate_fn = num_workers, collate_fn
        self.current_task = 0

    def __len__(self) -> int:
        return len(self.tasks)

    # -- sequences of image tasks ------------------------------------------------------------------

    @classmethod
    @checked(tasks=Bounds(least=1, most=100_000), **_OF_IMAGES)
    def permuted(
        cls,
        dataset: Any,
        *,
        tasks: int,
        eval_examples_per_label: int | None = None,
        seed: int = 0,
        pad: int = 0,
        **loaders: Any,
    ) -> TaskSequence:
        """Makes tasks of the same images, each with its own fixed permutation of all pixels.

        Args:
            dataset: splits of images (see :func:`~cl_callbacks.data.image_tasks.image_tensors`), or one
                data set, of which a fifth becomes the test split.
            tasks: number of tasks.
            eval_examples_per_label: maximum number of images for each label in validation and test, chosen at
                random; ``None`` for all.
            seed: seed of the permutations, of that choice, and of the division of data without
                splits.
            pad: number of zero pixels added on each side before permuting.
            loaders: further arguments of the class.
        """
        splits = _image_splits(dataset, seed, pad, eval_examples_per_label)
        pixels = splits["train"][0][0].numel()
        generator = torch.Generator().manual_seed(seed)
        seeds = torch.randint(2**62, (tasks,), generator=generator).tolist()
        return cls._transformed(splits, [Permute(s, pixels) for s in seeds], loaders)

    @classmethod
    @checked(**_OF_IMAGES)
    def rotated(
        cls,
        dataset: Any,
        *,
        degrees: Sequence[float],
        eval_examples_per_label: int | None = None,
        seed: int = 0,
        pad: int = 0,
        **loaders: Any,
    ) -> TaskSequence:
        """Makes tasks of the same images, each rotated by its own angle.

        Args:
            dataset: as for :meth:`permuted`.
            degrees: rotation angle of each task, counter-clockwise.
            eval_examples_per_label: maximum number of images for each label in validation and test, chosen at
                random; ``None`` for all.
            seed: seed of that choice, and of the division of data without splits.
            pad: number of zero pixels added on each side before rotating.
            loaders: further arguments of the class.
        """
        splits = _image_splits(dataset, seed, pad, eval_examples_per_label)
        return cls._transformed(splits, [Rotate(angle) for angle in degrees], loaders)

    @classmethod
    @checked(**_OF_IMAGES)
    def split_by_label(
        cls,
        dataset: Any,
        *,
        groups: Sequence[Sequence[int]],
        relabel: bool = False,
        heads: bool = False,
        eval_examples_per_label: int | None = None,
        seed: int = 0,
        pad: int = 0,
        **loaders: Any,
    ) -> TaskSequence:
        """Makes tasks of parts of the images, each with those of its own group of labels.

        Args:
            dataset: as for :meth:`permuted`.
            groups: the labels of each task, such as ``[(0, 1), (2, 3)]``.
            relabel: whether to number the labels within each group from 0 (one output layer for all tasks)
                instead of keeping them.
            heads: whether each task has a head of its own, a :class:`~cl_callbacks.MultiHead`: labels are
                numbered within each group, batches are ``(images, labels, tasks)`` with the number of the
                task for each sample, and ``num_labels`` of the sequence has the number of outputs of each
                head.
            eval_examples_per_label: maximum number of images for each label in validation and test, chosen at
                random; ``None`` for all.
            seed: seed of that choice, and of the division of data without splits.
            pad: number of zero pixels added on each side.
            loaders: further arguments of the class.

        Raises:
            ValueError: a group without images in the data.
        """
        among = [label for group in groups for label in group]
        splits = _image_splits(dataset, seed, pad, eval_examples_per_label, among)
        tasks = []
        for index, group in enumerate(groups):
            task = {}
            for split, (images, labels) in splits.items():
                wanted = torch.tensor(list(group))
                rows = torch.isin(labels, wanted)
                if not rows.any():
                    raise ValueError(f"split {split!r} has no image with a label of {list(group)}")
                kept = labels[rows]
                if relabel or heads:
                    kept = (kept[:, None] == wanted).long().argmax(1)
                task[split] = ImageTask(images[rows], kept, task=index if heads else None)
            tasks.append(task)
        sequence = cls(tasks, collate_fn=as_is, **loaders)
        sequence.num_labels = [len(group) for group in groups] if heads else ()
        return sequence

    @classmethod
    def _transformed(
        cls, splits: Mapping[str, Any], transforms: Sequence[Transform], loaders: Mapping[str, Any]
    ) -> TaskSequence:
        tasks = [
            {split: ImageTask(images, labels, transform) for split, (images, labels) in splits.items()}
            for transform in transforms
        ]
        return cls(tasks, collate_fn=as_is, **loaders)

    # -- following the tasks -----------------------------------------------------------------------

    @property
    def trainer(self) -> Trainer | None:
        """The Trainer; Lightning sets it before it takes a limit of epochs that was not given for 1000."""
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        self._trainer, self._task_epochs = trainer, None
        if isinstance(trainer, Trainer) and trainer.state.fn == TrainerFn.FITTING:
            transition = self.transition_batches > 0
            self._task_epochs = TaskEpochs(trainer, len(self), self.epochs_per_task, transition)
            self._task_epochs.follow_limit(self.current_task)

    def setup(self, stage: str) -> None:
        """Has the Trainer follow the tasks where it was not told, and checks that tasks can change."""
        if stage == "fit" and self._task_epochs is not None:
            self._task_epochs.follow_tasks(type(self).__name__)

    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Switches to the next task; after the last one, stops training."""
        if self.epochs_per_task is not None:
            return  # tasks change with the epoch, whatever boundary was found or declared
        self.current_task += 1
        if self.current_task == len(self.tasks) and not renews_statistics(trainer, trainer.current_epoch + 1):
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Index of the current task."""
        return {"current_task": self.current_task}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the task in which the checkpoint was written, unless the Trainer only evaluates."""
        if self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING:
            self.current_task = state_dict["current_task"]

    def train_dataloader(self) -> DataLoader:
        """Loader of the shuffled training data of the current task."""
        epoch, trainer = 0, self.trainer
        # The epoch for the statistics of BatchNorm shows the latest data once more.
        again = trainer is not None and renews_statistics(trainer)
        if self.epochs_per_task is not None and trainer is not None:
            self.current_task, epoch = divmod(trainer.current_epoch - again, self.epochs_per_task)
        elif again:
            self.current_task = min(self.current_task, len(self) - 1)
        if not 0 <= self.current_task < len(self.tasks):
            raise ValueError(
                f"all {len(self.tasks)} tasks of the sequence have been trained; set `current_task` to go "
                f"back to one"
            )
        data = self.tasks[self.current_task]["train"]
        loader = self._loader(data, self.batch_size, shuffle=True, order=self._order(data))
        return self._blended(loader, epoch) if self.transition_batches else loader

    def _order(self, data: Any) -> DistributedSampler | None:
        """Sampler of the seeded order of this epoch; ``None`` without ``shuffle_seed``."""
        if self.shuffle_seed is None:
            return None
        processes, rank, epoch = 1, 0, 0
        if self.trainer is not None:
            processes, rank = self.trainer.world_size, self.trainer.global_rank
            epoch = self.trainer.current_epoch
        order: DistributedSampler = DistributedSampler(data, processes, rank, seed=self.shuffle_seed)
        order.set_epoch(epoch)  # Lightning does so too, but after workers begin to prefetch
        return order

    def _blended(self, plain: DataLoader, epoch: int) -> DataLoader:
        """Mixes samples of the neighbouring tasks into the loader, where a transition reaches this epoch."""
        assert self.epochs_per_task is not None
        task, last = self.current_task, len(self) - 1
        ramp = Ramp(
            self.transition_batches,
            since=epoch if task > 0 else None,
            until=self.epochs_per_task - epoch if task < last else None,
        )
        neighbours = [self.tasks[k]["train"] if 0 <= k <= last else None for k in (task - 1, task + 1)]
        limit = getattr(self.trainer, "limit_train_batches", 1.0)
        seed = None
        if self.shuffle_seed is not None:  # of other numbers than the order has, in each process
            process = 0 if self.trainer is None else self.trainer.global_rank
            seed = mixed_seed(self.shuffle_seed, task * self.epochs_per_task + epoch, process)
        return blended(plain, neighbours, ramp, self.epochs_per_task, limit, seed)

    def val_dataloader(self) -> list[DataLoader]:
        """One loader per task, of the validation split or else of the test split."""
        return self._evaluation("val")

    def test_dataloader(self) -> list[DataLoader]:
        """One loader per task, of the test split."""
        return self._evaluation("test")

    def _evaluation(self, stage: str) -> list[DataLoader]:
        loaders = []
        for index, task in enumerate(self.tasks):
            split = next((name for name in _EVALUATION[stage] if name in task), None)
            if split is None:
                raise ValueError(f"task {index} has no split of {_EVALUATION[stage]}: {list(task)}")
            loaders.append(self._loader(task[split], self.eval_batch_size, shuffle=False))
        return loaders

    def _loader(
        self, dataset: Any, batch_size: int, shuffle: bool, order: DistributedSampler | None = None
    ) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=batch_size,
            shuffle=shuffle and order is None,
            sampler=order,
            num_workers=self.num_workers,
            collate_fn=self.collate_fn,
        )


def _image_splits(
    dataset: Any, seed: int, pad: int, most: int | None, among: Sequence[int] | None = None
) -> dict[str, Any]:
    splits = {}
    for name, data in splits_of(dataset, seed).items():
        images, labels = image_tensors(data, origin=Origin(f"split {name!r}"), among=among)
        if most is not None and name != "train":
            few = few_of_each(labels.tolist(), range(len(labels)), most, seed)
            images, labels = images[few], labels[few]
        splits[name] = (pad_images(images, pad), labels)
    return splits
