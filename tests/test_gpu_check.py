"""The checks for a GPU run on the CPU, and one that hangs or dies does not end the others."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.processes import forkserver
from tests.scripts import run_script

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NEED_CUDA = {
    "waits_of_rules",
    "waits_of_boundaries",
    "state_takes_no_memory_of_the_device",
    "memory_of_a_measurement",
    "two_devices",
    "cuda_graphs",
}


def check(*arguments: str, folder: Path) -> dict[str, dict[str, Any]]:
    done = run_script(BENCHMARKS / "gpu_check.py", *arguments, "--json", "found.json", folder=folder)
    found = {row["name"]: row for row in json.loads((folder / "found.json").read_text())}
    failed = [row for row in found.values() if row["outcome"] == "FAIL"]
    assert not failed, done.stdout
    assert done.returncode == 0
    return found


@pytest.mark.slow
def test_all_that_needs_no_cuda_holds_on_the_cpu(tmp_path: Path) -> None:
    found = check("--device", "cpu", "--quick", folder=tmp_path)
    skipped = {name: row["seen"] for name, row in found.items() if row["outcome"] == "SKIP"}
    left_out = {name for name, why in skipped.items() if why == "left out by --quick"}
    assert set(skipped) - left_out == NEED_CUDA
    assert all(name.startswith("speed_of") for name in left_out)
    assert all(skipped.values())  # each with a reason


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, whose processes begin at once."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: forkserver())
    return importlib.import_module("gpu_check")


def passes(place: Any) -> str:
    """This is well."""
    return f"well on {place.device}"


def fails(place: Any) -> str:
    assert place.quick, "this is wrong"
    return ""


def raises(place: Any) -> str:
    raise KeyError("this is missing")


def hangs(place: Any) -> str:
    time.sleep(600)
    return ""


def dies(place: Any) -> str:
    os._exit(1)


def run(gpu_check: ModuleType, *checks: Any, limit: float = 100.0) -> list[tuple[str, str]]:
    listed = [gpu_check.Check(function, 0.1) for function in checks]
    found = list(gpu_check.results(listed, gpu_check.Place("cpu"), limit))
    assert [result.name for result in found] == [function.__name__ for function in checks]
    return [(result.outcome, result.seen) for result in found]


def test_what_a_check_says(gpu_check: ModuleType) -> None:
    found = run(gpu_check, passes, fails, raises)
    assert found[:2] == [("PASS", "well on cpu"), ("FAIL", "this is wrong")]
    outcome, seen = found[2]
    assert outcome == "FAIL"
    assert "KeyError: 'this is missing' (test_gpu_check.py:" in seen
    assert gpu_check.Check(passes, 1).shows == "This is well."


def test_a_check_that_hangs_or_dies_does_not_end_the_others(gpu_check: ModuleType) -> None:
    assert run(gpu_check, hangs, passes, dies, passes) == [
        ("FAIL", "it was not over in time, and was ended"),
        ("PASS", "well on cpu"),
        ("FAIL", "its process has died"),
        ("PASS", "well on cpu"),
    ]


def test_checks_for_which_no_time_is_left_are_skipped(gpu_check: ModuleType) -> None:
    assert run(gpu_check, passes, passes, limit=0.0) == [("SKIP", "no time left")] * 2


def test_all_checks_have_names_shares_and_say_what_they_must_show(gpu_check: ModuleType) -> None:
    names = [each.name for each in gpu_check.CHECKS]
    assert len(set(names)) == len(names) > 20
    assert all(each.shows for each in gpu_check.CHECKS)
    assert sum(each.seconds for each in gpu_check.CHECKS) <= 480
