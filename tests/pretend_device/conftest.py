"""Loads the pretend device before any test runs, and asks after each whether streams were in order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pretend_device import device
from tests.pretend_device.build import compiler

if compiler() is not None:
    device.load()  # and not in a fixture: torch counts its devices at the first backward of a process


@pytest.fixture(autouse=True)
def _no_races() -> Iterator[None]:
    if compiler() is None:
        pytest.skip("the pretend device needs a C++ compiler (c++ or g++)")
    device.races()
    yield
    assert not device.races()
