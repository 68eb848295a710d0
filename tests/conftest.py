"""Every test begins with the same random numbers, whichever ran before it, and computes on one thread."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# What tests compare is computed in the same order here, on any machine and in every process that they start;
# and as many tests run at a time as there are cores.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


PRETEND_DEVICE = Path(__file__).parent / "pretend_device"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out what needs the pretend device, unless it is asked for by name.

    Torch counts its devices at the first backward, so a process has to load them before, and all that runs in
    it has them: tests/test_pretend_*.py start processes of their own.
    """
    asked_for = any("pretend_device" in argument for argument in config.args)
    return True if collection_path == PRETEND_DEVICE and not asked_for else None


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
