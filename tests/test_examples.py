"""The examples as a user runs them, on few tasks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from tests.pictures import write_pictures
from tests.scripts import logged_out, run_script
from tests.tiny_transformers import requests, tiny_encoder

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(*arguments: str, folder: Path, example: str = "digits.py") -> subprocess.CompletedProcess[str]:
    return run_script(EXAMPLES / example, *arguments, folder=folder)


@pytest.mark.slow
def test_digits(tmp_path: Path) -> None:
    """In a process of its own, as a user has it."""
    arguments = ["--tasks", "3", "--seed", "0", "--json", "results.json"]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "digits.py"), *arguments],
        capture_output=True, text=True, env=logged_out(tmp_path), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results) == {"none", "ewc"}
    for result in results.values():
        matrix = result["matrix"]
        assert [len(row) for row in matrix] == [3, 3, 3]
        assert result["average_accuracy"] == sum(matrix[-1]) / 3
        assert matrix[0][0] > 0.9  # learned
        assert matrix[2][2] > 0.9
    # Forgotten without a callback, kept with one.
    assert results["ewc"]["matrix"][2][0] > results["none"]["matrix"][2][0] + 0.1
    assert (tmp_path / "runs" / "digits.png").stat().st_size > 10_000
    assert len(list((tmp_path / "runs" / "wandb").glob("offline-run-*/*.wandb"))) == 2
    assert "average accuracy" in done.stdout


@pytest.mark.slow
def test_boundaries_that_are_found(tmp_path: Path) -> None:
    arguments = ["--methods", "si", "--tasks", "2", "--boundaries", "drift", "--transition", "40"]
    done = run(*arguments, "--json", "results.json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "results.json").read_text())["si"]
    assert "found 1 of 1 changes" in done.stdout
    assert result["changes"] == [450]
    ((task, batch, onset),) = result["boundaries"]
    assert task == 0
    assert 415 < onset < batch < 500
    assert (result["found"]["recall"], result["found"]["false_alarms"]) == (1.0, 0)


@pytest.mark.slow
def test_every_method_on_pictures_from_a_folder(tmp_path: Path) -> None:
    write_pictures(tmp_path, train=256, test=40)
    methods = ["none", "ewc", "si", "mas", "rwalk", "kfac", "streaming"]
    methods += ["mesu", "bgd", "metaplastic", "benna_fusi", "cascade"]
    arguments = ["--data", "mnist", "--data-dir", str(tmp_path), "--tasks", "2", "--json", "results.json"]
    done = run(*arguments, "--methods", *methods, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == methods
    assert all(len(result["matrix"]) == 2 for result in results.values())
    assert (tmp_path / "runs" / "mnist.png").stat().st_size > 10_000


@pytest.mark.slow
def test_binary_network(tmp_path: Path) -> None:
    arguments = ["--network", "binary", "--methods", "none", "metaplastic", "--tasks", "2"]
    done = run(*arguments, "--json", "results.json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["metaplastic"]["matrix"][1][0] > results["none"]["matrix"][1][0] + 0.02
    assert results["metaplastic"]["last_accuracy"] > 0.9


@pytest.mark.slow
def test_memory_capacity(tmp_path: Path) -> None:
    arguments = ["--json", "memory.json", "--repeats", "1"]
    done = run(*arguments, folder=tmp_path, example="memory_capacity.py")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "memory.json").read_text())
    assert abs(found["benna_fusi"]["slope"] + 0.5) < 0.03
    assert abs(found["benna_fusi"]["lifetime_exponent"] - 1.0) < 0.1
    assert abs(found["simple"]["decay_per_step"] - 0.1) < 1e-6
    assert found["simple"]["lifetimes"]["10000"] < found["cascade"]["lifetimes"]["10000"]
    assert (tmp_path / "runs" / "memory_capacity.png").stat().st_size > 10_000


def test_help_and_bad_arguments(tmp_path: Path) -> None:
    assert "--methods" in run("--help", folder=tmp_path).stdout
    assert "at least 2 tasks" in run("--tasks", "1", folder=tmp_path).stderr
    assert "invalid choice: magic" in run("--methods", "ewc+magic", folder=tmp_path).stderr


@pytest.mark.slow
def test_finetune_text(tmp_path: Path) -> None:
    model = tiny_encoder(tmp_path / "model")
    for name, split in requests(copies=4).items():
        split.to_parquet(tmp_path / f"{name}.parquet")
    known = ["--data-dir", str(tmp_path), "--model", model, "--quiet", "--lr", "0.01", "--tasks", "2"]
    methods = ["none", "ewc", "si", "er", "der", "lwf", "l2sp", "sfa", "wise", "running", "guard"]
    methods += ["er+ewc", "merged+ewc", "frozen"]
    done = run(
        *known, "--methods", *methods, "--json", "results.json", folder=tmp_path, example="finetune_text.py"
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == methods
    for result in results.values():
        assert [len(row) for row in result["matrix"]] == [2, 2]
        assert result["average_accuracy"] == sum(result["matrix"][-1]) / 2
        assert result["tasks"] == ["bank", "music"]
        assert result["matrix"][0][0] > 0.8  # learned
    assert len(list((tmp_path / "runs" / "wandb").glob("offline-run-*/*.wandb"))) == len(methods)

    done = run(
        *known, "--methods", "ewc", "--lora", "2", "--final-only", "--json", "lora.json",
        folder=tmp_path, example="finetune_text.py",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "lora.json").read_text())["ewc"]["matrix"]) == 1


@pytest.mark.slow
def test_texts_are_scored_with_the_merged_weights(tmp_path: Path) -> None:
    model = tiny_encoder(tmp_path / "model")
    for name, split in requests(copies=4).items():
        split.to_parquet(tmp_path / f"{name}.parquet")
    known = ["--data-dir", str(tmp_path), "--model", model, "--quiet", "--lr", "0.01", "--tasks", "2"]
    known += ["--methods", "wise", "none", "--strength", "0.999", "--json", "results.json"]
    found = []
    for more in ([], ["--final-only"]):
        done = run(*known, *more, folder=tmp_path, example="finetune_text.py")
        assert done.returncode == 0, done.stderr
        found.append(json.loads((tmp_path / "results.json").read_text()))
    for method in ("wise", "none"):
        assert found[0][method]["matrix"][-1] == found[1][method]["matrix"][-1]
    first, last = found[1]["wise"]["matrix"][0]
    assert first > 0.9  # so nearly back at the old weights
    assert last < found[1]["none"]["matrix"][0][1]


def test_finetune_text_says_how_it_can_know_the_domains(tmp_path: Path) -> None:
    done = run("--model", "m", folder=tmp_path, example="finetune_text.py")
    assert done.returncode == 2
    assert "which domain an intent is of" in done.stderr
    assert "--domains FILE.json" in done.stderr


@pytest.mark.slow
def test_finetune_causal_lm(tmp_path: Path) -> None:
    for domain, texts in {"bank": ["pay my bill now", "pay the bill"], "music": ["now play a song"]}.items():
        (tmp_path / domain).mkdir()
        for split in ("train", "test"):
            Dataset.from_dict({"text": texts * 80}).to_parquet(tmp_path / domain / f"{split}.parquet")
    known = ["--data-dir", str(tmp_path), "--domains", "bank", "music", "--model", "scratch", "--quiet"]
    known += ["--layers", "1", "--width", "16", "--vocabulary", "280", "--max-length", "8", "--steps", "20"]
    known += ["--lr", "0.03", "--warmup", "0"]
    done = run(
        *known, "--strength", "1000", "--json", "results.json",
        folder=tmp_path, example="finetune_causal_lm.py",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == ["none", "ewc"]
    for result in results.values():
        matrix = result["matrix"]
        assert result["forgotten"] == matrix[1][0] - matrix[0][0]
        assert 1.0 < matrix[0][0] < 10.0  # learned: there are 257 tokens or more
    plain, kept = results["none"], results["ewc"]
    assert plain["matrix"][0] == kept["matrix"][0]  # the same model, tokeniser and data
    assert kept["forgotten"] < plain["forgotten"]
    assert plain["matrix"][1][1] < kept["matrix"][1][1]  # what it costs
    assert "perplexity on each domain" in done.stdout
    assert len(list((tmp_path / "runs" / "wandb").glob("offline-run-*/*.wandb"))) == 2

    methods = ["er", "der", "lwf", "l2sp", "sfa", "wise", "running", "guard", "er+ewc", "merged+ewc"]
    done = run(
        *known, "--methods", *methods, "--json", "more.json",
        folder=tmp_path, example="finetune_causal_lm.py",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    more = json.loads((tmp_path / "more.json").read_text())
    assert list(more) == methods
    for method, result in more.items():
        rehearses = "er" in method.split("+") or method == "der"  # in the first task too
        assert (result["matrix"][0][0] == plain["matrix"][0][0]) != rehearses
    assert more["er"]["forgotten"] < plain["forgotten"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "scratch", "--domains", "one"], "at least 2 domains"),
    ],
)
def test_finetune_causal_lm_says_what_it_needs(tmp_path: Path, arguments: list[str], message: str) -> None:
    assert message in run(*arguments, folder=tmp_path, example="finetune_causal_lm.py").stderr


@pytest.mark.slow
def test_existing_trainer(tmp_path: Path) -> None:
    done = run(folder=tmp_path, example="existing_trainer.py")
    assert done.returncode == 0, done.stderr
    without, remembered = (float(part) for part in re.findall(r"\d\.\d+", done.stdout))
    assert remembered > without + 0.3
    added = [
        line for line in (EXAMPLES / "existing_trainer.py").read_text().splitlines() if "# added" in line
    ]
    assert len(added) == 3  # two, and where the docstring says so
