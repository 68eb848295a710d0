"""One memory of samples over all processes that train together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from cl_callbacks.boundaries.process_state import in_a_group
from cl_callbacks.rules.rehearsal.sample_memory import Drawn, SampleMemory
from cl_callbacks.rules.rehearsal.saved_samples import Sample, pack_samples, unpack_samples
from cl_callbacks.tensors.rows import join_rows, read_rows


def merge_over_processes(memory: SampleMemory) -> None:
    """Gives every process the samples of all; all of them have to call it."""
    if memory.processes == 1:
        return
    elsewhere = _held_before(memory)
    own = pack_samples(sample for sample in memory if sample.number not in elsewhere)
    found: list[Any] = [None] * memory.processes
    dist.all_gather_object(found, {"samples": own, "limits": memory.limits})
    others = [part for rank, part in enumerate(found) if rank != memory.rank]
    memory.merge(
        [sample for part in others for sample in unpack_samples(part["samples"])],
        [part["limits"] for part in others],
    )


def batches_of_one_kind(memory: SampleMemory, drawn: list[Sample], group: dist.ProcessGroup) -> list[Drawn]:
    """Batches of drawn samples of which every process gets as many, each of the same kind.

    For parameters that are sharded: all processes run their forwards together, through the same layers. If
    the samples that they have drawn make other numbers of batches, or batches that differ in what all samples
    of one share, such as the number of a task with a head of its own, all of their samples are put together
    to batches, of each of which every process gets a part. All processes have to call it.

    Args:
        memory: from which they were drawn.
        drawn: by this process.
        group: of all processes, for objects on the CPU.
    """
    batches = memory.batches(drawn)
    kinds = [_shared(part.batch) for part in batches]
    if all(theirs == kinds for theirs in _gathered(kinds, memory.processes, group)):
        return batches
    packed = _gathered(pack_samples(drawn), memory.processes, group)
    together = [sample for theirs in packed for sample in unpack_samples(theirs)]
    return [_part_of(part, memory.rank, memory.processes) for part in memory.batches(together)]


def _shared(batch: Any) -> list[Any]:
    """What all samples of a batch have in common."""
    rows = read_rows(batch)
    found = [leaf for i, leaf in enumerate(rows.leaves) if rows.is_shared(i)]
    return [leaf.tolist() if isinstance(leaf, Tensor) else leaf for leaf in found]


def _part_of(part: Drawn, rank: int, processes: int) -> Drawn:
    """The rows of a batch that are for one process; one that counts nothing where there are too few."""
    rows = read_rows(part.batch)
    own = range(rank, rows.count, processes)
    which = list(own) or [0]
    return Drawn(
        join_rows(rows.take(which), rows),
        part.share * processes * len(own) / rows.count,
        None if part.extra is None else part.extra[which],
    )


def _gathered(mine: Any, processes: int, group: dist.ProcessGroup) -> list[Any]:
    found: list[Any] = [None] * processes
    dist.all_gather_object(found, mine, group)
    return found


def joint_state(memory: SampleMemory) -> dict[str, Any]:
    """The state of the memories of all processes, on the first one, which writes checkpoints.

    A sample that several have is in it once. Other processes get a state of their own memory. All of them
    have to call it.
    """
    numbers = [sample.number for sample in memory]
    if memory.processes == 1 or not in_a_group():
        state = memory.state_dict()
        return {"samples": state.pop("samples"), "processes": [state | {"numbers": numbers}]}
    state = memory.state_dict(without=_held_before(memory))
    found: list[Any] = [None] * memory.processes
    dist.gather_object(state | {"numbers": numbers}, found if memory.rank == 0 else None)
    if memory.rank:
        state = memory.state_dict()
        found[memory.rank] = state | {"numbers": numbers}
        return {"samples": state["samples"], "processes": found}
    return {"samples": [part for each in found for part in each.pop("samples")], "processes": found}


def restore_joint(memory: SampleMemory, saved: Mapping[str, Any]) -> None:
    """Restores this process's part of :func:`joint_state`.

    With another number of processes than at the time, every process gets the joint memory of all.
    """
    states = saved["processes"]
    samples = {sample.number: sample for sample in unpack_samples(saved["samples"])}
    if len(states) == memory.processes:
        own = states[memory.rank]
        memory.load_state_dict(own | {"samples": pack_samples(samples[n] for n in own["numbers"])})
        return
    rank_zero_warn(
        f"The checkpoint was written by {len(states)} processes and is resumed by {memory.processes}: the "
        f"samples that each of them remembered are put together."
    )
    own = states[0]
    most = max(state["count"] for state in states) * len(states)
    memory.load_state_dict(own | {"samples": [], "waiting": [], "count": -(-most // memory.processes)})
    memory.merge(samples.values(), [state["limits"] for state in states])


def _held_before(memory: SampleMemory) -> frozenset[int]:
    """Numbers of the samples that a process before this one holds, too."""
    held: list[Any] = [None] * memory.processes
    dist.all_gather_object(held, [sample.number for sample in memory])
    return frozenset(number for numbers in held[: memory.rank] for number in numbers)
