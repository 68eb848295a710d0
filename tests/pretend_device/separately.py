"""Runs the tests of this folder, file by file, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.pretend_device.build import compiler

FOLDER = Path(__file__).parent
FILES = sorted(path.name for path in FOLDER.glob("test_*.py"))
LONG = {"test_rules.py", "test_waits.py"}
"""In modules of their own, so that processes of pytest-xdist can share the work."""

where_it_compiles = pytest.mark.skipif(
    compiler() is None, reason="the pretend device needs a C++ compiler (c++ or g++)"
)


def run(file: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", FOLDER / file]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
