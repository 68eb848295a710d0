"""The Python of the documentation, taken out of its pages and run as it stands."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
WRITTEN_BY_THE_BUILD = {"_build", "gallery"}


def pages() -> list[Path]:
    """The pages of the site, but for those that its build writes."""
    found = sorted(DOCS.rglob("*.md"))
    return [page for page in found if page.relative_to(DOCS).parts[0] not in WRITTEN_BY_THE_BUILD]


def snippets(page: Path) -> list[tuple[int, str]]:
    """The blocks of Python of a page, each with the number of the line before its first."""
    text = page.read_text()
    blocks = re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, block.start(1)), block[1]) for block in blocks]


def run_snippets(page: Path, names: dict[str, Any]) -> None:
    """Runs the blocks of a page one after the other; what one defines is there for the next.

    A block with ``>>>`` is a doctest, whose output is compared.
    """
    for line, code in snippets(page):
        if ">>>" not in code:
            exec(compile("\n" * line + code, str(page), "exec"), names)
            continue
        test = doctest.DocTestParser().get_doctest(code, names, page.name, str(page), line)
        said: list[str] = []
        failed = doctest.DocTestRunner(verbose=False).run(test, out=said.append, clear_globs=False).failed
        names.update(test.globs)
        assert not failed, "".join(said)
