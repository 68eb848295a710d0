"""Saves state that differs between processes in the one checkpoint that rank 0 writes."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_warn

from cl_callbacks.tensors.containers import map_tensors


def of_all_processes(mine: Any) -> list[Any]:
    """Gathers the states of all processes on rank 0, which writes checkpoints.

    A collective: all processes must call it, with their own state in plain containers. On other ranks the
    list has only their own entry.

    Example:
        >>> of_all_processes({"seen": 3})
        [{'seen': 3}]
    """
    rank, processes = _place()
    if processes == 1:
        return [mine]
    found = [None] * processes
    on_cpu = map_tensors(lambda t: t.cpu(), mine)  # or rank 0 would load it onto this rank's device
    dist.gather_object(on_cpu, found if rank == 0 else None)
    found[rank] = mine
    return found


def of_this_process(all_processes: list[Any]) -> Any:
    """Returns this process's entry of the list that :func:`of_all_processes` gathered.

    With another number of processes than at the time, it is the entry of some process.
    """
    rank, processes = _place()
    if len(all_processes) != processes:
        rank_zero_warn(
            f"The checkpoint was written by {len(all_processes)} processes and is resumed by {processes}: "
            f"recent samples, which each keeps for itself, are those that some process had."
        )
    return all_processes[rank % len(all_processes)]


def in_a_group() -> bool:
    """Whether this process knows its place among others."""
    return dist.is_available() and dist.is_initialized()


def _place() -> tuple[int, int]:
    """Rank of this process and world size; ``(0, 1)`` without a process group."""
    if in_a_group():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
