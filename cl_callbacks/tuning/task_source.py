"""Where the data of two tasks come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Generator
from torch.utils.data import DataLoader

from cl_callbacks.training.generators import generators_kept
from cl_callbacks.training.lightning_private import set_training_data
from cl_callbacks.training.quiet_fit import attributes_kept


class TaskSource(ABC):
    """Serves the training data of one task after the other to fit loops."""

    @abstractmethod
    def serve(self, loop: Any, task: int) -> None:
        """Has a fit loop, which has not loaded data yet, see the data of a task."""

    @abstractmethod
    def kept(self) -> AbstractContextManager[None]:
        """Restores the source afterwards, with the random numbers of its loaders."""


class DataModuleTasks(TaskSource):
    """Tasks of a data module whose ``current_task`` says what ``train_dataloader`` serves.

    Args:
        data: the data module.
        asker: who needs it, for error messages.

    Raises:
        MisconfigurationException: a data module without tasks, or with fewer than two.
    """

    def __init__(self, data: LightningDataModule | None, asker: str) -> None:
        if not hasattr(data, "current_task"):
            found = "there is none" if data is None else f"{type(data).__name__} does not"
            raise MisconfigurationException(
                f"{asker} needs a data module that serves the data of the task that its attribute "
                f"`current_task` says, such as TaskSequence, and {found}. Use one, or find_strength with "
                "lists of loaders."
            )
        tasks = len(data) if isinstance(data, Sized) else 2  # otherwise validation's loaders tell
        if tasks < 2:
            raise MisconfigurationException(
                f"{asker} learns two tasks, and {type(data).__name__} has {tasks}: give it one more."
            )
        self.data: Any = data

    def serve(self, loop: Any, task: int) -> None:
        """Sets ``current_task``."""
        self.data.current_task = task

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Restores the attributes of the data module, its generators and those of loaders that it keeps."""
        values = (v if isinstance(v, list | tuple) else [v] for v in vars(self.data).values())
        drawing = [each for several in values for each in several if isinstance(each, DataLoader | Generator)]
        with attributes_kept(self.data), generators_kept(drawing):
            yield


class ListedTasks(TaskSource):
    """Tasks of two lists of loaders.

    Args:
        training: training loader of each task.
        validation: validation loader of each task.
        asker: who needs them, for error messages.

    Raises:
        MisconfigurationException: fewer than two tasks, or different numbers of them.
    """

    def __init__(self, training: Sequence[Any], validation: Sequence[Any], asker: str) -> None:
        tasks = len(training), len(validation)
        if min(tasks) < 2 or tasks[0] != tasks[1]:
            raise MisconfigurationException(
                f"{asker} needs a training and a validation loader of each of at least two tasks; got "
                f"{tasks[0]} and {tasks[1]}"
            )
        # Of the first two tasks only, so that no other is validated.
        self.training, self.validation = list(training[:2]), list(validation[:2])

    def serve(self, loop: Any, task: int) -> None:
        """Sets the loader."""
        set_training_data(loop, self.training[task])

    def kept(self) -> AbstractContextManager[None]:
        """Restores the generators of the loaders."""
        return generators_kept([*self.training, *self.validation])
