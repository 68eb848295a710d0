"""Ten minutes on a GPU: whether everything works there as it does on the CPU, and what it costs.

    PYTHONPATH=. python benchmarks/gpu_check.py
    PYTHONPATH=. python benchmarks/gpu_check.py --only ddp fsdp2 --limit 200
    PYTHONPATH=. python benchmarks/gpu_check.py --device cpu --quick
    PYTHONPATH=. python benchmarks/gpu_check.py --list

Needs torch, for CUDA, and what the package needs. For each check a line: PASS, FAIL or SKIP, its name, what
was seen, and the seconds; below a failed one what it must show. ``--device cpu`` compares the CPU with itself
to see that the checks work, and ``--device pretend`` takes the device of the tests, which behaves like a GPU.
The checks run in a process that is ended and begun anew if one hangs or loses the device; the most important
come first, and those for which no time is left are skipped.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from gpu_checks.check import Check, Result
from gpu_checks.every_check import CHECKS
from gpu_checks.place import Place
from gpu_checks.worker import LOST, READY, work

TO_BEGIN = 90.0
"""Seconds in which a process must have imported everything."""
HANGS, DIED = "it was not over in time, and was ended", "its process has died"
PATIENCE = {"cuda": 2.0, "cpu": 20.0, "pretend": 20.0}
"""How many times its share of an H200's seconds a check may take before it is ended."""


def results(checks: list[Check], place: Place, limit: float) -> Iterator[Result]:
    """Results in the order of the checks."""
    last = time.monotonic() + limit
    left = list(checks)
    context = multiprocessing.get_context("spawn")
    while left and time.monotonic() < last:
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(place, left, theirs))
        process.start()
        theirs.close()  # so that its end is noticed
        said = received(ours, TO_BEGIN)
        if said != READY:
            yield Result(left.pop(0).name, "FAIL", f"there is no process to run it: {said}")
        while left and said not in (LOST, DIED, HANGS) and time.monotonic() < last:
            seconds = min(PATIENCE[place.device] * left[0].seconds, last - time.monotonic())
            said = received(ours, seconds)
            if said != LOST:
                name = left.pop(0).name
                yield said if isinstance(said, Result) else Result(name, "FAIL", said, seconds)
        if isinstance(said, Result):
            process.join(TO_BEGIN)  # it has nothing left to do
        process.kill()
        process.join()
    yield from (Result(check.name, "SKIP", "no time left") for check in left)


def received(connection: Connection, seconds: float) -> Result | str:
    """What a process sends, or why it sends nothing."""
    if not connection.poll(seconds):
        return HANGS
    try:
        return connection.recv()
    except EOFError:
        return DIED


def chosen(names: list[str]) -> list[Check]:
    return [check for check in CHECKS if not names or check.name in names]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [check.name for check in CHECKS]
    parser.add_argument("--device", choices=("cuda", "cpu", "pretend"), default="cuda")
    parser.add_argument("--only", nargs="+", choices=names, default=[], metavar="CHECK", help="see --list")
    parser.add_argument("--limit", type=float, help="seconds for all checks; on CUDA 480")
    parser.add_argument("--quick", action="store_true", help="a few rules only")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    parser.add_argument("--list", action="store_true", help="say what each check must show, and end")
    args = parser.parse_args()
    if args.list:
        print("\n".join(f"{check.name}: {check.shows}" for check in CHECKS))
        return 0
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; --device cpu tries the checks themselves")
    on = torch.cuda.get_device_name() if args.device == "cuda" else args.device
    print(f"torch {torch.__version__}, {on}", flush=True)
    limit = args.limit or (480.0 if args.device == "cuda" else 3600.0)
    start, found = time.monotonic(), []
    for result in results(chosen(args.only), Place(args.device, args.quick), limit):
        found.append(result)
        print(f"{result.outcome} {result.name}: {result.seen} [{result.seconds:.1f} s]", flush=True)
        if result.outcome == "FAIL":
            (check,) = chosen([result.name])
            print(f"     must show: {check.shows}", flush=True)
    counts = {kind: sum(r.outcome == kind for r in found) for kind in ("PASS", "FAIL", "SKIP")}
    print(
        ", ".join(f"{count} {kind}" for kind, count in counts.items()) + f", {time.monotonic() - start:.0f} s"
    )
    if args.json:
        args.json.write_text(json.dumps([asdict(result) for result in found], indent=1))
    return int(counts["FAIL"] > 0)


if __name__ == "__main__":
    sys.exit(main())
