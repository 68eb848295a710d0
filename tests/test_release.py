"""What a package index shows, and that version and citation agree."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import cl_callbacks

ROOT = Path(__file__).parents[1]


def test_the_citation_and_the_changelog_are_of_this_version() -> None:
    assert f"\nversion: {cl_callbacks.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(
        rf"^## \[?{re.escape(cl_callbacks.__version__)}", (ROOT / "CHANGELOG.md").read_text(), re.M
    )


def test_the_oldest_packages_are_those_that_are_admitted() -> None:
    admitted = {}
    for name, version in re.findall(
        r'"([\w-]+)(?:\[\w+\])?>=([\d.]+)', (ROOT / "pyproject.toml").read_text()
    ):
        admitted[name] = version
    oldest = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "constraints-oldest.txt").read_text(), re.M))
    oldest.pop("pytorch-lightning")  # the same package as lightning
    assert oldest.keys() <= admitted.keys()
    for name in oldest.keys() - {"torch", "safetensors"}:  # whose comment says why
        assert oldest[name] in (admitted[name], f"{admitted[name]}.0"), name


@pytest.mark.parametrize("repository", [None, "https://example.org/owner/name"])
def test_the_readme_of_an_index_has_no_path(repository: str | None) -> None:
    sys.path.insert(0, str(ROOT))
    from hatch_build import readme_of_index

    text = (ROOT / "README.md").read_text()
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert any("://" not in target for target in targets)
    shown = re.findall(r"\]\(([^)]+)\)", readme_of_index(text, repository))
    assert all("://" in target for target in shown)
    assert len(shown) == (len(targets) if repository else sum("://" in target for target in targets))
    for target in targets:
        assert "://" in target or (ROOT / target.partition("#")[0]).exists(), target


def test_on_an_index_a_picture_has_the_address_of_the_file_itself() -> None:
    sys.path.insert(0, str(ROOT))
    from hatch_build import readme_of_index

    text = "![A\npicture](docs/a.png) [page](docs/b.md#part)"
    there = "https://example.org/owner/name"
    shown = f"![A\npicture]({there}/raw/main/docs/a.png) [page]({there}/blob/main/docs/b.md#part)"
    assert readme_of_index(text, there) == shown
    assert readme_of_index(text, None) == "*A picture* page"
