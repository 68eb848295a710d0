"""What differs between processes, in a checkpoint that one of them writes."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_warn

from cl_callbacks.tensors.batches import map_tensors


def of_all_processes(mine: Any) -> list[Any]:
    """What each process has, by rank, on the first, which writes checkpoints; the others see only theirs.

    All processes must call it.

    Args:
        mine: what this process has, in plain containers.

    Example:
        >>> of_all_processes({"seen": 3})
        [{'seen': 3}]
    """
    rank, processes = _place()
    if processes == 1:
        return [mine]
    found = [None] * processes
    on_cpu = map_tensors(lambda t: t.cpu(), mine)  # another process would put it on this one's device
    dist.gather_object(on_cpu, found if rank == 0 else None)
    found[rank] = mine
    return found


def of_this_process(all_processes: list[Any]) -> Any:
    """What is this process's of what :func:`of_all_processes` has gathered.

    In a run with another number of processes, what some process had.
    """
    rank, processes = _place()
    if len(all_processes) != processes:
        rank_zero_warn(
            f"The checkpoint was written by {len(all_processes)} processes and is resumed by {processes}: "
            f"recent samples, which each keeps for itself, are those that some process had."
        )
    return all_processes[rank % len(all_processes)]


def _place() -> tuple[int, int]:
    """Rank of this process, and number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
