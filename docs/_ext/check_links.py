"""Checks that every link within the built site leads to a file and, with an anchor, to a place in it.

python docs/_ext/check_links.py docs/_build/html
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Places and targets of a page."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.places: set[str] = set()
        self.targets: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes the element's id, and what it links to or shows."""
        for name, value in attrs:
            if name == "id" and value:
                self.places.add(value)
            elif name in ("href", "src") and value and tag != "script":
                self.targets.add(value)


def faults(site: Path) -> list[str]:
    """The links that lead nowhere, each with the page that has it."""
    pages = {file.resolve(): Page(file) for file in site.rglob("*.html")}
    found = []
    for file, page in sorted(pages.items()):
        for target in sorted(page.targets):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            to = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            lost = not to.exists()
            if not lost and parts.fragment and to in pages:
                lost = unquote(parts.fragment) not in pages[to].places
            if lost:
                found.append(f"{file.relative_to(site.resolve())}: {target}")
    print(f"{len(pages)} pages, {sum(len(page.targets) for page in pages.values())} links")
    return found


if __name__ == "__main__":
    sys.exit("\n".join(faults(Path(sys.argv[1]))) or 0)
