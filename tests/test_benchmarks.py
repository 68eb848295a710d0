"""The benchmarks run; what they measure is for people to read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from tests.pictures import write_pictures
from tests.scripts import run_script

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script: str, *arguments: str, folder: Path) -> str:
    done = run_script(BENCHMARKS / script, *arguments, folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_fisher(tmp_path: Path) -> None:
    cases = ["digits-exact", "digits-sampled", "small-transformer"]
    run("fisher.py", *cases, "--repeats", "1", "--json", "fisher.json", folder=tmp_path)
    results = json.loads((tmp_path / "fisher.json").read_text())
    assert list(results) == cases
    for result in results.values():
        assert result["fisher"] > 0
        assert result["difference"] < 1e-5  # the fast Fisher is the loop's


@pytest.mark.slow
def test_scaling(tmp_path: Path) -> None:
    arguments = ["--tasks", "1", "3", "--parameters", "1e5", "--repeats", "1", "--json", "scaling.json"]
    run("scaling.py", *arguments, folder=tmp_path)
    found = json.loads((tmp_path / "scaling.json").read_text())
    sizes: dict[str, set[int]] = {}
    for row in found["tasks"]:
        sizes.setdefault(row["rule"], set()).add(row["state_bytes"])
    assert {"EWC, anchors=each", "SynapticIntelligence"} <= set(sizes)
    assert all(len(size) == 1 for size in sizes.values())  # the same after the third task as after the first
    assert [row["bytes_per_parameter"] for row in found["parameters"]] == [8.0]


@pytest.mark.slow
def test_overhead(tmp_path: Path) -> None:
    rules = ["EWC", "SI and EWC", "DriftBoundaries", "autograd penalty, 10 anchors"]
    arguments = ["--networks", "small-transformer", "--pairs", "2", "--rules", *rules]
    run("overhead.py", *arguments, "--json", "overhead.json", "--plot", "overhead.png", folder=tmp_path)
    found = json.loads((tmp_path / "overhead.json").read_text())
    assert [row["rule"] for row in found["rows"]] == rules
    assert [row["bytes_per_parameter"] for row in found["rows"]] == [8.0, 20.0, 0.0, 80.0]
    assert all(row["ratio"] > 0 for row in found["rows"])
    assert (tmp_path / "overhead.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="torch.compile needs a C++ compiler"
)
def test_overhead_of_operations_that_are_compiled_one_by_one(tmp_path: Path) -> None:
    arguments = ["--networks", "mlp", "--pairs", "2", "--rules", "EWC", "--precision", "bf16-mixed"]
    run("overhead.py", *arguments, "--compile-each", "--json", "overhead.json", folder=tmp_path)
    (row,) = json.loads((tmp_path / "overhead.json").read_text())["rows"]
    assert row["ratio"] > 0
    assert row["plain_ms"] > 0
    assert row["bytes_per_parameter"] == 8.0
    compiled = {key[0][0].__name__ for key in sys.modules["operations"].AtOnce._compiled}
    assert compiled == {"add_quadratic_pull_", "copy_finite_"}  # the latter is tried by CompileRules


@pytest.mark.slow
def test_observation(tmp_path: Path) -> None:
    arguments = ["--methods", "ewc", "--tasks", "2", "--seeds", "0", "--json", "observation.json"]
    run("observation.py", *arguments, folder=tmp_path)
    (found,) = json.loads((tmp_path / "observation.json").read_text())["ewc"]
    for name in ("TaskEvaluation", "SynapseStatistics"):
        assert 0 < sum(found[name].values()) < found["seconds"]
        assert found[name]["on_task_end"] > 0


@pytest.mark.slow
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


@pytest.mark.slow
def test_retention(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    write_pictures(tmp_path / "mnist", train=100, test=40)
    methods = ["none", "ExperienceReplay(20), WeightMerging(0.5) @ lr=0.05"]
    arguments = ["split", "--data-dir", ".", "--out", "found.jsonl", "--seeds", "0", "--methods", *methods]
    said = run("retention.py", *arguments, folder=tmp_path)
    lines = (tmp_path / "found.jsonl").read_text()
    assert [json.loads(line)["method"] for line in lines.splitlines()] == methods
    assert set(json.loads(lines.splitlines()[0])["scores"]) == {"average", "learned", "lost"}
    again = run("retention.py", *arguments, folder=tmp_path)  # trains nothing anew
    assert (tmp_path / "found.jsonl").read_text() == lines
    assert again in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "columns"),
    [("permuted", {"online", "backward", "one step"}), ("random_labels", {"first", "last"})],
)
def test_plasticity(table: str, columns: set[str], tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    write_pictures(tmp_path / "mnist", train=100, test=40)
    methods = ["none @ tasks=3 epochs=1", "ContinualBackprop(0.1, maturity=1) @ tasks=3 epochs=1"]
    arguments = [table, "--data-dir", ".", "--out", "found.jsonl", "--seeds", "0", "--methods", *methods]
    run("plasticity.py", *arguments, folder=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [line["method"] for line in lines] == methods
    assert all(set(line["scores"]) == columns for line in lines)


@pytest.mark.slow
def test_plasticity_pictures(tmp_path: Path) -> None:
    probe = {"rigidity": 1.0, "optimizer": -0.1, "representation": 0.2}
    permuted = {"online": 0.8, "backward": -0.2}
    rows = [
        ("probe", "EWC()", 0, probe),
        ("permuted", "EWC()", 0, permuted),
        ("permuted", "none", 1, permuted),
    ]
    lines = [
        json.dumps({"table": table, "method": method, "seed": seed, "scores": scores})
        for table, method, seed, scores in rows
    ]
    (tmp_path / "found.jsonl").write_text("\n".join(lines))
    pictures = ["--probe", "probe.png", "--permuted", "permuted.png"]
    run("plasticity_pictures.py", "found.jsonl", *pictures, folder=tmp_path)
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("probe.png", "permuted.png"))


@pytest.mark.slow
def test_boundaries(tmp_path: Path) -> None:
    arguments = ["--tasks", "2", "--widths", "40", "--rules", "si", "--seeds", "0", "--jobs", "1"]
    kinds = ["declared", "cusum", "none"]
    run("boundaries.py", *arguments, "--boundaries", *kinds, "--json", "found.json", folder=tmp_path)
    rows = {row["boundaries"]: row for row in json.loads((tmp_path / "found.json").read_text())}
    assert list(rows) == kinds
    assert rows["declared"]["regret"] == 0.0
    assert (rows["cusum"]["precision"], rows["cusum"]["recall"]) == (1.0, 1.0)
    # The first of the mixed batches is the 431st.
    (alarm,) = rows["cusum"]["ends"][0]
    assert rows["cusum"]["delay"] == alarm - 430
    assert rows["none"]["regret"] > rows["cusum"]["regret"]


@pytest.mark.slow
def test_detectors(tmp_path: Path) -> None:
    monitors = ["cusum", "adwin", "cusum, median/MAD"]
    arguments = ["--steps", "300", "--json", "detectors.json"]
    run("detectors.py", "--monitors", *monitors, *arguments, folder=tmp_path)
    results = json.loads((tmp_path / "detectors.json").read_text())
    assert list(results) == monitors
    assert results["cusum"]["delay, 4 sd"] < results["adwin"]["delay, 4 sd"]
    assert results["cusum"]["a hard batch in ten"] < results["cusum, median/MAD"]["a hard batch in ten"]


@pytest.mark.slow
def test_alarms(tmp_path: Path) -> None:
    arguments = ["--streams", "1", "--steps", "600", "--seeds", "0", "--json", "alarms.json"]
    run("alarms.py", *arguments, folder=tmp_path)
    found = json.loads((tmp_path / "alarms.json").read_text())
    assert found["independent"] == 0.0
    assert {"rho = 0.9", "by class, period 200", "digits, restarts every 450"} <= set(found)


@pytest.mark.slow
def test_streams(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    for name, label in (("elec2", "class"), ("insects_gradual", "label")):
        x = numbers.normal(size=(2500, 3))
        x[1500:] += 4.0
        y = (x[:, 0] > 0).astype(int)
        y[1500:] = x[1500:, 1] < 4.0
        columns = {f"f{i}": x[:, i] for i in range(3)} | {label: y}
        Dataset.from_dict(columns).to_parquet(tmp_path / f"{name}.parquet")
    arguments = ["--data-dir", ".", "--rules", "ewc", "--seeds", "0", "--jobs", "1", "--json", "streams.json"]
    said = run("streams.py", *arguments, folder=tmp_path)
    assert said.count("hindsight splits it at row 1,500") == 2
    rows = json.loads((tmp_path / "streams.json").read_text())
    assert [row["boundaries"] for row in rows] == ["none", "declared", "found"] * 2
    for row in rows:
        (found,) = row["runs"]
        assert 0.5 < found["online"] < 1.0
        assert 0.4 < found["remembered"] <= 1.0
        if row["boundaries"] == "found":
            assert any(abs(at - 1500) < 60 for at in found["found"])


@pytest.mark.slow
def test_faults(tmp_path: Path) -> None:
    """In a process of its own, as a user has it: it forks."""
    arguments = ["--kills", "2", "--signals", "2", "--bad-batches", "8", "--ballast", "100000"]
    arguments += ["--json", "faults.json"]
    command = [sys.executable, str(BENCHMARKS / "faults.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "faults.json").read_text())
    assert [row["rules"] for row in found["kills"]] == ["none", "EWC, SI, RWalk"]
    assert all(row["kills"] and row["from"] and not row["different"] for row in found["kills"])
    assert [row["rules"] for row in found["signals"]] == ["none", "EWC, SI, RWalk"]
    assert any(row["saved"] for row in found["signals"])
    assert not any(row["unknown weights"] or row["different"] for row in found["signals"])
    assert sum(row["bad"] for row in found["bad batches"]) == 8
    assert not any(row["corrupted"] for row in found["bad batches"])


def test_choices_explain_themselves(tmp_path: Path) -> None:
    assert "anchors" in run("choices.py", "--help", folder=tmp_path)
