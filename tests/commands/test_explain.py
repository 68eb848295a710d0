from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningDataModule

from cl_callbacks.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"


def told(
    given: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, str]:
    """What is said, by topic."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["cl-callbacks", "explain", *given])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    topics = re.split(r"^(?=\w)", "\n".join(lines), flags=re.MULTILINE)[1:]
    return {text[:13].strip(): " ".join(text[13:].split()) for text in topics}


def test_a_configuration_is_told_in_words_and_nothing_is_built(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [f"--config={CONFIGS / name}" for name in ("digits.yaml", "rules/ewc.yaml")]
    more = ["--data.init_args.data=/no/such", "--trainer.callbacks.estimator=sampled"]
    found = told([*files, *more], monkeypatch, capsys)
    assert found["model"].startswith("examples.digits.Classifier(inputs=256) ")
    assert found["data"].startswith("ImageTasks(data='/no/such', permutations=10, ")
    assert found["length"] == "10 epochs for each task of the data validation after every 10 epochs"
    assert found["tasks"].startswith("EpochBoundaries(every_n_epochs=10) A task lasts a fixed number")
    assert found["rules"].startswith("EWC(estimator='sampled') Elastic weight consolidation:")
    assert "TaskEvaluation() Measures the task matrix" in found["callbacks"]
    assert found["loggers"].startswith("CSVLogger(save_dir='runs', name='digits')")
    assert found["checkpoints"].startswith("ModelCheckpoint(save_last=True, ")
    assert found["Trainer"].startswith("Trainer(accelerator='cpu', num_sanity_val_steps=0")
    assert found["seed"] == "0"


def test_what_is_left_to_defaults_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        "--model=examples.digits.Classifier",
        "--model.inputs=64",
        "--data=ImageTasks",
        "--data.data=digits",
    ]
    found = told([*given, "--optimizer=Adam", "--seed_everything=3"], monkeypatch, capsys)
    assert found["length"] == "1000 epochs, Lightning's default validation after every epoch"
    assert found["tasks"].startswith("Each trainer.fit is one task")
    assert found["rules"] == "none: nothing protects what was learned"
    assert found["checkpoints"] == "Lightning's default: that of the latest epoch"
    assert found["loggers"].startswith("Lightning's default")
    assert found["optimizer"].startswith("Adam()")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--trainer.fast_dev_run=2"], {"length": "a trial of 2 batches, without loggers and checkpoints"}),
        (["--trainer.max_steps=9"], {"length": "10 epochs for each task of the data or 9 steps "}),
        (["--trainer.max_epochs=20"], {"length": "20 epochs "}),
        (
            ["--trainer.limit_train_batches=4"],
            {"length": "10 epochs for each task of the data at most 4 of the batches of an epoch "},
        ),
        (
            ["--trainer.limit_train_batches=4.0"],
            {"length": "10 epochs for each task of the data at most 4 of the batches of an epoch "},
        ),
        (
            ["--trainer.limit_train_batches=0.5"],
            {"length": "10 epochs for each task of the data 50% of the batches of an epoch "},
        ),
        (["--trainer.logger=false"], {"loggers": "none"}),
        (["--ckpt_path=last.ckpt"], {"checkpoints": "training goes on from last.ckpt ModelCheckpoint("}),
        (
            [f"--config={CONFIGS / 'drift.yaml'}"],
            {"tasks": "DriftBoundaries(detector=CUSUM()) A task ends when"},
        ),
    ],
)
def test_each_of_these_is_told(
    given: list[str],
    said: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = told([f"--config={CONFIGS / 'digits.yaml'}", *given], monkeypatch, capsys)
    for topic, start in said.items():
        assert found[topic].startswith(start), found[topic]


def test_another_module_s_argument_says_nothing_of_tasks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = "tests.commands.test_explain.OwnData"
    given = ["--model=examples.digits.Classifier", "--model.inputs=64", f"--data={data}"]
    found = told([*given, "--data.epochs_per_task=5", "--trainer.max_epochs=15"], monkeypatch, capsys)
    assert found["tasks"].startswith("Each trainer.fit is one task")
    assert found["length"].startswith("15 epochs ")
    assert found["seed"] == "drawn anew each time"


class OwnData(LightningDataModule):
    """With an argument of the name that those of this package have."""

    def __init__(self, epochs_per_task: int = 1) -> None:
        super().__init__()
        self.epochs_per_task = epochs_per_task


@pytest.mark.parametrize("asked", ["-h", "--help"])
def test_help_is_of_explain_itself(
    asked: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cl-callbacks", "explain", asked])
    main()
    said = capsys.readouterr().out
    assert said.startswith("usage: cl-callbacks explain [")
    assert "without doing it" in said


def test_a_second_file_that_replaces_callbacks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    second = tmp_path / "second.yaml"
    second.write_text("trainer: {callbacks: [{class_path: MAS}]}")
    files = [CONFIGS / "digits.yaml", second]
    monkeypatch.setattr(sys, "argv", ["cl-callbacks", "explain", *(f"--config={file}" for file in files)])
    with pytest.raises(SystemExit):
        main()
    assert "second.yaml replaces the trainer.callbacks of" in capsys.readouterr().err
