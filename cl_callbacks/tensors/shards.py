"""Parameters of which every process holds a part, as FSDP2 shards them.

Rules are local to a synapse, so each process works on its own part of weights, gradients and state as on any
other tensor. What concerns a network as a whole is put together here: a sum or an extreme over all parts, a
tensor as a checkpoint holds it, and back again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def held(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: its shard, or all of it where it is not sharded.

    The same object each time, unlike what ``DTensor.to_local`` gives.

    Example:
        >>> weight = torch.ones(2)
        >>> held(weight) is weight
        True
    """
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor put together from its shards: to be called by all processes that hold one."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def distribute_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor sharded like a parameter, or whole beside one that is not; every process has to ask."""
    if not isinstance(like, DTensor):
        return full_tensor(tensor)  # of a rule that goes on where nothing is sharded
    if isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def group_of(tensors: Iterable[Tensor]) -> dist.ProcessGroup | None:
    """The processes over which tensors are sharded; ``None`` if they are not."""
    return next((t.device_mesh.get_group() for t in tensors if isinstance(t, DTensor)), None)


def total(value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Sum of what each process has found on its shards.

    Example:
        >>> total(torch.tensor(2.0), None)
        tensor(2.)
    """
    if group is not None:
        value = value.clone()
        dist.all_reduce(value, group=group)
    return value


def extremes(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Least and greatest value of all tensors over all shards; some may be empty.

    Example:
        >>> extremes([torch.tensor([1.0, 3.0]), torch.tensor([])], None)
        (tensor(1.), tensor(3.))
    """
    found = [torch.stack([-t.min(), t.max()]) for t in tensors if t.numel()]
    bounds = torch.stack(found).amax(0) if found else tensors[0].new_full((2,), -torch.inf)
    if group is not None:
        dist.all_reduce(bounds, dist.ReduceOp.MAX, group=group)
    return -bounds[0], bounds[1]


def reshard(module: nn.Module) -> None:
    """Has a module's parameters be the shards, which a forward without a backward leaves put together."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def misfits(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """What is sharded otherwise than by FSDP2 over one dimension of processes, or kept elsewhere."""
    found = []
    for name, p in named:
        if not isinstance(p, DTensor):
            found.append(f"{name}: not sharded, so nobody averages its gradient over processes")
        elif p.device_mesh.ndim != 1 or not p.placements[0].is_shard():
            found.append(f"{name}: placed as {tuple(p.placements)} over {p.device_mesh.ndim} dimensions")
        elif held(p).device.type != p.device_mesh.device_type:
            found.append(f"{name}: offloaded to {held(p).device.type}")
    return found
