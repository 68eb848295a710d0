"""The page of the matrix, which is written from what the tests declare."""

from __future__ import annotations

from tests.compatibility import PAGE, page
from tests.every_rule import RULES
from tests.settings import SETTINGS


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run `python -m tests.compatibility`"


def test_no_cell_is_empty() -> None:
    tables = [line.split("|")[1:-1] for line in page().splitlines() if line.startswith("| ")]
    bodies = [line for line in tables if line[0].strip()]
    assert len(bodies) >= 2 * len(SETTINGS)
    assert all(text.strip() for line in bodies for text in line)


def test_every_exception_is_of_a_rule_that_there_is() -> None:
    assert len({setting.title for setting in SETTINGS}) == len(SETTINGS)
    for setting in SETTINGS:
        assert set(setting.exceptions) <= set(RULES), setting.title
