"""What is copied before a rule asks for it."""

from __future__ import annotations

import pytest
import torch

from cl_callbacks.synapses import visit
from cl_callbacks.synapses.visit import Visit

CPU = torch.device("cpu")


def test_no_more_than_the_limit_is_copied_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visit, "AHEAD_BYTES", 100)
    here, there = Visit(), Visit()
    here.next, there.asked = there, [(torch.zeros(n), CPU) for n in (10, 10, 10, 2)]
    assert [len(t) for t, _ in here.ahead()] == [10, 10]


def test_memory_that_is_changed_meanwhile_is_not_copied_ahead() -> None:
    state = torch.zeros(6, 4).t().contiguous().t()  # columns one after the other in memory
    for changing, rows in ((True, []), (False, [slice(0, 3)])):
        here, there = Visit(changing), Visit()
        here.next, here.asked, there.asked = there, [(state[3:], CPU)], [(state[:3], CPU)]
        assert [t.shape[0] for t, _ in here.ahead()] == [3 for _ in rows]


def test_what_another_visit_asks_for_now_counts() -> None:
    here, there, state = Visit(), Visit(), torch.zeros(4)
    here.next = there
    for asked in ([], [(state[:2], CPU)], [(state, CPU), (state[1:], CPU)]):
        there.asked = asked
        assert here.ahead() == asked
    here.asked = [(state[:1], CPU)]
    assert [len(t) for t, _ in here.ahead()] == [3]
