from __future__ import annotations

import inspect

import pytest
from lightning.pytorch import Callback

import cl_callbacks
from cl_callbacks.commands.catalogue import callbacks, rooms
from cl_callbacks.commands.docstrings import description, first_sentence, meanings_of_arguments, plain
from cl_callbacks.commands.list_callbacks import list_callbacks
from cl_callbacks.guards.arguments import allowed_values

EVERY = sorted(callbacks().values(), key=lambda kind: kind.__name__)


def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    monkeypatch.setenv("COLUMNS", "80")
    list_callbacks(names)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_every_public_callback_is_listed_once_with_its_first_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    public = {name for name in cl_callbacks.__all__ if name in callbacks()}
    assert len(public) > 30 and public == {kind.__name__ for room in rooms().values() for kind in room}
    lines = printed(capsys, monkeypatch)
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for kind in EVERY:
        assert text.count(f" {kind.__name__} {first_sentence(kind)}") == 1
    assert "consolidation Rules that measure importance" in text
    assert text.index("consolidation Rules") < text.index(" EWC ") < text.index("metaplasticity Rules")


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_argument_has_a_meaning_and_a_type(kind: type[Callback]) -> None:
    names = inspect.signature(kind).parameters.keys()
    meanings, allowed = meanings_of_arguments(kind), allowed_values(kind)
    assert names <= {name for name, meaning in meanings.items() if meaning}
    assert names <= allowed.keys()
    said = [first_sentence(kind), *meanings.values()]
    assert not [text for text in said if "\\" in text]  # as displayed equations have
    said += description(kind)
    assert not [text for text in said if "`" in text or ":class:" in text or ".. " in text]


def test_the_arguments_of_one_are_listed_with_those_behind_its_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = printed(capsys, monkeypatch, "EWC")
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith("EWC: Elastic weight consolidation:")
    at = next(i for i, line in enumerate(lines) if line.startswith("  strength "))
    assert lines[at].split(maxsplit=1)[1] == "= 0.05  (a finite number, at least 0)"
    assert lines[at + 1].strip().startswith("λ, at least 0; 0 leaves training as it is")
    assert any(line.startswith("  state_device ") and "= None" in line for line in lines)
    assert any(
        line.split()[:2] == ["every_n_epochs", "needed"]
        for line in printed(capsys, monkeypatch, "EpochBoundaries")
    )


def test_a_name_that_no_callback_has_is_refused() -> None:
    with pytest.raises(ValueError, match="no callback 'EWK'; the nearest is 'EWC'"):
        list_callbacks(["EWC", "EWK"])


def test_text_of_docstrings_has_no_marks() -> None:
    assert (
        plain(r":math:`\frac{\lambda}{2} \theta_i`, see :meth:`~a.b.c` or :class:`EWC`")
        == "λ2 θ_i, see c or EWC"
    )
