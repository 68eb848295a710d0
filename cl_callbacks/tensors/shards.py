"""Parameters that FSDP2 shards, so that every process holds a part of them.

Rules are local to a synapse, so each process works on its own shards of weights, gradients and state as on
any other tensor. Operations over all processes are here: sums and extremes over all shards, and the full
tensor of a checkpoint from its shards and back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from cl_callbacks.tensors.devices import stacked


def held(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, or the tensor itself if it is not sharded.

    The same object each time, unlike what ``DTensor.to_local`` gives.

    Example:
        >>> weight = torch.ones(2)
        >>> held(weight) is weight
        True
    """
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a shard of a tensor."""
    return isinstance(tensor, DTensor)


def is_sharded_by_rows(tensor: Tensor) -> bool:
    """Whether this process holds some rows of a tensor, as FSDP2 shards it unless told otherwise."""
    return isinstance(tensor, DTensor) and all(placement.is_shard(0) for placement in tensor.placements)


def first_row(tensor: Tensor) -> int:
    """Number of the first row that this process holds of a tensor, 0 if it is not sharded by rows.

    Example:
        >>> first_row(torch.ones(2))
        0
    """
    if not isinstance(tensor, DTensor) or not is_sharded_by_rows(tensor):
        return 0
    mesh = tensor.device_mesh
    rows = -(-len(tensor) // mesh.size())  # of each process but the last ones, as torch.chunk divides them
    return min(mesh.get_local_rank() * rows, len(tensor))


def full_tensor(tensor: Tensor) -> Tensor:
    """Gathers a tensor from its shards; to be called by all processes that hold one."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def distribute_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Shards a tensor like a parameter, or gathers it if that is unsharded; all processes must call it."""
    if not isinstance(like, DTensor):
        return full_tensor(tensor)  # e.g. state of a rule that continues without sharding
    if isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def group_of(tensors: Iterable[Tensor]) -> dist.ProcessGroup | None:
    """Group of the processes over which tensors are sharded; ``None`` if they are not."""
    return next((t.device_mesh.get_group() for t in tensors if isinstance(t, DTensor)), None)


def total(value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Sum of a value over the processes that hold the shards.

    Example:
        >>> total(torch.tensor(2.0), None)
        tensor(2.)
    """
    if group is not None:
        value = value.clone()
        dist.all_reduce(value, group=group)
    return value


def of_first(value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The first process's value, on all processes that hold the shards.

    Example:
        >>> of_first(torch.tensor(2.0), None)
        tensor(2.)
    """
    if group is not None:
        value = value.clone(memory_format=torch.contiguous_format)
        dist.broadcast(value, group=group, group_src=0)
    return value


def extremes(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Least and greatest value of all tensors over all shards; some may be empty.

    Example:
        >>> extremes([torch.tensor([1.0, 3.0]), torch.tensor([])], None)
        (tensor(1.), tensor(3.))
    """
    found = [torch.stack([-t.min(), t.max()]) for t in tensors if t.numel()]
    bounds = stacked(found).amax(0) if found else tensors[0].new_full((2,), -torch.inf)
    if group is not None:
        dist.all_reduce(bounds, dist.ReduceOp.MAX, group=group)
    return -bounds[0], bounds[1]


def greatest(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> Tensor:
    """Greatest value of all tensors over all shards, without waiting for the device; some may be empty.

    Example:
        >>> greatest([torch.tensor([1.0, 3.0]), torch.tensor([])], None)
        tensor(3.)
    """
    filled = [t for t in tensors if t.numel()]
    found = stacked(torch._foreach_max(filled)).max() if filled else tensors[0].new_full((), -torch.inf)
    if group is not None:
        dist.all_reduce(found, dist.ReduceOp.MAX, group=group)
    return found


def reshard(module: nn.Module) -> None:
    """Frees a module's gathered parameters, which a forward without a backward leaves in place of shards."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


@contextmanager
def gradients_apart(module: nn.Module) -> Iterator[None]:
    """Within, ``.grad`` is empty and may be used; afterwards the gradients of training are restored."""
    reshard(module)  # or these would be parameters gathered by a forward without a backward
    kept = [(p, p.grad) for p in module.parameters()]
    module.zero_grad()
    try:
        yield
    finally:
        for p, gradient in kept:
            p.grad = gradient


def misfits(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Descriptions of parameters that FSDP2 does not shard over one mesh dimension, or offloads."""
    found = []
    for name, p in named:
        if not isinstance(p, DTensor):
            found.append(f"{name}: not sharded, so nobody averages its gradient over processes")
        elif p.device_mesh.ndim != 1 or not p.placements[0].is_shard():
            found.append(f"{name}: placed as {tuple(p.placements)} over {p.device_mesh.ndim} dimensions")
        elif held(p).device.type != p.device_mesh.device_type:
            found.append(f"{name}: offloaded to {held(p).device.type}")
    return found
