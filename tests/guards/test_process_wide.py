"""Settings of the process that several threads make and undo."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cl_callbacks.guards.process_wide import ProcessWide


class Setting:
    """A number that is 1, and 2 for a while."""

    def __init__(self) -> None:
        self.value = 1
        self.times = 0

    @contextmanager
    def made(self) -> Iterator[None]:
        before, self.value = self.value, 2
        self.times += 1
        try:
            yield
        finally:
            self.value = before


def overlap(first: ProcessWide, second: ProcessWide, within: Setting) -> list[int]:
    """The values while a thread has entered, another one, the first has left, and the second."""
    seen, entered, left = [], threading.Event(), threading.Event()

    def other() -> None:
        with second:
            seen.append(within.value)
            entered.set()
            assert left.wait(10)
            seen.append(within.value)

    thread = threading.Thread(target=other)
    with first:
        seen.append(within.value)
        thread.start()
        assert entered.wait(10)
    left.set()
    thread.join()
    return [*seen, within.value]


def test_the_first_thread_makes_it_and_the_last_undoes_it() -> None:
    setting = Setting()
    shared = ProcessWide(setting.made)
    assert overlap(shared, shared, setting) == [2, 2, 2, 1]
    assert setting.times == 1
    with shared:
        assert setting.value == 2
    assert setting.times == 2


def test_each_for_itself_leaves_it_made() -> None:
    setting = Setting()
    assert overlap(ProcessWide(setting.made), ProcessWide(setting.made), setting) == [2, 2, 1, 2]


def test_it_is_undone_after_an_exception() -> None:
    setting = Setting()
    with pytest.raises(KeyError), ProcessWide(setting.made):
        raise KeyError
    assert setting.value == 1
