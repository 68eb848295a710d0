"""What runs on a device that is not the CPU, file by file, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import PRETEND_DEVICE
from tests.pretend_device.build import compiler

FAST = "test_device.py"
FILES = sorted(path.name for path in PRETEND_DEVICE.glob("test_*.py"))


@pytest.mark.timeout(1200)
@pytest.mark.skipif(compiler() is None, reason="the pretend device needs a C++ compiler (c++ or g++)")
@pytest.mark.parametrize(
    "file", [FAST, *(pytest.param(f, marks=pytest.mark.slow) for f in FILES if f != FAST)]
)
def test_on_the_pretend_device(file: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        PRETEND_DEVICE / file,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
