"""The host does not wait in steps that do not log, and the page says so."""

from __future__ import annotations

import pytest

from tests.every_rule import RULES, every_rule
from tests.pretend_device import counts
from tests.pretend_device.__main__ import PAGE, page

# One for each check of what was found, every five batches.
CHECKING = {"DriftBoundaries()", "DriftBoundaries(monitor='feature_shift')", "PlateauBoundaries()"}
HARD = "PlateauBoundaries(hard_samples=10)"


@every_rule
def test_no_rule_makes_the_host_wait(rule: str) -> None:
    measured = counts.beyond_none(rule)
    measured.pop("end of a task")
    # StreamingConsolidation reads the unit of its importance, DarkExperienceReplay outputs that it stores,
    # and ReDo the dormant units, after every second step here.
    rarely = 0.22 if rule == "der" or rule.startswith("streaming") else 0.5 if rule == "redo" else 0.0
    assert all(0.0 <= waited <= rarely for waited in measured.values()), measured


@pytest.mark.parametrize("name", [counts.BATCH_BOUNDARIES, *RULES])
def test_two_processes_wait_no_more_than_without(name: str) -> None:
    found = [set(process) for process in counts.beyond_none_together(name)]
    if name == "der":  # for outputs of samples that entered in the step before, of one batch or of two
        assert set.union(*found) in ({0, 1}, {0, 1, 2})
        return
    # StreamingConsolidation reads the unit of its importance, once in so many steps that it changes little.
    reads = {0, 1} if name.startswith("streaming") or name == "redo" else {0}
    assert found == [reads, reads]


@pytest.mark.parametrize("name", counts.OTHERS)
def test_boundaries_wait_when_they_check(name: str) -> None:
    waited = counts.of_other(name)
    assert waited <= 1.2 if name == HARD else waited == (0.2 if name in CHECKING else 0.0)


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "write it again: python -m tests.pretend_device"
