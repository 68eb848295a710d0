"""Loads the pretend device once in each process, and asks after every test whether streams were in order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pretend_device import device
from tests.pretend_device.build import NoCompilerError


@pytest.fixture(scope="session", autouse=True)
def _device() -> None:
    try:
        device.load()
    except NoCompilerError as missing:
        pytest.skip(str(missing))


@pytest.fixture(autouse=True)
def _no_races(_device: None) -> Iterator[None]:
    device.races()
    yield
    assert not device.races()
