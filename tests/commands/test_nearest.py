from __future__ import annotations

from pathlib import Path

import pytest

from cl_callbacks.commands.catalogue import callbacks
from cl_callbacks.commands.nearest import nearest, nearest_class, nearest_path


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("EWK", "EWC"),
        ("ewc", "EWC"),
        ("kfac_laplace", "KFACLaplace"),
        ("SI", "SynapticIntelligence"),
        ("ER", "ExperienceReplay"),
        ("DER++", "DarkExperienceReplay"),
        ("SNR", "SelfNormalizedResets"),
        ("CBP", "ContinualBackprop"),
        ("LwF", "Distillation"),
        ("Xyzzy", None),
    ],
)
def test_a_callback_is_found_by_what_people_call_it(given: str, found: str | None) -> None:
    assert nearest_class(given, callbacks()) == found


def test_the_case_counts_where_it_decides() -> None:
    assert nearest("ADWN", ["adwin", "ADWIN"]) == "ADWIN"
    assert nearest("digits", ["dis"], cutoff=0.8) is None


def test_a_file_is_found_beside_the_missing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert nearest_path(Path("configs/digit.yaml")) == "; the nearest is 'configs/digits.yaml'"
    assert nearest_path(Path("config/a.yaml")) == "; there is no folder 'config'; the nearest is 'configs'"
    assert nearest_path(tmp_path / "configs" / "zzz") == ""
    assert nearest_path(tmp_path / "configs" / "ewc.yaml") == ""  # which has the ending alone in common
