"""What is said where an optional package is missing."""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from cl_callbacks.guards import optional as module
from cl_callbacks.guards.optional import NotInstalled, install_command, optional
from tests.scripts import installed

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(installed(), reason="of a clone")
def test_a_clone_is_installed_from_where_it_is() -> None:
    with pytest.raises(NotInstalled, match="no_such_package is not installed: pip install -e") as found:
        optional("no_such_package", "transformers")
    command = shlex.split(str(found.value).partition(": ")[2])
    assert command == ["pip", "install", "-e", f"{ROOT}[transformers]"]


def test_an_installed_package_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["torch>=2.6", "river>=0.21; extra == 'drift'", 'peft>=0.12 ; extra == "transformers"']
    monkeypatch.setattr(module, "requires", lambda name: needs)
    assert shlex.split(install_command("river", "drift", tmp_path)) == ["pip", "install", "river>=0.21"]
    assert install_command("peft", "transformers", tmp_path) == "pip install 'peft>=0.12'"
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "somebody-elses"\n')
    assert install_command("river", "drift", tmp_path) == "pip install 'river>=0.21'"

    def unknown(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(module, "requires", unknown)
    assert install_command("river", "drift", tmp_path) == "pip install river"


def test_an_import_that_fails_within_the_package_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_there.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_package'"):
        optional("half_there", "drift")


def test_pip_understands_the_command() -> None:
    command = shlex.split(install_command("river", "drift"))[2:]
    dry = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    done = subprocess.run([*dry, *command], capture_output=True, text=True)
    if "No module named pip" in done.stderr:
        pytest.skip("there is no pip")
    assert "Invalid requirement" not in done.stderr
