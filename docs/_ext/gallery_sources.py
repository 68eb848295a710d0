"""Writes the examples as sphinx-gallery reads them: their docstrings are plain text, and it wants titles."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TITLES = {
    "existing_trainer": "Two lines in a script that you have",
    "digits": "Ten tasks, with and without a memory",
    "finetune_text": "A sentence encoder on ten domains",
    "finetune_causal_lm": "A language model, one kind of text after another",
    "memory_capacity": "How long a synapse remembers",
    "methods": "Names of methods, for the other examples",
}

THUMBNAILS = {"digits": "digits.png", "memory_capacity": "memory_capacity.png"}
"""Pictures that an example has drawn, beside the others'; relative to the folder of the pages."""

HEADER = """\
Gallery
=======

The scripts in ``examples/``. The first was run while this page was built; the others take from a minute to
hours, or need data, and say in their first lines how to run them.
"""


class InOrder:
    """Sorts the examples as ``TITLES`` has them."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, file: str) -> int:
        """The place of an example."""
        return list(TITLES).index(Path(file).stem)


def write_sources(examples: Path, folder: Path) -> str:
    """Writes each example of ``TITLES`` with a title and its commands as code, and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "GALLERY_HEADER.rst").write_text(HEADER)
    for name, title in TITLES.items():
        text = (examples / f"{name}.py").read_text()
        doc = ast.get_docstring(ast.parse(text), clean=False)
        assert doc is not None, f"{name}.py has no docstring"
        shown = re.sub(r"\n\n(?=    )", "\n\n.. code-block:: console\n\n", doc)
        page = text.replace(doc, f"\n{title}\n{'=' * len(title)}\n\n{shown}", 1)
        if name in THUMBNAILS:
            page += f"\n# sphinx_gallery_thumbnail_path = {THUMBNAILS[name]!r}\n"
        (folder / f"{name}.py").write_text(page)
    return str(folder)
