"""Two processes that train together; one start of them serves all rules."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, Sampler, TensorDataset

from cl_callbacks.rules.rehearsal.replay_rule import ReplayRule
from cl_callbacks.synapses.state import plain_name
from cl_callbacks.tensors.shards import full_tensor
from tests import every_rule
from tests.every_rule import REHEARSING, RULES, SHARDABLE
from tests.processes import train_together
from tests.settings.memory_layout import images
from tests.settings.outcomes import Differs, Refused, Run, Setting, Within
from tests.settings.training import BATCH, Tasks, module, outcome, train
from tests.small import Net

PROCESSES = 2
# Labels that are drawn differ with the process that draws them.
EXACT_LABELS = {"ewc each", "kfac", "kfac list"}


def make(rule: str | None) -> Any:
    options = {"estimator": "exact"} if rule in EXACT_LABELS else {}
    if rule in REHEARSING:  # one process draws as many samples as two together
        # And of the present task each remembers its own: with room for all, these displace no others.
        options = {"batch_size": 8 // PROCESSES if dist.is_initialized() else 8, "memory": 200}
    return None if rule is None else every_rule.make(rule, **options)


class Dealt(Sampler[int]):
    """To each process samples in turn, so that their batches make up one process's batch."""

    def __init__(self, samples: int) -> None:
        self.order = range(dist.get_rank(), samples, dist.get_world_size())

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)


class DoubleTasks(Tasks):
    """In double precision, for which FSDP2's strategy has no setting."""

    def samples(self) -> tuple[Tensor, ...]:
        x, y = super().samples()
        return x.double(), y


class DealtTasks(DoubleTasks):
    def train_dataloader(self) -> DataLoader:
        samples = self.samples()
        size = BATCH // dist.get_world_size()
        return DataLoader(TensorDataset(*samples), size, sampler=Dealt(len(samples[0])))


class Sharded(Net):
    def configure_model(self) -> None:
        mesh = self.device_mesh["data_parallel"]
        for layer in self.net:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(self.net, mesh=mesh)


class Agreement(Callback):
    """That weights and state are the same on every process, bit for bit, after every batch."""

    def __init__(self, rule: Any) -> None:
        # Of the present task, each process remembers samples of its own.
        self.rule = None if isinstance(rule, ReplayRule) else rule

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        found = {} if self.rule is None else every_rule.state(self.rule)
        mine = [full_tensor(p.detach()) for p in pl_module.parameters()] + list(found.values())
        for tensor in mine:
            theirs = tensor.clone()
            dist.broadcast(theirs, src=0)
            if not torch.equal(tensor, theirs):
                raise AssertionError("processes disagree")


def fsdp2() -> ModelParallelStrategy:
    return ModelParallelStrategy(data_parallel_size=PROCESSES, tensor_parallel_size=1)


MODELS: dict[str, Callable[[], Net]] = {
    "DDP": lambda: module().double(),
    "DDP, channels_last": lambda: images(torch.channels_last, torch.channels_last, norm=False),
    "FSDP2": lambda: module(Sharded).double(),
}


def learn(rank: int, kind: str, folder: str) -> None:
    for rule in [None, *RULES]:
        callback = make(rule)
        model = MODELS[kind]()
        found: Any
        try:
            train(
                model,
                callback,
                Agreement(callback),
                data=DealtTasks(),
                strategy=fsdp2() if kind == "FSDP2" else "ddp",
                devices=PROCESSES,
                use_distributed_sampler=False,
            )
        except MisconfigurationException as error:
            found = str(error)
        else:
            weights = {plain_name(name): full_tensor(p.detach()) for name, p in model.named_parameters()}
            found = weights, {} if rule in REHEARSING else outcome(model, callback).state
        if rank == 0:
            torch.save(found, Path(folder) / f"{rule}.pt")


@cache
def together(kind: str) -> dict[str | None, Any]:
    with tempfile.TemporaryDirectory() as folder:
        train_together(PROCESSES, learn, kind, folder)
        return {rule: torch.load(Path(folder) / f"{rule}.pt") for rule in [None, *RULES]}


def together_run(rule: str | None, kind: str) -> Run:
    found = together(kind)[rule]
    if isinstance(found, str):
        raise MisconfigurationException(found)
    return Run(*found)


def alone(rule: str, kind: str = "DDP") -> Run:
    found = train(MODELS[kind](), make(rule), data=DoubleTasks())
    return Run(found.weights, {}) if rule in REHEARSING else found


SUMS = Within(1e-9, "another order of summation; in double precision")
DRAWN = {
    rule: Differs("of the present task, each process draws from what it has seen itself")
    for rule in REHEARSING
    if rule != "er past"
}
WHOLE = Refused("needs whole parameters", "it works on whole layers, or draws random numbers for them")

SETTINGS = [
    Setting(
        "DDP, two processes",
        "one process, batches twice as large",
        partial(together_run, kind="DDP"),
        alone,
        SUMS,
        DRAWN,
        slow=True,
    ),
    Setting(
        "DDP, two processes, `channels_last`",
        "one process, batches twice as large",
        partial(together_run, kind="DDP, channels_last"),
        partial(alone, kind="DDP, channels_last"),
        SUMS,
        DRAWN,
        slow=True,
    ),
    Setting(
        "FSDP2 (`ModelParallelStrategy`), two processes",
        "one process, batches twice as large",
        partial(together_run, kind="FSDP2"),
        alone,
        SUMS,
        {rule: WHOLE for rule in RULES if rule not in SHARDABLE} | DRAWN,
        slow=True,
    ),
]
