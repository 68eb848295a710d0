"""Collective operations of processes that train on pretend devices: gloo's, on the same memory."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.futures import Future

from tests.pretend_device.device import DEVICE, DEVICES, PretendAccelerator, load, on_host


class PretendGroup(dist.ProcessGroup):
    """A process group for tensors of the pretend device and of the CPU.

    As with NCCL the host does not wait for a collective, other than for a barrier.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout)
        # torch asks it what it can do; the operations are those below.
        self._register_backend(torch.device(DEVICE), dist.ProcessGroup.BackendType.CUSTOM, self._gloo)

    def getBackendName(self) -> str:
        return DEVICE

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> dist.Work:
        return _done(self._gloo.allreduce(_host(tensors), *_given(opts)), tensors)

    def broadcast(self, tensors: list[Tensor], opts: Any = None) -> dist.Work:
        return _done(self._gloo.broadcast(_host(tensors), *_given(opts)), tensors)

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> dist.Work:
        work = self._gloo.allgather([_host(o) for o in outputs], _host(inputs), *_given(opts))
        return _done(work, outputs)

    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> dist.Work:
        work = self._gloo.gather([_host(o) for o in outputs], _host(inputs), *_given(opts))
        return _done(work, outputs)

    def barrier(self, opts: Any = None) -> dist.Work:
        torch.accelerator.synchronize()
        return _done(self._gloo.barrier(), None)


def _host(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [on_host(t) if t.device.type == DEVICE else t for t in tensors]


def _given(opts: Any) -> list[Any]:
    return [] if opts is None else [opts]


def _done(work: dist.Work, result: Any) -> dist.Work:
    work.wait()
    future: Future[Any] = Future()
    future.set_result(result)
    return torch._C._distributed_c10d._create_work_from_future(future)


class PretendDDP(DDPStrategy):
    """DDP with one pretend device for each process of this machine."""

    def __init__(self, processes: int = DEVICES) -> None:
        load()
        dist.Backend.register_backend(DEVICE, PretendGroup, devices=[DEVICE])
        devices = [torch.device(DEVICE, i) for i in range(processes)]
        super().__init__(
            accelerator=PretendAccelerator(), parallel_devices=devices, process_group_backend=DEVICE
        )

    def determine_ddp_device_ids(self) -> None:
        """None: with some, Lightning asks for a stream of CUDA."""
