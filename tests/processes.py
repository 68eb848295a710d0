"""Real processes that train together on this machine."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch.strategies import DDPStrategy

# A process that is forked from one with these imported begins at once; one that imports them takes 8 s.
PRELOADED = ["lightning.pytorch", "cl_callbacks", "tests.processes"]
SERVED = multiprocessing.get_context("forkserver")


def forkserver() -> ForkServerContext:
    """Of processes that begin at once."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    return SERVED


class Forked(DDPStrategy):
    """What ``ddp_spawn`` is, with processes that begin at once."""

    def __init__(self) -> None:
        super().__init__(start_method="forkserver")
        forkserver()
        os.environ.pop("MASTER_PORT", None)  # of an earlier Trainer; somebody else may have it by now

    def __getstate__(self) -> dict[str, Any]:
        """With what Lightning hands over to processes that are spawned, and to no others."""
        # Not as a tensor: a tensor's memory, which is shared, would be gone before the process has it.
        random = torch.get_rng_state().tolist()
        return super().__getstate__() | {"environment": dict(os.environ), "random": random}

    def setup_environment(self) -> None:
        """The first thing that is called in each of the processes."""
        os.environ |= self.environment  # that of the server is as old as the server
        torch.set_rng_state(torch.tensor(self.random, dtype=torch.uint8))
        assert self.lightning_module is not None
        for tensor in (*self.lightning_module.parameters(), *self.lightning_module.buffers()):
            tensor.data = tensor.data.clone()  # it came in memory that the processes share
        super().setup_environment()


def train_together(processes: int, work: Callable[..., None], *args: Any) -> None:
    """Runs ``work(rank, *args)`` in so many processes, with what a launcher would have told them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    forkserver()
    environment = dict(os.environ)  # the server's is that of the first call
    mp.start_processes(
        _launched, (processes, port, environment, work, args), nprocs=processes, start_method="forkserver"
    )


def _launched(
    rank: int,
    processes: int,
    port: int,
    environment: dict[str, str],
    work: Callable[..., None],
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    os.environ.clear()
    os.environ |= environment
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "NODE_RANK": "0",
        "LOCAL_RANK": str(rank),
        "RANK": str(rank),
    }
    work(rank, *args)
    if dist.is_initialized():  # a gloo thread that is still alive at exit aborts the process now and then
        dist.destroy_process_group()
