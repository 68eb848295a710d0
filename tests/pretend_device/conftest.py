"""Loads the pretend device once in each process, and asks after every test whether streams were in order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pretend_device import device
from tests.pretend_device.build import compiler


@pytest.fixture(scope="session", autouse=True)
def _device() -> None:
    if compiler() is None:
        pytest.skip("the pretend device needs a C++ compiler (c++ or g++)")
    device.load()


@pytest.fixture(autouse=True)
def _no_races(_device: None) -> Iterator[None]:
    device.races()
    yield
    assert not device.races()
