"""What the pages of the documentation say about files, functions and code holds."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import cl_callbacks
from cl_callbacks import data, drift, functional, metrics
from tests.small import Net, fit_tasks, plain_net
from tests.snippets import DOCS, pages

PACKAGE = Path(cl_callbacks.__file__).parent


def test_the_step_line_by_line_names_files_and_functions_that_exist() -> None:
    text = (DOCS / "one_step.md").read_text()
    code = "\n".join(file.read_text() for file in PACKAGE.rglob("*.py"))
    files = re.findall(r"`([a-z_/]+\.py)`", text)
    assert len(files) > 10
    for file in files:
        assert (PACKAGE / file).is_file() or (DOCS.parent / file).is_file(), file
    for owner, name in re.findall(r"`(_?[A-Z]\w+)\.([a-z_]+)`", text):
        assert re.search(rf"class {owner}\b.*?def {name}\(", code, re.DOTALL), f"{owner}.{name}"


def test_the_rule_of_your_own_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "one_step.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(block, names)
    rule = names["PathDecay"]()  # type: ignore[operator]
    fit_tasks(Net(plain_net()), rule)
    assert all(path.abs().sum() > 0 for path in rule.synapses.view["path"])


# -- the site ------------------------------------------------------------------------------------------

WITH_LINKS = [*pages(), DOCS.parent / "CONTRIBUTING.md", DOCS.parent / "CHANGELOG.md"]


def anchors(page: Path) -> set[str]:
    """What a repository's site and MyST make of the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_to_files_and_headings_that_exist() -> None:
    seen = 0
    for page in WITH_LINKS:
        text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in target:
                continue
            path, _, heading = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), f"{page}: {target}"
            assert not heading or heading in anchors(file), f"{page}: {target}"
            seen += 1
    assert seen > 100


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = {"index"}
    waiting = ["index"]
    while waiting:
        page = DOCS / f"{waiting.pop()}.md"
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            for entry in block.splitlines():
                if entry and not entry.startswith((":", "gallery/")):
                    file = (page.parent / f"{entry}.md").resolve()
                    assert file.exists(), f"{page}: {entry}"
                    name = str(file.relative_to(DOCS).with_suffix(""))
                    assert name not in listed, f"{name} is listed twice"
                    listed.add(name)
                    waiting.append(name)
    assert listed == {str(page.relative_to(DOCS).with_suffix("")) for page in pages()}


def test_the_reference_has_every_public_name_once() -> None:
    documented: list[str] = []
    for page in sorted((DOCS / "reference").glob("*.md")):
        module = ""
        for directive, name in re.findall(r"^\.\. ([a-z]+):: (\S+)$", page.read_text(), re.MULTILINE):
            if directive == "currentmodule":
                module = f"{name}."
            elif directive in ("autoclass", "autofunction", "autodata"):
                documented.append(name if name.startswith("cl_callbacks.") else module + name)
    assert len(documented) == len(set(documented))
    for package in (cl_callbacks, functional, drift, metrics, data):
        # What is public in a room as well as in the package is listed as the package's.
        own = {f"{package.__name__}.{name}" for name in package.__all__ if not hasattr(cl_callbacks, name)}
        assert own - set(documented) == set()
    assert {f"cl_callbacks.{name}" for name in cl_callbacks.__all__} - set(documented) == set()


def test_every_example_is_in_the_gallery() -> None:
    examples = {file.stem for file in (DOCS.parent / "examples").glob("*.py")} - {"__init__"}
    source = ast.parse((DOCS / "_ext" / "gallery_sources.py").read_text())
    (titles,) = (
        ast.literal_eval(node.value)
        for node in source.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TITLES"
    )
    assert set(titles) == examples
