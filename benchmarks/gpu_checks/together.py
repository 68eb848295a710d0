"""One of several processes that train together: ``python -m gpu_checks.together``, started by ``processes``.

Prints a line of JSON for each setting: whether all processes have the same weights and state, and how often
the host has waited for the device in a step. The first process saves the outcomes to a folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from timing import quiet_trainer
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Sampler, TensorDataset

from cl_callbacks import (
    EWC,
    MAS,
    BatchBoundaries,
    DriftBoundaries,
    EpochBoundaries,
    PlateauBoundaries,
    RWalk,
    SynapticIntelligence,
)
from cl_callbacks.drift import CUSUM
from gpu_checks.check import described
from gpu_checks.place import Place
from gpu_checks.precision import unnormalised
from gpu_checks.rules import RULES
from gpu_checks.training import BATCH, Net, flat, plain, sgd, task
from gpu_checks.waits import FromStart, ToEnd, Waits

EPOCHS, BATCHES = 3, 4


@dataclass(frozen=True)
class Setting:
    """Callbacks that train together, and whether the outcome is that of one process on the CPU."""

    make: Callable[[], list[Callback]]
    as_one: bool = False
    normalised: bool = False
    """Whether the network has BatchNorm, which in several processes is SyncBatchNorm and needs CUDA."""
    numbered: bool = False
    """Whether batches carry the number of their task."""


def of(rule: str, **options: Any) -> Callable[[], list[Callback]]:
    return lambda: [RULES[rule](**options), EpochBoundaries(1)]


def drifting() -> list[Callback]:
    boundaries = DriftBoundaries(CUSUM(threshold=0.5), min_task_batches=5, check_every_n_batches=2)
    return [SynapticIntelligence(1.0), EWC(1.0, samples=40), boundaries]


SHARDED: dict[str, Setting] = {
    "none": Setting(list, as_one=True),
    "EWC": Setting(of("EWC"), as_one=True),
    "SI": Setting(of("SI"), as_one=True),
    "RWalk and MAS": Setting(lambda: [RWalk(1.0, window_steps=3), MAS(1.0), EpochBoundaries(1)], as_one=True),
    "Streaming, path": Setting(of("Streaming, path"), as_one=True),
    "BennaFusi": Setting(of("BennaFusi"), as_one=True),
    "EWC, SyncBatchNorm": Setting(of("EWC"), as_one=True, normalised=True),
}
REPLICATED: dict[str, Setting] = SHARDED | {
    "KFACLaplace": Setting(of("KFACLaplace"), as_one=True),
    "MESU": Setting(of("MESU")),
    "MESU, 2 draws": Setting(of("MESU, 2 draws")),
    "BGD": Setting(of("BGD")),
    "Cascade": Setting(of("Cascade")),
    "DriftBoundaries": Setting(drifting),
    "PlateauBoundaries, hard_samples": Setting(
        lambda: [MAS(1.0, samples=20), PlateauBoundaries(hard_samples=5)]
    ),
    "BatchBoundaries": Setting(lambda: [SynapticIntelligence(1.0), BatchBoundaries(2)], numbered=True),
}
SETTINGS = {"ddp": REPLICATED, "fsdp2": SHARDED}


def settings_on(kind: str, device: str) -> dict[str, Setting]:
    return {name: s for name, s in SETTINGS[kind].items() if device == "cuda" or not s.normalised}


class Dealt(Sampler[int]):
    """To each process every n-th sample, so that their batches make up one of a single process."""

    def __init__(self, samples: int, processes: int) -> None:
        self.samples, self.processes = samples, processes

    def __len__(self) -> int:
        return self.samples // self.processes

    def __iter__(self) -> Iterator[int]:
        return iter(range(dist.get_rank() if self.processes > 1 else 0, self.samples, self.processes))


def data(setting: Setting, processes: int, dealt: bool = True) -> DataLoader:
    """Batches for each of so many processes; or, if not dealt, for a single one in their place."""
    size = BATCH // 4
    x, y = task(samples=size * BATCHES * processes)
    numbers = [torch.zeros(len(y), dtype=torch.long)] if setting.numbered else []
    tensors = TensorDataset(x, y, *numbers)
    if dealt:
        return DataLoader(tensors, size, sampler=Dealt(len(y), processes))
    return DataLoader(tensors, size * processes)


class Sharded(Net):
    def configure_model(self) -> None:
        mesh = self.device_mesh["data_parallel"]
        for layer in self.net:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(self.net, mesh=mesh)


def module(setting: Setting, kind: type[Net] = Net) -> Net:
    torch.manual_seed(0)
    return kind(plain() if setting.normalised else unnormalised(), sgd()).double()


class Outcome(Callback):
    """The last callback: whole weights, buffers and states, while all of them are still on the device."""

    def __init__(self, callbacks: list[Callback]) -> None:
        self.callbacks = callbacks
        self.found: dict[str, Tensor] = {}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        tensors = pl_module.state_dict()
        whole = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}
        states = [callback.state_dict() for callback in self.callbacks if hasattr(callback, "synapses")]
        ends = [list(map(list, getattr(callback, "found", ()))) for callback in self.callbacks]
        found = flat({"module": whole, "rules": states, "found": ends})
        self.found = {name: t.clone() for name, t in found.items()}


class Together:
    """This process's part."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        count = torch.cuda.device_count() if args.device == "cuda" else 1
        # As many processes as GPUs, or several on one GPU.
        gpus = [torch.device("cuda", i % count) for i in range(args.processes)]
        self.devices = gpus if args.device == "cuda" else [torch.device("cpu")] * args.processes

    def trainer(self, *callbacks: Callback) -> Trainer:
        strategy: Any
        if self.args.device == "pretend":
            from tests.pretend_device.collectives import PretendDDP

            strategy = PretendDDP(self.args.processes)
        elif self.args.kind == "ddp":
            strategy = DDPStrategy(parallel_devices=self.devices, process_group_backend=self.args.backend)
        else:
            strategy = ModelParallelStrategy(self.args.processes, 1, process_group_backend=self.args.backend)
            strategy.parallel_devices = self.devices
        return quiet_trainer(
            *callbacks,
            accelerator="auto" if self.args.device == "pretend" else self.args.device,
            devices="auto" if self.args.device == "pretend" else 1,  # the strategy says which
            strategy=strategy,
            max_epochs=EPOCHS,
            use_distributed_sampler=False,
        )

    def train(self, setting: Setting) -> tuple[dict[str, Tensor], str | None]:
        """The outcome, and the waits of the host in a step where they are counted."""
        counted = None if self.args.device == "cpu" else Waits(Place(self.args.device))
        with counted or nullcontext():
            callbacks = setting.make()
            start = FromStart(counted) if counted else None
            end = ToEnd(start) if start else None
            watched = [start, *callbacks, end] if start and end else callbacks
            trained, kept = module(setting, Sharded if self.args.kind == "fsdp2" else Net), Outcome(callbacks)
            if setting.normalised:
                trained.net = nn.SyncBatchNorm.convert_sync_batchnorm(trained.net)
            with warnings.catch_warnings():  # it silences warnings, which the waits are
                trainer = self.trainer(*watched, kept)
            trainer.fit(trained, data(setting, self.args.processes))
        return kept.found, str(end) if end else None

    def compare(self, found: dict[str, Tensor]) -> list[str]:
        """The tensors that are not the same on all processes."""
        mine = {key: hashlib.md5(t.numpy().tobytes()).hexdigest() for key, t in found.items()}
        all_of_them: list[Any] = [None] * self.args.processes
        dist.all_gather_object(all_of_them, mine)
        keys = set().union(*all_of_them)
        return sorted(key for key in keys if len({other.get(key) for other in all_of_them}) > 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=SETTINGS)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--settings", nargs="+", required=True)
    args = parser.parse_args()
    signal.alarm(args.seconds)  # ends this process, whatever it waits for
    torch.set_num_threads(1)
    together = Together(args)
    for name in args.settings:
        print(json.dumps({"begins": name}), flush=True)
        try:
            found, waits = together.train(SETTINGS[args.kind][name])
            row = {"setting": name, "differ": together.compare(found)[:3], "waits": waits}
            if args.rank == 0:
                torch.save(found, args.folder / f"{name}.pt")
        except Exception as error:
            row = {"setting": name, "error": described(error)}
        print(json.dumps(row), flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
