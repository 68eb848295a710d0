from __future__ import annotations

from pathlib import Path

import pytest

from cl_callbacks.commands.config_files import (
    refuse_lost_additions,
    refuse_unreadable,
    replaced_callbacks,
)

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "trainer:\n\tmax_epochs: 3\n",
            r"is not YAML: line 2, 'max_epochs: 3': .*; indent with spaces, not tabs",
        ),
        ("trainer:\n  a: 1\n b: 2\n", "is not YAML: line 3, 'b: 2'"),
        ("trainer: {callbacks: [", r"is not YAML: line 1, 'trainer: {callbacks: \['"),
        ("a: 1\n---\nb: 2\n", "holds 2 documents"),
        ("# nothing\n", "is empty"),
        ("- a\n", "it holds a list"),
        ("fit", "it holds 'fit'"),
        ("trainer:\n  callbacks: []\n  callbacks: []\n", "line 3: trainer.callbacks is there twice"),
        ("a:\n- b: 1\n  b: 2\n", "line 3: a.b is there twice"),
        (b"\xff\xfe", "not even a text"),
        (b"a: \x01", "is not YAML: unacceptable character"),
    ],
)
def test_an_unreadable_file_is_refused_with_its_line(
    text: str | bytes, sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "file.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=f"file.yaml.*{sentence}"):
        refuse_unreadable(file)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_good_file_is_not(file: Path) -> None:
    refuse_unreadable(file)


def test_a_key_may_come_from_an_anchor_and_again(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &a {b: 1}\nc:\n  <<: *a\n  b: 2\n")
    refuse_unreadable(tmp_path / "a.yaml")


def test_a_file_that_adds_comes_after_the_one_that_sets(tmp_path: Path) -> None:
    base, adds = tmp_path / "base.yaml", tmp_path / "adds.yaml"
    base.write_text("trainer: {callbacks: [EWC], max_epochs: 3}")
    adds.write_text("trainer: {callbacks+: [MAS], max_epochs: 4}")
    refuse_lost_additions([base, adds, adds])
    with pytest.raises(
        ValueError, match=r"base.yaml sets trainer.callbacks and would drop what .*adds.yaml adds"
    ):
        refuse_lost_additions([adds, base])


def test_a_file_that_replaces_callbacks_is_said(tmp_path: Path) -> None:
    base, adds, sets = (tmp_path / f"{name}.yaml" for name in ("base", "adds", "sets"))
    base.write_text("trainer: {callbacks: [EWC], max_epochs: 3}")
    adds.write_text("trainer: {callbacks+: [MAS]}")
    sets.write_text("trainer: {callbacks: [MAS]}")
    assert replaced_callbacks([base, adds]) == []
    assert replaced_callbacks([base, base]) == []
    (said,) = replaced_callbacks([base, sets])
    assert "sets.yaml replaces the trainer.callbacks of" in said and "`callbacks+:` would add" in said
