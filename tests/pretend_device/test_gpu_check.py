"""The checks for a GPU on the pretend device: what can be seen there holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_gpu_check import NEED_CUDA, check

ABSENT = {"fsdp2", "fused_optimizer", "compile_rules"}  # collectives for shards, kernels, a compiler
SEEN_HERE = {"waits_of_rules", "waits_of_boundaries", "two_devices"}


@pytest.mark.slow
def test_all_that_can_be_seen_on_the_pretend_device_holds(tmp_path: Path) -> None:
    found = check("--device", "pretend", "--quick", folder=tmp_path)
    skipped = {name for name, row in found.items() if row["outcome"] == "SKIP"}
    assert {name for name in skipped if not name.startswith("speed_of")} == (NEED_CUDA - SEEN_HERE) | ABSENT
