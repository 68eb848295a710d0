"""The search for a share, against every share there is."""

from __future__ import annotations

import pytest

from cl_callbacks.retention.least_share import RESOLUTION, Try, least_share
from cl_callbacks.retention.tolerated_loss import ToleratedLoss


@pytest.mark.parametrize("root", [0.001, 0.3, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("tries", [1, 2, 4, 20])
def test_an_excess_that_falls(root: float, tries: int) -> None:
    tried = least_share(lambda share: root - share, root, tries)
    assert tried[0].excess <= 0
    assert len(tried) <= tries + 1
    assert root <= tried[0].share <= root + max(2.0 ** -(tries - 1), RESOLUTION)


def test_nothing_is_tried_where_nothing_is_in_excess() -> None:
    assert least_share(lambda share: pytest.fail("tried"), -0.1, 5) == [Try(0.0, -0.1)]


def test_an_excess_that_never_goes_is_least_where_it_was_found_so() -> None:
    tried = least_share(lambda share: 1 + (share - 0.75) ** 2, 1.5625, 7)
    assert tried[0] == Try(0.75, 1.0)
    assert tried[-1].share == 0.0
    assert 1.0 in {each.share for each in tried}


def test_an_excess_that_rises_again_is_kept_where_it_holds() -> None:
    tried = least_share(lambda share: -0.1 if 0.4 < share < 0.6 else 1.0, 1.0, 7)
    assert 0.4 < tried[0].share < 0.45


def test_scores_that_are_no_numbers_have_lost_everything() -> None:
    tolerated = ToleratedLoss({0: 0.5, 1: 0.5}, 0.1, higher_is_better=False)
    assert tolerated.worst([0.5, float("nan")]) == (1, float("inf"))
    assert tolerated.worst([0.75, 0.5]) == (0, 0.25)


def test_a_loss_of_exactly_the_tolerance_is_within_it() -> None:
    tolerated = ToleratedLoss({0: 0.9400000572}, 0.02, higher_is_better=True)
    assert tolerated.excess([0.9199999571]) <= 0 < tolerated.excess([0.9199])
