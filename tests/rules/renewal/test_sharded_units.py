"""Units whose weights are sharded: found and replaced as in one process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from cl_callbacks import ContinualBackprop, EpochBoundaries, ReDo, SynapticIntelligence
from cl_callbacks.rules.renewal.units import find_units
from cl_callbacks.tensors.lines import Lines
from cl_callbacks.tensors.shards import distribute_like, full_tensor, reshard
from tests import every_rule
from tests.processes import train_together
from tests.rules.renewal.test_unit_rules import Heads
from tests.rules.renewal.test_units import Attending, Images, Residual, Squeezed, Written
from tests.small import Net, loader, make_trainer, task

pytestmark = pytest.mark.slow
UNUSED = "ddp_find_unused_parameters_true"
PROCESSES = 3  # of 4 rows the last one holds none, and of 5 it holds one

# How to make a network, the shape of its inputs, and whether each layer may be sharded by itself.
NETWORKS: list[tuple[Callable[[], nn.Module], tuple[int, ...], bool]] = [
    (Images, (3, 1, 8, 8), True),
    (Attending, (3, 5, 8), True),
    (Residual, (2, 1, 8, 8), True),
    (Squeezed, (2, 1, 5, 5), True),
    (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu"), (3, 5, 8), True),
    (lambda: Written(lambda self, x: self.second(self.first(x)) + self.third(self.first(x))), (3, 4), True),
    (lambda: Written(lambda self, x: self.second(self.first(self.first(x)))), (3, 4), True),
    (lambda: Written(lambda self, x: self.second(self.first(x)) + self.second.weight.sum()), (3, 4), False),
]


class Adding(nn.Sequential):
    """Adds to its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Pictures(Net):
    """A convolution whose channels are flattened, a residual stream, and layers of odd sizes."""

    def __init__(self, sharded: Callable[[Pictures], None] | None = None) -> None:
        torch.manual_seed(0)
        net = [nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 7), nn.Tanh()]
        block = Adding(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 7))
        super().__init__(nn.Sequential(*net, block, nn.Linear(7, 3)), partial(torch.optim.Adam, lr=0.01))
        self.sharded = sharded

    def configure_model(self) -> None:
        if self.sharded is not None:
            self.sharded(self)


class Peeking(Pictures):
    """In one of the processes its loss reads the channels where torch cannot follow."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        seen: list[Any] = []
        handle = self.net[0].register_forward_hook(lambda _, args, out: seen.append(out.tolist()))
        loss = super().training_step(batch, batch_idx)
        handle.remove()
        return loss + float(np.sum(seen[0])) * (self.global_rank == 1)


class Experts(Net):
    """Of these each process runs another one, after the first batch."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Identity(), partial(torch.optim.SGD, lr=0.0))
        parts = [[nn.Linear(16, n), nn.ReLU(), nn.Linear(n, 3)] for n in (8, 8, 5)]
        self.experts = nn.ModuleList([nn.Sequential(*part) for part in parts])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        chosen = [self.experts[self.global_rank]] if batch_idx else self.experts
        return F.cross_entropy(torch.stack([each(batch[0].flatten(1)) for each in chosen]).sum(0), batch[1])


def train_experts(rank: int) -> dict[str, Any]:
    """Processes start with the same weights, and only the rules change them."""
    rules = [ContinualBackprop(0.3, maturity=1), ReDo(0.9, every_n_steps=2)]
    trainer = make_trainer(
        *(*rules, EpochBoundaries(1)),
        devices=PROCESSES,
        strategy=UNUSED,
        use_distributed_sampler=False,
    )
    torch.manual_seed(rank)
    data, model = TensorDataset(torch.randn(24, 1, 4, 4), torch.randint(3, (24,))), Experts()
    trainer.fit(model, DataLoader(data, 4))
    return {"weights": dict(model.state_dict()), "renewed": [rule.renewed for rule in rules]}


def heard_by_the_first_head() -> Tensor:
    """After a task with it, and one with another."""
    rule = ContinualBackprop(0.0)
    trainer = make_trainer(rule, EpochBoundaries(1), max_epochs=2, devices=PROCESSES, strategy=UNUSED)
    trainer.fit(Heads(), loader(*task(0)))
    return rule.unit_state["heard"]["heads.0.weight"]


def by_layer(model: Pictures) -> None:
    for layer in model.net:
        if list(layer.parameters()):
            fully_shard(layer, mesh=model.device_mesh["data_parallel"])
    fully_shard(model.net, mesh=model.device_mesh["data_parallel"])


def by_kernel(model: Pictures) -> None:
    fully_shard(
        model.net,
        mesh=model.device_mesh["data_parallel"],
        shard_placement_fn=lambda p: Shard(2) if p.ndim == 4 else None,
    )


