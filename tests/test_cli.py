"""The command line, as a user has it: YAML in, a trained sequence out."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F

import cl_callbacks
from cl_callbacks import (
    EWC,
    DriftBoundaries,
    EpochBoundaries,
    ImageTasks,
    KFACLaplace,
    PlateauBoundaries,
    SeedEpochs,
    StrengthFinder,
    SynapticCallback,
    SynapticIntelligence,
    TaskBoundaries,
    TaskEvaluation,
)
from cl_callbacks.cli import main, run
from tests.scripts import installed
from tests.tiny_transformers import requests, tiny_encoder

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
RULES = sorted((CONFIGS / "rules").glob("*.yaml"))
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cl-callbacks"])  # or LightningCLI warns of pytest's arguments


def fit(*configs: Path, folder: Path, more: list[str]) -> LightningCLI:
    files = [argument for config in configs for argument in ("--config", str(config))]
    return run(["fit", *files, f"--trainer.default_root_dir={folder}", *QUIET, *more])


def write(path: Path, content: Any) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


# -- the configurations ------------------------------------------------------------------------------------

DEV = ["--trainer.fast_dev_run=1", "--data.init_args.permutations=2"]


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES, ids=lambda path: path.stem)
def test_each_rule_runs_on_the_digits(rule: Path, tmp_path: Path) -> None:
    cli = fit(CONFIGS / "digits.yaml", rule, folder=tmp_path, more=DEV)
    assert cli.trainer.global_step == 1
    assert sum(isinstance(c, SynapticCallback) for c in cli.trainer.callbacks) == 1
    assert sum(isinstance(c, EpochBoundaries) for c in cli.trainer.callbacks) == 1


def test_there_is_a_configuration_of_every_rule() -> None:
    named = {
        entry["class_path"]
        for path in RULES
        for entry in yaml.safe_load(path.read_text())["trainer"]["callbacks+"]
    }
    assert named == {rule.__name__ for rule in callbacks() if issubclass(rule, SynapticCallback)}


def test_boundaries_that_are_found_take_the_place_of_declared_ones(tmp_path: Path) -> None:
    files = CONFIGS / "digits.yaml", CONFIGS / "drift.yaml", CONFIGS / "rules" / "si.yaml"
    cli = fit(*files, folder=tmp_path, more=DEV)
    kinds = [type(c) for c in cli.trainer.callbacks if isinstance(c, TaskBoundaries)]
    assert kinds == [DriftBoundaries]


@pytest.mark.parametrize("lora", [0, 2])
def test_domains_of_requests(lora: int, tmp_path: Path) -> None:
    model = tiny_encoder(tmp_path / "model")
    for name, split in requests().items():
        split.to_parquet(tmp_path / f"{name}.parquet")
    more = [f"--data.init_args.{name}" for name in (f"data={tmp_path}", f"tokenizer={model}")]
    more += [f"--model.init_args.model={model}", f"--model.init_args.lora_rank={lora}"]
    cli = fit(CONFIGS / "clinc150.yaml", folder=tmp_path, more=[*more, "--trainer.fast_dev_run=1"])
    assert cli.datamodule.task_names == ["bank", "music"]
    assert cli.model.num_labels == [2, 2]
    assert any("lora" in name for name, _ in cli.model.named_parameters()) is bool(lora)


def test_the_same_labels_in_other_domains(tmp_path: Path) -> None:
    model = tiny_encoder(tmp_path / "model")
    for name, (split, rows) in product(["one", "other"], requests().items()):
        (tmp_path / name).mkdir(exist_ok=True)
        rows.rename_column("intent", "label").to_parquet(tmp_path / name / f"{split}.parquet")
    more = [f"--data.init_args.data=[{tmp_path}/one, {tmp_path}/other]", "--trainer.fast_dev_run=1"]
    more += [f"--data.init_args.tokenizer={model}", f"--model.init_args.model={model}"]
    cli = fit(CONFIGS / "clinc150.yaml", CONFIGS / "reviews.yaml", folder=tmp_path, more=more)
    assert len(cli.datamodule) == 2
    assert cli.model.num_labels == [4]


def test_what_is_printed_runs_and_is_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [f"--config={CONFIGS / 'digits.yaml'}", f"--config={CONFIGS / 'rules' / 'ewc.yaml'}"]
    with pytest.raises(SystemExit, match="0"):
        run(["fit", *files, "--print_config"])
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    again = fit(printed, folder=tmp_path, more=DEV)
    first = fit(CONFIGS / "digits.yaml", CONFIGS / "rules" / "ewc.yaml", folder=tmp_path, more=DEV)
    for a, b in zip(first.trainer.callbacks, again.trainer.callbacks, strict=True):
        assert type(a) is type(b)
    for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


# -- every callback from YAML --------------------------------------------------------------------------------


def callbacks() -> list[type[Callback]]:
    """All public ones but the bases."""
    public = [getattr(cl_callbacks, name) for name in cl_callbacks.__all__]
    found = [c for c in public if isinstance(c, type) and issubclass(c, Callback)]
    return [c for c in found if c not in (SynapticCallback, TaskBoundaries)]


NEEDED = {
    "strength": 2.0, "every_n_epochs": 3, "key": "domain", "memory_steps": 100.0, "monitor": "val_acc",
    "mode": "max", "tolerance": 0.1,
}  # fmt: skip
OTHERS: dict[str, Any] = {
    "parameters": ["weight"], "exclude": "bias", "state_dtype": "float64", "state_device": "cpu",
    "strict": False, "name": "mine", "decay": 0.5, "samples": 7, "proximal": True, "seed": 3,
    "max_importance": 1.5, "monitor": "score", "mode": "max", "names": ["a", "b"], "estimator": "sampled",
    "anchors": "each", "norm": "l2", "prior": "chain", "carry_optimizer": True, "recent_samples": 9,
    "draws": 2, "importance_file": None, "factors": [0.5, 2.0], "share": 0.25, "likelihood": "categorical",
    "class_dim": 1, "ignore_index": -1, "tolerance": 0.2, "action": "stop", "validations": 5,
}  # fmt: skip
REFUSED = {SynapticIntelligence: {"anchors"}, KFACLaplace: {"max_importance"}}


def built(name: str, arguments: dict[str, Any]) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=Callback)
    text = yaml.safe_dump({"callback": {"class_path": name, "init_args": arguments}})
    return parser.instantiate(parser.parse_string(text)).callback


@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("kind", callbacks(), ids=lambda kind: kind.__name__)
def test_every_callback_is_built_from_yaml(kind: type[Callback], short: bool) -> None:
    names = inspect.signature(kind).parameters
    needed = {name: value for name, value in NEEDED.items() if name in names}
    path = kind.__name__ if short else f"cl_callbacks.{kind.__name__}"
    assert type(built(path, needed)) is kind
    refused = REFUSED.get(kind, set())
    others = {name: value for name, value in OTHERS.items() if name in names and name not in refused}
    made = built(path, needed | others)
    for name, value in others.items():
        kept = getattr(made, name, value)
        assert kept in (value, (value,), tuple(value) if isinstance(value, list) else value), name


def test_the_strength_is_found_from_a_file(tmp_path: Path) -> None:
    finder = {"monitor": "val_acc", "factors": [0.001, 1000.0], "share": 0.5}
    content = {
        "data": {"init_args": {"permutations": 2}},
        "trainer": {
            "max_epochs": 2,
            "limit_train_batches": 4,
            "callbacks": [
                {"class_path": "EpochBoundaries", "init_args": {"every_n_epochs": 1}},
                {"class_path": "EWC", "init_args": {"strength": 2.0, "samples": 16}},
                {"class_path": "StrengthFinder", "init_args": finder},
            ],
        },
    }
    files = CONFIGS / "digits.yaml", write(tmp_path / "finder.yaml", content)
    cli = fit(*files, folder=tmp_path, more=[])
    (rule,) = [c for c in cli.trainer.callbacks if isinstance(c, EWC)]
    (found,) = [c for c in cli.trainer.callbacks if isinstance(c, StrengthFinder)]
    assert found.result is not None and found.factors == [0.001, 1000.0]
    assert rule.strength == found.result.strengths[0] in (0.002, 2000.0)
    assert cli.trainer.global_step == 8


@pytest.mark.parametrize("given", ["float64", "float32", "bfloat16"])
def test_the_type_of_the_state_is_given_by_name(given: str) -> None:
    assert built("EWC", {"strength": 1.0, "state_dtype": given}).synapses.dtype is getattr(torch, given)


@pytest.mark.parametrize(
    ("boundaries", "detector"),
    [("DriftBoundaries", "cl_callbacks.drift.CUSUM"), ("PlateauBoundaries", "cl_callbacks.drift.Plateau")],
)
def test_detectors_are_given_by_their_class(boundaries: str, detector: str) -> None:
    made = built(boundaries, {"detector": {"class_path": detector, "init_args": {}}})
    assert isinstance(made, DriftBoundaries | PlateauBoundaries)
    assert type(made.detector).__name__ == detector.rsplit(".", 1)[1]


def test_detectors_of_river() -> None:
    pytest.importorskip("river")
    detector = {"class_path": "river.drift.ADWIN", "init_args": {"delta": 0.1}}
    made = built("DriftBoundaries", {"detector": detector})
    assert made.detector.delta == 0.1


def test_a_wrong_name_is_refused_with_the_nearest_right_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = {"class_path": "EWC", "init_args": {"stength": 70.0}}
    (tmp_path / "rule.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [rule]}}))
    with pytest.raises(SystemExit):
        run(["fit", "--config", str(CONFIGS / "digits.yaml"), "--config", str(tmp_path / "rule.yaml")])
    sentence = "cl-callbacks: EWC has no argument 'stength'; the nearest is 'strength'"
    assert capsys.readouterr().err.splitlines()[-1] == sentence


def of(kind: str, **arguments: Any) -> list[Any]:
    return [{"class_path": kind, "init_args": arguments}]


MISTAKES: dict[str, tuple[list[str], list[Any], str]] = {
    "class": ([], of("EWK"), "there is no class 'EWK'; the nearest is 'EWC'"),
    "boundaries": ([], of("EpochBoundary"), "the nearest is 'EpochBoundaries'"),
    "module": ([], of("nope.Rule"), "there is no module 'nope' for the class 'nope.Rule'"),
    "not in module": ([], of("cl_callbacks.EWCC"), "has no 'EWCC'; the nearest is 'EWC'"),
    "argument": ([], of("MAS", nrom="l2"), "MAS has no argument 'nrom'; the nearest is 'norm'"),
    "type": ([], of("EWC", strength="much"), "EWC: strength must be float; got 'much'$"),
    "several types": ([], of("EWC", samples="many"), "EWC: samples must be int or null; got 'many'$"),
    "literal": ([], of("EWC", estimator="exat"), "EWC: estimator must be one of 'exact', .*; got 'exat'$"),
    "needed": ([], of("EpochBoundaries"), "EpochBoundaries needs a value for every_n_epochs$"),
    "number": (["--trainer.max_epochs=many"], [], "trainer.max_epochs must be int or null; got 'many'$"),
    "yaml": (["--config={broken}"], [], r".*broken.yaml is not YAML: line 1, 'trainer: {callbacks: \['"),
    "missing model": (["--model=nope.Net"], [], "there is no module 'nope'"),
    "value": ([], of("EWC", strength=-1), "EWC: strength must be a finite number"),
    "file": ([], of("EWC", importance_file="/no/such"), "'/no/such' is not a file"),
    "two": ([], [*of("FitBoundaries"), *of("EpochBoundaries", every_n_epochs=1)], "this Trainer has 2: "),
    "option": (["--trainer.max_epohcs=3"], [], "no option 'trainer.max_epohcs'; .* 'trainer.max_epochs'"),
    "of data": (["--data.init_args.permutation=3"], [], "no argument 'permutation'; .* 'permutations'"),
    "data class": (["--data=ImageTaks"], [], "there is no class 'ImageTaks'; the nearest is 'ImageTasks'"),
    "folder": (
        ["--data.init_args.data=/no/such"],
        [],
        "there is no file or folder '/no/such'; there is no folder '/no'",
    ),
    "configuration": (["--config=/no/such.yaml"], [], "/no/such.yaml"),
    "name of a file": (
        ["--config={configs}/digit.yaml"],
        [],
        "the file '.*/digit.yaml' does not exist; the nearest is '.*/digits.yaml'$",
    ),
    "name of a folder": (
        ["--config={configs}s/digits.yaml"],
        [],
        "no folder '.*'; the nearest is '.*configs'$",
    ),
    "key": (["--config={key}"], [], "no option 'trainr.max_epochs'; the nearest is 'trainer.max_epochs'"),
    "order of files": (
        ["--config={adding}", "--config={configs}/drift.yaml"],
        [],
        ".*drift.yaml sets trainer.callbacks and would drop what .*adding.yaml adds to it",
    ),
    "without an option": (["extra.yaml"], [], "'extra.yaml' belongs to no option; .* --config FILE"),
    "without a value": (["--trainer.max_epochs"], [], "the option '--trainer.max_epochs' needs a value"),
    "no mapping": (["--trainer=3"], [], "trainer must hold keys and values, or be a file that does; got '3'"),
    "class_path": ([], [{"class": "EWC"}], "and 'class' is neither; the nearest is 'class_path'"),
    "init_args": ([], [{"class_path": "EWC", "strength": 3}], "and 'strength' is neither"),
    "short name": ([], of("LwF"), "there is no class 'LwF'; the nearest is 'Distillation'"),
    "initials": ([], of("SI"), "the nearest is 'SynapticIntelligence'"),
    "no callback": ([], of("torch.nn.Linear"), "torch.nn.Linear is no Callback, which is needed here"),
    "no model": (["--model=EWC"], [], "EWC is no LightningModule, which is needed here"),
    "optimizer": (["--optimizer=Adamm"], [], "there is no class 'Adamm'; the nearest is 'Adam'"),
    "file of a class": (["--model=./net.py"], [], "a class is named MODULE.CLASS, .*; got './net.py'"),
    "import": (["--model=raising.Net"], [], "the module of 'raising.Net' cannot be imported: boom"),
    "of two": (
        ["--trainer.callbacks+=EWC", "--trainer.callbacks.strength=x"],
        [],
        "EWC: strength must be float; got 'x'",
    ),
    "checkpoint": (["--ckpt_path=/no/such.ckpt"], [], "/no/such.ckpt"),
    "no checkpoint": (
        ["--ckpt_path={key}"],
        [],
        "the checkpoint '.*key.yaml' cannot be read here: it is damaged",
    ),
    "other checkpoint": (
        ["--ckpt_path={other}"],
        [],
        "the checkpoint '.*other.ckpt' cannot be read here: Error.s. in",
    ),
    "training": (
        ["--trainer.max_epochs=101"],
        [],
        r"Trainer\(max_epochs=100\)",
    ),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_ends_in_one_sentence_last_and_alone(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, callbacks, sentence = MISTAKES[kind]
    content: Any = {"seed_everything": 0}
    if callbacks:
        content["trainer"] = {"callbacks": callbacks}
    files = [f"--config={CONFIGS / 'digits.yaml'}", f"--config={write(tmp_path / 'mistake.yaml', content)}"]
    short = [*QUIET, "--trainer.max_epochs=1", "--trainer.logger=false", "--trainer.limit_train_batches=1"]
    (tmp_path / "broken.yaml").write_text("trainer: {callbacks: [")
    (tmp_path / "key.yaml").write_text("trainr: {max_epochs: 3}")
    (tmp_path / "adding.yaml").write_text("trainer: {callbacks+: [EWC]}")
    (tmp_path / "raising.py").write_text("raise RuntimeError('boom')")
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.0"}, tmp_path / "other.ckpt")
    monkeypatch.syspath_prepend(tmp_path)
    named = {file.stem: file for file in tmp_path.iterdir()} | {"configs": CONFIGS}
    arguments = [argument.format(**named) for argument in arguments]
    fit = ["cl-callbacks", "fit", *files, f"--trainer.default_root_dir={tmp_path}", *short, *arguments]
    monkeypatch.setattr(sys, "argv", fit)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (1, 2)
    error = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert re.match(f"cl-callbacks: .*{sentence}", error[-1]), error[-1]
    assert len(error[-1]) < 500
    assert not any("Traceback" in line or "usage:" in line for line in error)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            [],
            "say what to do, one of fit, validate, test, predict, rules, explain, such as `cl-callbacks fit",
        ),
        (["fti"], "there is no subcommand 'fti'; the nearest is 'fit'"),
        (["fit"], "model and data must be given, in a file by --config FILE or by --model and --data"),
        (["--config", str(CONFIGS / "digits.yaml"), "fit"], "the subcommand comes first: `cl-callbacks fit"),
        (["rules", "EWK"], "there is no callback 'EWK'; the nearest is 'EWC'"),
        (["explain"], "model and data must be given"),
        (
            [
                *("explain", "--config", str(CONFIGS / "digits.yaml")),
                *("--trainer.callbacks+=FitBoundaries", "--trainer.callbacks+=DriftBoundaries"),
            ],
            "One callback must say when a task ends, and this Trainer has 2: FitBoundaries, DriftBoundaries.",
        ),
    ],
)
def test_a_wrong_command_ends_in_one_sentence(
    given: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["cl-callbacks", *given])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (1, 2)
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith(f"cl-callbacks: {sentence}")


def test_an_error_of_ones_own_module_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text(
        "from examples.digits import Classifier\n\n\nclass Net(Classifier):\n"
        "    def training_step(self, batch, batch_idx):\n        raise ValueError('mine')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder] + [str(ROOT)])
    more = [
        "--model=broken.Net",
        "--model.inputs=256",
        f"--trainer.default_root_dir={tmp_path}",
        *DEV,
        *QUIET,
    ]
    monkeypatch.setattr(sys, "argv", ["cl-callbacks", "fit", f"--config={CONFIGS / 'digits.yaml'}", *more])
    with pytest.raises(ValueError, match="mine"):
        main()


def test_the_traceback_of_a_mistake_is_there_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEBUG", "true")
    missing = ["--data.init_args.data=/no/such", *QUIET]
    monkeypatch.setattr(sys, "argv", ["cl-callbacks", "fit", f"--config={CONFIGS / 'digits.yaml'}", *missing])
    with pytest.raises(ValueError, match="/no/such"):
        main()


def test_the_printed_configuration_has_every_argument(capsys: pytest.CaptureFixture[str]) -> None:
    rule = ["--config", str(CONFIGS / "rules" / "ewc.yaml")]
    with pytest.raises(SystemExit):
        run(["fit", "--config", str(CONFIGS / "digits.yaml"), *rule, "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    (found,) = [c for c in printed["trainer"]["callbacks"] if c["class_path"] == "cl_callbacks.EWC"]
    assert found["init_args"].keys() == inspect.signature(cl_callbacks.EWC).parameters.keys()


# -- the result ----------------------------------------------------------------------------------------------

TASKS, EPOCHS = 4, 2


class Dropping(LightningModule):
    """A classifier whose training draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        hidden = [nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.3)]
        self.net = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean(), batch_size=len(batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class Stopped(Exception):
    pass


class StopIn(Callback):
    """Has the process die in the middle of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.current_epoch == self.epoch and args[-1] == 3:
            raise Stopped


def short(folder: Path, name: str) -> list[str]:
    """Four tasks of two epochs with dropout, on top of the configuration of the digits."""
    saving = {"save_last": True, "save_on_train_epoch_end": True}
    content = {
        "model": {"class_path": "tests.test_cli.Dropping"},
        "data": {"init_args": {"permutations": TASKS, "pad": 0, "epochs_per_task": EPOCHS}},
        "trainer": {
            "max_epochs": TASKS * EPOCHS,
            "limit_train_batches": 20,
            "check_val_every_n_epoch": EPOCHS,
            "callbacks": [
                {"class_path": "EpochBoundaries", "init_args": {"every_n_epochs": EPOCHS}},
                {"class_path": "TaskEvaluation", "init_args": {"table": False}},
                {"class_path": "SeedEpochs"},
                {"class_path": "ModelCheckpoint", "init_args": saving},
            ],
            "logger": {"init_args": {"save_dir": str(folder), "name": name}},
        },
    }  # fmt: skip
    files = [CONFIGS / "digits.yaml", write(folder / f"{name}.yaml", content), CONFIGS / "rules" / "ewc.yaml"]
    return ["fit", *[f"--config={file}" for file in files], *QUIET]


def matrix(folder: Path) -> Any:
    (file,) = folder.rglob("task_matrix.json")
    return json.loads(file.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("transition", [0, 16])
def test_a_sequence_that_is_stopped_in_its_third_task_ends_as_if_it_never_was(
    transition: int, tmp_path: Path
) -> None:
    mixed = [f"--data.init_args.transition_batches={transition}"]
    whole = run([*short(tmp_path, "whole"), *mixed])
    for epoch in (2 * EPOCHS, 2 * EPOCHS + 1):  # goes on with a new task, and in the middle of one
        name = f"stopped{epoch}"
        stop = ["--trainer.callbacks+=tests.test_cli.StopIn", f"--trainer.callbacks.epoch={epoch}"]
        with pytest.raises(Stopped):
            run([*short(tmp_path, name), *mixed, *stop])
        (last,) = (tmp_path / name).rglob("last.ckpt")
        again = run([*short(tmp_path, f"again{epoch}"), *mixed, f"--ckpt_path={last}", "--seed_everything=5"])
        assert matrix(tmp_path / f"again{epoch}") == matrix(tmp_path / "whole")
        assert len(matrix(tmp_path / "whole")["matrix"]) == TASKS + 1
        for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.slow
def test_the_command_does_what_the_same_python_does(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cl_callbacks", *short(tmp_path, "command")],
        capture_output=True, text=True, cwd=ROOT, timeout=240, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    seed_everything(0)
    model = Dropping()
    data = ImageTasks("digits", permutations=TASKS, epochs_per_task=EPOCHS, shuffle_seed=0)
    trainer = Trainer(
        max_epochs=TASKS * EPOCHS,
        limit_train_batches=20,
        check_val_every_n_epoch=EPOCHS,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        accelerator="cpu",
        callbacks=[EWC(), EpochBoundaries(EPOCHS), TaskEvaluation("val_acc", table=False), SeedEpochs()],
        logger=CSVLogger(tmp_path, "python"),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    assert matrix(tmp_path / "command") == matrix(tmp_path / "python")


# -- how it is installed -------------------------------------------------------------------------------------


def test_the_command_is_installed() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    assert '\n[project.scripts]\ncl-callbacks = "cl_callbacks.cli:main"\n' in project
    assert importlib.util.find_spec("cl_callbacks.__main__") is not None


def test_the_installed_command_finds_modules_of_the_folder_it_is_run_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(
        "from examples.digits import Classifier\n\nclass Net(Classifier): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder] + [str(ROOT)])
    config = ["--config", str(CONFIGS / "digits.yaml"), "--model=mine.Net", "--model.inputs=256"]
    monkeypatch.setattr(sys, "argv", ["cl-callbacks", "fit", *config, "--print_config"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "class_path: mine.Net" in capsys.readouterr().out


@pytest.mark.skipif(installed(), reason="of a clone")
def test_without_jsonargparse_it_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jsonargparse", None)  # as Python marks what cannot be imported
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    sentence = f"cl-callbacks: jsonargparse is not installed: pip install -e {shlex.quote(f'{ROOT}[cli]')}"
    assert capsys.readouterr().err.splitlines()[-1] == sentence
