"""Runs checks in a process of its own, which can be ended whatever it hangs in."""

from __future__ import annotations

import io
import logging
import os
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.connection import Connection

import torch

from gpu_checks.check import Check, Result, Skip, described
from gpu_checks.every_check import CHECKS
from gpu_checks.place import Place


def work(place: Place, names: list[str], out: Connection) -> None:
    """Sends a result for each check, until one has lost the device."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, for Trainer(deterministic=True)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    if place.device != "cuda":
        torch.set_num_threads(1)
    by_name = {check.name: check for check in CHECKS}
    out.send("ready")
    for name in names:
        out.send(result_of(by_name[name], place))
        if not is_alive(place):
            return


def result_of(check: Check, place: Place) -> Result:
    start = time.perf_counter()
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            outcome, seen = "PASS", check.run(place)
    except Skip as reason:
        outcome, seen = "SKIP", str(reason)
    except Exception as error:
        outcome, seen = "FAIL", str(error) if isinstance(error, AssertionError) else described(error)
    return Result(check.name, outcome, seen, time.perf_counter() - start)


def is_alive(place: Place) -> bool:
    """Whether the device still computes: an error within a kernel ends all work on it in this process."""
    if place.device != "cuda":
        return True
    try:
        torch.ones(1, device="cuda").add_(1)
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True
