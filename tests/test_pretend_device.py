"""What runs on a device that is not the CPU."""

from __future__ import annotations

import pytest

from tests.pretend_device.separately import FILES, LONG, run, where_it_compiles

FAST = "test_device.py"
SLOW = [pytest.param(file, marks=pytest.mark.slow) for file in FILES if file not in {FAST, *LONG}]


@pytest.mark.timeout(1200)
@where_it_compiles
@pytest.mark.parametrize("file", [FAST, *SLOW])
def test_on_the_pretend_device(file: str) -> None:
    run(file)


def test_every_file_is_run() -> None:
    assert {FAST, *LONG} < set(FILES)
