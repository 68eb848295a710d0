"""Rules that add the gradient of another loss do under FSDP2 what they do under DDP, with two processes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.utils.data import DataLoader

from cl_callbacks import (
    EWC,
    DarkExperienceReplay,
    Distillation,
    EpochBoundaries,
    ExperienceReplay,
    MultiHead,
)
from cl_callbacks.synapses.state import plain_name
from cl_callbacks.tensors.shards import full_tensor
from tests.processes import train_together
from tests.settings.processes import DealtTasks, Sharded
from tests.settings.training import EPOCHS
from tests.small import CLASSES, FEATURES, Net, make_trainer, plain_net

pytestmark = pytest.mark.slow

# By name: the rules, and options of the Trainer.
Case = tuple[Callable[[], list[Any]], dict[str, Any]]
CASES: dict[str, Case] = {
    "none": (list, {}),
    "er": (lambda: [ExperienceReplay(12)], {}),
    "er, joined": (lambda: [ExperienceReplay(12, joined=True)], {}),
    "er of the past": (lambda: [ExperienceReplay(12, past_only=True, select="balanced")], {}),
    "er by loss": (lambda: [ExperienceReplay(12, select="loss")], {}),
    "er of some parameters": (lambda: [ExperienceReplay(12, parameters=r"net\.2")], {}),
    # So few that of many batches only one of the processes keeps a sample.
    "der": (lambda: [DarkExperienceReplay(3)], {}),
    "beside others": (lambda: [ExperienceReplay(12), EWC(0.3), DarkExperienceReplay(6)], {}),
    "accumulated": (lambda: [ExperienceReplay(12)], {"accumulate_grad_batches": 2}),
    "accumulated, joined": (lambda: [ExperienceReplay(12, joined=True)], {"accumulate_grad_batches": 2}),
    "clipped": (lambda: [DarkExperienceReplay(12)], {"gradient_clip_val": 0.1}),
    "lwf": (lambda: [Distillation(3.0)], {}),
    "lwf, features": (lambda: [Distillation(3.0, on="features", feature_layer="net.0")], {}),
    "lwf, a module": (lambda: [Distillation(3.0, teacher=plain_net().double())], {}),
    "lwf, accumulated": (lambda: [Distillation(3.0), ExperienceReplay(12)], {"accumulate_grad_batches": 2}),
    "root, lwf": (lambda: [Distillation(3.0)], {}),
    "root, der": (lambda: [DarkExperienceReplay(3)], {}),
    "heads": (lambda: [ExperienceReplay(12)], {}),
    "heads, der": (lambda: [DarkExperienceReplay(12, every_n_steps=2)], {}),
}


class Root(Net):
    """All parameters are the root's, which stay gathered after a forward without a backward."""

    def configure_model(self) -> None:
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


class Heads(Net):
    """With the head of the task that the batch, or each sample, names; takes any number of features."""

    one_per_sample = ("task",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.heads = nn.ModuleList(nn.Linear(CLASSES, CLASSES) for _ in range(2))

    def forward(self, x: Tensor, task: int | list[int]) -> Tensor:
        found = self.net(F.pad(x, (0, FEATURES - x.shape[1])))
        if isinstance(task, int):
            return self.heads[task](found)
        return torch.stack([self.heads[number](row) for number, row in zip(task, found, strict=True)])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch["x"], batch["task"]), batch["labels"])


class ShardedHeads(Heads):
    def configure_model(self) -> None:
        for module in (*self.heads, self.net):
            fully_shard(module, mesh=self.device_mesh["data_parallel"])


class HeadTasks(DealtTasks):
    """Every second batch of the second process lacks a feature."""

    def train_dataloader(self) -> Any:
        task = self.trainer.current_epoch // EPOCHS
        lacking = self.trainer.global_rank
        batches: Any = [
            {"x": x[:, : FEATURES - lacking * (i % 2)], "labels": y, "task": task}
            for i, (x, y) in enumerate(super().train_dataloader())
        ]
        return DataLoader(batches, batch_size=None)


class Chosen(Net):
    """Each sample chooses its head."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, 4), nn.ReLU())
        self.heads = MultiHead(4, [CLASSES] * 2)

    def configure_model(self) -> None:
        for module in (*self.heads, self.net):
            fully_shard(module, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y, task = batch
        return F.cross_entropy(self.heads(self.net(x), task), y)


def refusal(task: Callable[[int], Any]) -> str:
    """What is said of batches in which the task is given so for a number of samples."""
    x, y = torch.randn(4, FEATURES), torch.zeros(4, dtype=torch.long)
    trainer = make_trainer(
        ExperienceReplay(12), max_epochs=1, devices=2, strategy=ModelParallelStrategy(2, 1)
    )
    try:
        trainer.fit(Chosen(), DataLoader([(x, y, task(4))], batch_size=None))
    except MisconfigurationException as error:
        return str(error)
    return ""


def learn(rank: int, folder: Path) -> None:
    timeout = timedelta(seconds=60)  # a process that waits for the other in vain is an error
    for name, (rules, options) in CASES.items():
        heads, found = name.startswith("heads"), []
        whole = Root if name.startswith("root") else Sharded
        for kind in (Heads, ShardedHeads) if heads else (Net, whole):
            torch.manual_seed(0)
            model = kind(plain_net(), partial(torch.optim.SGD, lr=0.1, momentum=0.9)).double()
            trainer = make_trainer(
                *rules(),
                EpochBoundaries(EPOCHS),
                max_epochs=2 * EPOCHS,
                reload_dataloaders_every_n_epochs=1,
                use_distributed_sampler=False,
                devices=2,
                strategy=DDPStrategy(timeout=timeout, find_unused_parameters=heads)
                if kind in (Net, Heads)
                else ModelParallelStrategy(2, 1, timeout=timeout),
                **options,
            )
            trainer.fit(model, HeadTasks() if heads else DealtTasks())
            found.append({plain_name(n): full_tensor(p.detach()) for n, p in model.named_parameters()})
        torch.save(found, folder / f"{name}-{rank}.pt")
    said = [refusal(lambda n: torch.zeros(n, dtype=torch.long)), refusal(lambda n: 0)]
    torch.save(said, folder / f"refused-{rank}.pt")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("losses")
    train_together(2, learn, folder)
    return {path.stem: torch.load(path) for path in folder.glob("*.pt")}


@pytest.mark.parametrize("name", [name for name in CASES if name != "none"])
def test_shards_learn_what_copies_do(runs: dict[str, Any], name: str) -> None:
    (copies, shards), (_, shards_there) = runs[f"{name}-0"], runs[f"{name}-1"]
    torch.testing.assert_close(shards, copies, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(shards, shards_there, rtol=0.0, atol=0.0)
    if not name.startswith("heads"):
        without = runs["none-0"][1]
        assert max((shards[n] - without[n]).abs().max() for n in shards) > 1e-3


def test_samples_that_choose_their_heads_are_refused(runs: dict[str, Any]) -> None:
    for rank in range(2):
        of_each, of_all = runs[f"refused-{rank}"]
        assert "all processes have to run the same heads: use strategy='ddp_find_unused" in of_each
        assert not of_all
