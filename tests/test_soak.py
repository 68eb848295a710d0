"""A training of a thousand tasks with every observer: nothing grows faster than the tasks."""

from __future__ import annotations

import gc
import json
import os
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from cl_callbacks import EWC, EpochBoundaries, SynapseStatistics, TaskEvaluation
from tests.observation.test_task_evaluation import Scored
from tests.small import loader, make_trainer, plain_net, task

LOADERS = 3


class Watch(Callback):
    """Time, memory, open files, threads and hooks after each task."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.kilobytes: list[int] = []
        self.files: list[int] = []
        self.threads: list[int] = []
        self.hooks: list[int] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Everything of the task before is done."""
        self.ends.append(time.process_time())
        if trainer.current_epoch % 100 == 0:
            gc.collect()
        self.kilobytes.append(resident_kilobytes())
        self.files.append(len(os.listdir("/proc/self/fd")))
        self.threads.append(threading.active_count())
        self.hooks.append(hooks(pl_module) + sum(map(optimizer_hooks, trainer.optimizers)))

    def seconds(self, first: int, last: int) -> float:
        """CPU time of a hundred tasks, without the tenth of them that took longest, such as for figures."""
        each = sorted(after - before for before, after in pairwise(self.ends[first : last + 1]))
        return sum(each[: len(each) * 9 // 10])


def resident_kilobytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def hooks(module: nn.Module) -> int:
    kinds = [name for name in vars(module) if name.endswith("_hooks")]
    own = sum(len(getattr(part, kind)) for part in module.modules() for kind in kinds)
    return own + sum(len(p._backward_hooks or ()) for p in module.parameters())


def optimizer_hooks(optimizer: Any) -> int:
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


def soak(tasks: int, folder: Path) -> tuple[Watch, TaskEvaluation]:
    """A training of so many tasks, of an epoch of one batch each."""
    order = [k % LOADERS for k in range(tasks)]
    watch, evaluation = Watch(), TaskEvaluation(order=order)
    loaders = [loader(*task(k), batch_size=24) for k in range(LOADERS)]
    trainer = make_trainer(
        EWC(1.0, samples=8),
        EpochBoundaries(1),
        evaluation,
        TaskEvaluation("val_loss", "min", artifact=True, order=order),
        SynapseStatistics(10),
        watch,
        ModelCheckpoint(folder / "best", monitor="cl_task/average", mode="max"),
        enable_checkpointing=True,
        max_epochs=tasks,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=[CSVLogger(folder), TensorBoardLogger(folder)],
    )
    trainer.fit(Scored(net=plain_net()), loaders[0], loaders)
    return watch, evaluation


@pytest.mark.sweep
@pytest.mark.timeout(3600)
def test_a_thousand_tasks_cost_a_thousand_times_one(tmp_path: Path) -> None:
    watch, evaluation = soak(1000, tmp_path)
    early, late = watch.seconds(100, 200), watch.seconds(899, 999)
    grown = (watch.kilobytes[-1] - watch.kilobytes[200]) / 800
    print(json.dumps({"seconds": [early, late], "kilobytes per task": grown, "RSS": watch.kilobytes[::100]}))
    assert late < 1.5 * early
    assert grown < 50
    assert min(watch.files[-100:]) <= watch.files[10] + 2  # figures have some open while they are drawn
    assert min(watch.threads[-100:]) <= watch.threads[10]
    assert max(watch.hooks) == min(watch.hooks[1:])
    assert len(evaluation.record.ends) == 1000
    assert 0 <= evaluation.results()["average"] <= 1
    (folder,) = tmp_path.glob("lightning_logs/version_*/figures")
    assert len(list(folder.glob("*.png"))) == 6


def test_a_few_tasks_leave_nothing_behind(tmp_path: Path) -> None:
    watch, _ = soak(8, tmp_path)
    assert max(watch.threads[2:]) == min(watch.threads[2:])
    assert max(watch.hooks) == min(watch.hooks[1:])
    assert max(watch.files[2:]) <= min(watch.files[2:]) + 2
