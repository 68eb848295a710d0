"""The benchmarks run; what they measure is for people to read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.pictures import write_pictures

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script: str, *arguments: str, folder: Path) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_fisher(tmp_path: Path) -> None:
    run("fisher.py", "--repeats", "1", "--json", "fisher.json", folder=tmp_path)
    results = json.loads((tmp_path / "fisher.json").read_text())
    assert set(results) == {"digits MLP, exact", "digits MLP, sampled", "transformer, sampled"}
    for result in results.values():
        assert result["fisher"] > 0
        assert result["difference"] < 1e-5  # the fast Fisher is the loop's


def test_scaling(tmp_path: Path) -> None:
    said = run("scaling.py", "--tasks", "3", "--repeats", "1", folder=tmp_path)
    assert said.count("state 3,827,280 and 3,827,280 bytes") == 2


def test_overhead(tmp_path: Path) -> None:
    said = run("overhead.py", "--width", "16", "--batch-size", "4", "--repeats", "2", folder=tmp_path)
    assert said.count("of one pass") == 15


def test_long_stream(tmp_path: Path) -> None:
    write_pictures(tmp_path, train=60, test=20)
    arguments = ["--data-dir", str(tmp_path), "--tasks", "3", "--images", "40", "--seeds", "0", "1"]
    run("long_stream.py", *arguments, "--json", "stream.json", folder=tmp_path)
    results = json.loads((tmp_path / "stream.json").read_text())
    assert {"sgd", "mesu", "chain 2", "chain 6"} <= set(results)
    for runs in results.values():
        assert [len(seed["accuracies"]) for seed in runs] == [3, 3]
        assert all(len(seed["fresh accuracies"]) == 3 for seed in runs)
        assert runs[0]["last"] == runs[0]["accuracies"][-1]


def test_choices_explain_themselves(tmp_path: Path) -> None:
    assert "anchors" in run("choices.py", "--help", folder=tmp_path)
