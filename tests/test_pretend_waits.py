"""How often the host waits for a device that is not the CPU."""

from __future__ import annotations

import pytest

from tests.pretend_device.separately import run, where_it_compiles


@pytest.mark.slow
@pytest.mark.timeout(1200)
@where_it_compiles
def test_on_the_pretend_device() -> None:
    run("test_waits.py")
