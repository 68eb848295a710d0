"""Per-sample gradients of sharded parameters, on processes that draw different labels."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from cl_callbacks.gradients.sharded_gradients import ShardedGradients
from cl_callbacks.tensors.shards import full_tensor
from tests.processes import train_together
from tests.small import plain_net, task


class Drawn:
    """Cotangents of random numbers."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, outputs: Tensor, labels: object) -> list[Tensor]:
        return [torch.randn(outputs.shape, generator=self.generator) for _ in range(2)]


def work(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    net = fully_shard(plain_net())
    parameters = dict(net.named_parameters())
    sharded = ShardedGradients(net, parameters, lambda batch: (net(batch[0]), batch[1]))
    # From seed 1 on the second process, as a GPU of another model might draw from seed 0.
    sums, used = sharded.sums(task(0, samples=5), Drawn(seed=rank))
    assert used == 5
    for p, summed in zip(parameters.values(), sums, strict=True):
        p._local_tensor.copy_(summed)
    torch.save([full_tensor(p.detach()) for p in parameters.values()], folder / f"{rank}.pt")


def test_all_processes_take_the_labels_of_the_first(tmp_path: Path) -> None:
    train_together(2, work, tmp_path)
    torch.manual_seed(0)
    net, drawn = plain_net(), Drawn(seed=0)
    expected = [torch.zeros_like(p) for p in net.parameters()]
    for x in task(0, samples=5)[0]:
        for vector in drawn(net(x[None]), None):
            gradients = torch.autograd.grad(net(x[None]), list(net.parameters()), vector)
            expected = [e + g**2 for e, g in zip(expected, gradients, strict=True)]
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected)
