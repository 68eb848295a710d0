"""Runs checks in a process of its own, which can be ended whatever it hangs in."""

from __future__ import annotations

import io
import logging
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.connection import Connection

import torch

from gpu_checks.check import Check, Result, Skip, described
from gpu_checks.place import Place

READY, LOST = "ready", "the device is lost"


def work(place: Place, checks: list[Check], out: Connection) -> None:
    """Sends a result for each check, until one has lost the device."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    if place.device != "cuda":
        torch.set_num_threads(1)
    place.prepare()
    out.send(READY)
    for check in checks:
        out.send(result_of(check, place))
        if not is_alive(place):
            out.send(LOST)
            return


def result_of(check: Check, place: Place) -> Result:
    start = time.perf_counter()
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            outcome, seen = "PASS", check.run(place)
            refuse_races(place)
    except Skip as reason:
        outcome, seen = "SKIP", str(reason)
    except Exception as error:
        outcome, seen = "FAIL", str(error) if isinstance(error, AssertionError) else described(error)
    return Result(check.name, outcome, seen, time.perf_counter() - start)


def refuse_races(place: Place) -> None:
    """Raises for what streams of the pretend device have done out of order; a GPU says nothing of it."""
    if place.device == "pretend":
        from tests.pretend_device.device import races

        found = races()
        assert not found, f"races between streams: {found[:3]}"


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
