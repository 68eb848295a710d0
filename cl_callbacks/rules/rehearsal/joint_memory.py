"""One memory of samples over all processes that train together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_warn

from cl_callbacks.boundaries.process_state import in_a_group
from cl_callbacks.rules.rehearsal.sample_memory import SampleMemory
from cl_callbacks.rules.rehearsal.saved_samples import pack_samples, unpack_samples


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
