"""What the pages of the documentation say about files, functions and code holds."""

from __future__ import annotations

import re
from pathlib import Path

import cl_callbacks
from tests.small import Net, fit_tasks, plain_net

DOCS = Path(__file__).parents[1] / "docs"
PACKAGE = Path(cl_callbacks.__file__).parent


def test_the_step_line_by_line_names_files_and_functions_that_exist() -> None:
    text = (DOCS / "one_step.md").read_text()
    code = "\n".join(file.read_text() for file in PACKAGE.rglob("*.py"))
    files = re.findall(r"`([a-z_/]+\.py)`", text)
    assert len(files) > 10
    for file in files:
        assert (PACKAGE / file).is_file() or (PACKAGE.parent / file).is_file(), file
    for owner, name in re.findall(r"`(_?[A-Z]\w+)\.([a-z_]+)`", text):
        assert re.search(rf"class {owner}\b.*?def {name}\(", code, re.DOTALL), f"{owner}.{name}"


def test_the_rule_of_your_own_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "one_step.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(block, names)
    rule = names["PathDecay"]()  # type: ignore[operator]
    fit_tasks(Net(plain_net()), rule)
    assert all(path.abs().sum() > 0 for path in rule.synapses.view["path"])