def train(
    sharded: Callable[[Pictures], None] | None = None, rank: int = 0, kind: type[Pictures] = Pictures
) -> dict[str, Any]:
    """What is there after three tasks of one epoch; processes see in each batch what one sees alone."""
    rules = [
        ContinualBackprop(0.3, maturity=1, utility="adaptable", spared_by="synaptic_intelligence"),
        ReDo(0.9, every_n_steps=2),
        SynapticIntelligence(0.1, damping=1e-3),
    ]
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(
        torch.randn(60, 1, 4, 4, generator=generator).double(),
        torch.randint(3, (60,), generator=generator),
    )
    processes = 1 if sharded is None else PROCESSES
    trainer = make_trainer(
        *rules,
        EpochBoundaries(1),
        max_epochs=3,
        devices=processes,
        strategy="auto" if sharded is None else ModelParallelStrategy(processes, 1),
        use_distributed_sampler=False,
    )
    model = kind(sharded).double()
    sampler = DistributedSampler(data, processes, rank, shuffle=False)
    trainer.fit(model, DataLoader(data, 12 // processes, sampler=sampler))
    moments = trainer.optimizers[0].state
    return {
        "weights": {n: full_tensor(p.detach()) for n, p in model.named_parameters()},
        "moments": {n: full_tensor(moments[p]["exp_avg"]) for n, p in model.named_parameters()},
        "states": [every_rule.state(rule) for rule in rules],
        "units": [units.layer for units in rules[0].units],
        "renewed": [rule.renewed for rule in rules[:2]],
    }


def work(rank: int, folder: Path) -> None:
    torch.save(train(by_layer, rank), folder / f"rows-{rank}.pt")
    torch.save(train(by_kernel, rank)["units"], folder / f"kernel-{rank}.pt")
    torch.save(train(by_layer, rank, Peeking)["units"], folder / f"peeking-{rank}.pt")
    torch.save(train_experts(rank), folder / f"experts-{rank}.pt")
    assert heard_by_the_first_head().tolist() == [1.0] * 8  # one step, and none of the second task
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for make, shape, by_themselves in NETWORKS:
        for each in {by_themselves, False}:
            torch.manual_seed(0)
            module, x = make(), torch.randn(shape)
            expected = find_units(module, lambda: module(x).sum())  # noqa: B023
            for part in [p for p in module.children() if each and list(p.parameters())]:
                fully_shard(part, mesh=mesh)
            fully_shard(module, mesh=mesh)
            assert find_units(module, lambda: module(x).sum()) == expected  # noqa: B023
            reshard(module)
    for dim, shape in ((0, (5, 2)), (0, (4, 2, 3)), (0, (1,)), (1, (4, 5))):
        lines_are_set(dim, shape, nn.Linear(1, 1, device="meta"), mesh)


def lines_are_set(dim: int, shape: tuple[int, ...], module: nn.Module, mesh: Any) -> None:
    whole, other = torch.randn(shape), torch.randn(shape)
    for tensor in (whole, other):
        dist.broadcast(tensor, src=0)
    module.to_empty(device="cpu").register_parameter("weight", nn.Parameter(whole.clone()))
    fully_shard(module, mesh=mesh)
    like = module.weight.detach()
    lines = Lines(dim, torch.tensor([0, shape[dim] - 1] if shape[dim] > 1 else [0]))
    new = other.index_select(dim, lines.index)
    changes: list[Callable[[Tensor, Tensor], None]] = [
        lambda t, _: lines.fill_(t, 2.0),
        lambda t, source: lines.copy_(t, source),
    ]
    if dim == 0:
        changes.append(lambda t, _: lines.set_(t, new))
    for change in changes:
        here, apart = whole.clone(), distribute_like(whole.clone(), like)
        change(here, other)
        change(apart, distribute_like(other.clone(), like))
        assert torch.equal(full_tensor(apart), here)
        assert not torch.equal(here, whole)


def test_sharded_units_are_found_and_replaced_as_in_one_process(tmp_path: Path) -> None:
    train_together(PROCESSES, work, tmp_path)
    expected = train()
    assert min(expected["renewed"]) > 3
    for rank in range(PROCESSES):
        found = torch.load(tmp_path / f"rows-{rank}.pt")
        assert (found["units"], found["renewed"]) == (["net.0", "net.3", "net.5.0"], expected["renewed"])
        for what in ("weights", "moments", "states"):
            torch.testing.assert_close(found[what], expected[what], rtol=1e-9, atol=1e-12)
        without_channels = ["net.3", "net.5.0"]
        assert torch.load(tmp_path / f"kernel-{rank}.pt") == without_channels  # no process has whole ones
        assert torch.load(tmp_path / f"peeking-{rank}.pt") == without_channels
        experts = [torch.load(tmp_path / f"experts-{r}.pt") for r in (0, rank)]
        assert every_rule.same(*experts)
        assert min(experts[0]["renewed"]) > 0
