"""The README of a package index, where links to files of the repository lead nowhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_PICTURE = re.compile(r"!\[(?P<text>[^\]]*)\]\((?P<file>[^):#]+)\)")
_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<file>[^):#]+)(?P<part>#[^)]*)?\)")


def readme_of_index(text: str, repository: str | None) -> str:
    """Returns the README with addresses in place of paths; without an address, with texts in place of links.

    Args:
        text: of README.md.
        repository: address of the repository, such as ``https://github.com/OWNER/NAME``.
    """
    if repository is None:
        text = _PICTURE.sub(lambda found: f"*{' '.join(found['text'].split())}*", text)
        return _LINK.sub(lambda found: found["text"], text)
    text = _PICTURE.sub(rf"![\g<text>]({repository}/raw/main/\g<file>)", text)
    return _LINK.sub(
        lambda found: f"[{found['text']}]({repository}/blob/main/{found['file']}{found['part'] or ''})", text
    )


class CustomMetadataHook(MetadataHookInterface):
    """Sets the README; the address is that of ``Repository`` under ``[project.urls]``."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Adds the text to the metadata."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        repository = metadata.get("urls", {}).get("Repository")
        metadata["readme"] = {"content-type": "text/markdown", "text": readme_of_index(text, repository)}
