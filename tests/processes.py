"""Real processes that train together on this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def train_together(processes: int, work: Callable[..., None], *args: Any) -> None:
    """Runs ``work(rank, *args)`` in so many processes, with what a launcher would have told them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_launched, (processes, port, work, args), nprocs=processes)


def _launched(rank: int, processes: int, port: int, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
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
