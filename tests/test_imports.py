"""The arrows of the design: who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import cl_callbacks

PACKAGE = Path(cl_callbacks.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {
    ".".join(("cl_callbacks", *f.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): f
    for f in FILES
}

# Each room may import itself, the rooms beside it and those before it; the arrows point down only.
LAYERS = [
    {"compiled", "guards"},
    {"tensors", "drift"},
    {"functional"},
    {"gradients"},
    {"synapses", "metrics"},
    {"training"},
    {"boundaries"},
    {"rules", "data"},
    {"observation", "retention", "fine_tuning", "tuning"},
    {"commands"},
    {"cli", "__main__"},
]
FAMILIES = {"averaging", "consolidation", "distillation", "metaplasticity", "rehearsal", "renewal"}
WITHOUT_LIGHTNING = {"compiled", "drift", "functional", "gradients", "synapses", "tensors"}


def level(part: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if part in layer)


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or ""


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_arrows_point_one_way(file: Path) -> None:
    part = part_of(file)
    if part == "__init__":
        return
    for name in imports(file):
        parts = name.split(".")
        if parts[0] == "cl_callbacks":
            assert len(parts) > 1, f"{file} imports the package itself"
            assert level(parts[1]) <= level(part), f"{file} imports {name}"


@pytest.mark.parametrize(
    "file", [f for f in FILES if part_of(f) in WITHOUT_LIGHTNING], ids=lambda f: str(f.relative_to(PACKAGE))
)
def test_what_a_step_does_needs_no_lightning(file: Path) -> None:
    found = {name for name in imports(file) if name.split(".")[0] == "lightning"}
    assert found <= {"lightning.pytorch.utilities.exceptions"}


def files_needed(file: Path) -> Iterator[str]:
    """The files of the package that a file imports, whether from a package or from a file in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            found = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in found)


def test_no_two_files_need_each_other() -> None:
    """Not even for annotations: a circle of files can be read from no end."""
    graph = {name: set(files_needed(file)) - {name} for name, file in MODULES.items()}
    assert sum(map(len, graph.values())) > 300
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle: {error.args[1]}")
    assert order[-1] in {"cl_callbacks", "cl_callbacks.__main__"}


def test_the_root_holds_nothing_but_the_names_and_the_command_line() -> None:
    assert {f.name for f in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", "cli.py"}


@pytest.mark.parametrize("file", [f for f in FILES if part_of(f) == "functional"], ids=lambda f: f.name)
def test_the_equations_know_only_torch(file: Path) -> None:
    known = {"torch", "cl_callbacks", "__future__"} | sys.stdlib_module_names
    assert {name.split(".")[0] for name in imports(file)} <= known


def test_no_rule_imports_another() -> None:
    shared = {
        "anchored_rule",
        "batch_statistics",
        "boundary_rule",
        "importance_file",
        "kronecker_memory",
        "l2sp",
        "uncertain_rule",
    }
    shared |= {
        "arriving_rows",
        "extra_loss",
        "heads_of_samples",
        "joint_memory",
        "replay_rule",
        "sample_memory",
        "saved_samples",
    }
    shared |= {"batch_gradients", "teachers", "boundary_renewal", "drawn_noise", "layer_matrices"}
    shared |= {
        "activity",
        "module_parts",
        "source",
        "late_layers",
        "unit_search",
        "places",
        "recycling",
        "unit_rule",
        "unit_trace",
        "unit_weights",
        "units",
        "units_tried",
    }
    for file in FILES:
        if part_of(file) != "rules" or file.name == "__init__.py":
            continue
        for name in imports(file):
            parts = name.split(".")
            if parts[:2] == ["cl_callbacks", "rules"] and parts[2] in FAMILIES:
                assert parts[3] in shared, f"{file} imports {name}"


@pytest.mark.slow
def test_data_and_plots_are_imported_where_they_are_used() -> None:
    heavy = ("datasets", "sklearn", "matplotlib", "wandb", "transformers", "jsonargparse")
    # Lightning itself imports some of these; what counts is that this package adds none.
    script = f"""
import sys, lightning.pytorch, safetensors.torch
alone = [m for m in {heavy} if m in sys.modules]
import cl_callbacks
assert [m for m in {heavy} if m in sys.modules] == alone
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_everything_public_is_importable_and_documented() -> None:
    for name in set(cl_callbacks.__all__) - {"Need"}:  # a Literal has no docstring of its own
        assert (getattr(cl_callbacks, name).__doc__ or "").strip(), name
