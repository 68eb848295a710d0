"""Every test begins with the same random numbers, whichever ran before it, and computes on one thread."""

from __future__ import annotations

import os

import pytest
import torch

# What tests compare is computed in the same order here, on any machine and in every process that they start;
# and as many tests run at a time as there are cores.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
