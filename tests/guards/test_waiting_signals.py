"""Handlers wait for the end of a section, and come back to be the user's own."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from cl_callbacks.guards import waiting_signals
from cl_callbacks.guards.uninterrupted import uninterrupted
from cl_callbacks.guards.waiting_signals import Section, guard_signals, release_signals, signals_wait

heard: list[int] = []


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    heard.clear()
    numbers = (signal.SIGUSR1, signal.SIGTERM, signal.SIGALRM)
    before = {number: signal.signal(number, lambda n, frame: heard.append(n)) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_signals_wait_in_their_order_and_are_heard_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with signals_wait():
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
            signal.raise_signal(number)
        assert heard == []
    assert heard == [signal.SIGTERM, signal.SIGUSR1]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_limit_of_time_does_not_wait() -> None:
    with signals_wait():
        signal.raise_signal(signal.SIGALRM)
        assert heard == [signal.SIGALRM]


def test_the_outermost_section_is_waited_for() -> None:
    step = Section()
    gated = guard_signals()
    step.open()
    with signals_wait(), uninterrupted():
        signal.raise_signal(signal.SIGUSR1)
    assert heard == []
    step.close()
    assert heard == [signal.SIGUSR1]
    release_signals(gated)


def test_a_handler_that_was_installed_within_stays() -> None:
    def mine(number: int, frame: object) -> None:
        heard.append(-number)

    with signals_wait():
        signal.signal(signal.SIGUSR1, mine)
    assert signal.getsignal(signal.SIGUSR1) is mine


def test_what_a_handler_raises_comes_after_the_section() -> None:
    def stop(number: int, frame: object) -> None:
        raise SystemExit(3)

    signal.signal(signal.SIGTERM, stop)
    done = []
    with pytest.raises(SystemExit), signals_wait():
        signal.raise_signal(signal.SIGTERM)
        done.append(True)
    assert done
    assert signal.getsignal(signal.SIGTERM) is stop


def test_a_process_that_is_forked_within_does_not_wait() -> None:
    with signals_wait():
        child = os.fork()
        if not child:
            signal.raise_signal(signal.SIGUSR1)
            os._exit(len(heard))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert heard == []


def test_a_section_in_another_thread_leaves_the_signals_to_the_main_one() -> None:
    gated = guard_signals()
    waiting_signals._waiting[signal.SIGUSR1] = None  # as while the main thread is about to call the handler

    def elsewhere() -> None:
        with Section():
            pass

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert heard == []
    with Section():
        pass
    assert heard == [signal.SIGUSR1]
    release_signals(gated)
