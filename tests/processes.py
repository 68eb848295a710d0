"""Real processes that train together on this machine."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# A process that is forked from one with these imported begins at once; one that imports them takes 8 s.
PRELOADED = ["lightning.pytorch", "cl_callbacks", "tests.processes"]


def train_together(processes: int, work: Callable[..., None], *args: Any) -> None:
    """Runs ``work(rank, *args)`` in so many processes, with what a launcher would have told them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.set_forkserver_preload(PRELOADED)
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
