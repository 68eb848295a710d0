"""Two callbacks of one class in a Trainer, whose states a checkpoint could not tell apart."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cl_callbacks import EWC, EpochBoundaries, StrengthFinder, SynapseStatistics
from tests.small import make_trainer


def test_a_rule_is_told_to_get_a_name() -> None:
    with pytest.raises(MisconfigurationException, match=r"two EWC.*EWC\(name='second', …\)"):
        make_trainer(EWC(1.0), EWC(2.0))
    make_trainer(EWC(1.0), EWC(2.0, name="second"))
    make_trainer(EWC(1.0, exclude="bias"), EWC(2.0, parameters="bias"))


def test_what_has_no_name_is_to_be_there_once() -> None:
    with pytest.raises(MisconfigurationException, match=r"two StrengthFinder.*keep one of them"):
        make_trainer(StrengthFinder(), StrengthFinder())
    with pytest.raises(MisconfigurationException, match=r"two EpochBoundaries.*keep one of them"):
        make_trainer(EpochBoundaries(1), EpochBoundaries(2))
    make_trainer(SynapseStatistics(), SynapseStatistics())  # without state


def test_callbacks_of_others_are_left_to_lightning() -> None:
    class Other(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {}

    with pytest.raises(RuntimeError, match="more than one stateful callback"):
        make_trainer(Other(), Other())
