"""A fit whose strengths are found first is the fit with these strengths."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from cl_callbacks import (
    EWC,
    DriftBoundaries,
    EpochBoundaries,
    FitBoundaries,
    PlateauBoundaries,
    SeedEpochs,
    StreamingConsolidation,
    StrengthFinder,
    SynapticIntelligence,
)
from cl_callbacks.tensors.shards import full_tensor
from tests.every_rule import same
from tests.processes import train_together
from tests.small import Net, loader, make_trainer, task
from tests.tuning.noticing import (
    EPOCHS,
    TASKS,
    Noticing,
    Outcome,
    assert_alike,
    fit,
    sequence,
)

FACTORS = 1e-3, 1.0, 1e3


class Manual(Noticing):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss


SETTINGS: dict[str, dict[str, Any]] = {
    "epochs": {"boundaries": lambda: EpochBoundaries(EPOCHS)},
    "data that change by themselves": {
        "boundaries": lambda: EpochBoundaries(EPOCHS),
        "data": lambda: sequence(epochs_per_task=EPOCHS, shuffle_seed=3, transition_batches=2),
    },
    "a fit for each task": {"boundaries": FitBoundaries, "fits": TASKS},
    "optimizers carried over": {"boundaries": lambda: FitBoundaries(carry_optimizer=True), "fits": TASKS},
    "steps": {"boundaries": FitBoundaries, "max_epochs": -1, "max_steps": 4},
    "found boundaries": {
        "boundaries": lambda: DriftBoundaries(min_task_batches=5),
        "data": lambda: sequence(epochs_per_task=EPOCHS),
    },
    "plateaus": {"boundaries": lambda: PlateauBoundaries(), "finder": {"epochs_per_task": EPOCHS}},
    "seeds": {"boundaries": lambda: EpochBoundaries(EPOCHS), "more": lambda: [SeedEpochs()]},
    "averaged weights": {
        "boundaries": lambda: EpochBoundaries(EPOCHS), "more": lambda: [EMAWeightAveraging(decay=0.5)],
    },
    "accumulated gradients": {"boundaries": lambda: EpochBoundaries(EPOCHS), "accumulate_grad_batches": 2},
    "manual": {"boundaries": lambda: EpochBoundaries(EPOCHS), "made": Manual},
    "validation in between": {"boundaries": lambda: EpochBoundaries(EPOCHS), "val_check_interval": 2},
}  # fmt: skip


def train(setting: dict[str, Any], *callbacks: Callback) -> Outcome:
    options = dict(setting)
    made = [options.pop("boundaries")(), *options.pop("more", list)()]
    options.pop("finder", None)
    if "data" in options:
        options["data"] = options["data"]()
    return fit(*callbacks, *made, **options)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_fit_is_that_of_the_strength_that_was_found(name: str) -> None:
    setting = SETTINGS[name]
    rule = EWC(20.0, samples=8)
    finder = StrengthFinder(factors=FACTORS, **setting.get("finder", {}))
    found = train(setting, rule, finder)
    assert (
        finder.result is not None and rule.strength == finder.result.strengths[0] == 20 * finder.result.factor
    )
    assert_alike(found, train(setting, EWC(rule.strength, samples=8)))


def test_trials_are_what_the_fit_does() -> None:
    """The first task, and the second at a factor of one over its whole length."""
    finder = StrengthFinder(factors=(1e-4, 1.0), share=1.0)
    evaluation = fit(EWC(20.0, samples=8), EpochBoundaries(EPOCHS), finder)["matrix"]
    plain = fit(EWC(20.0, samples=8), EpochBoundaries(EPOCHS))["matrix"].float()
    assert finder.result is not None
    assert finder.result.learned == plain[1, 0] == evaluation[1, 0]
    assert (finder.result.old[1], finder.result.new[1]) == (plain[2, 0], plain[2, 1])


@pytest.mark.parametrize("share", [1 / 3, 0.5, 1.0])
def test_the_second_task_is_learned_for_its_share(share: float) -> None:
    """Of two epochs of three batches."""

    class Counting(EWC):
        steps: list[int] = []  # noqa: RUF012

        def teardown(self, trainer: Any, *args: Any, **options: Any) -> None:
            self.steps.append(trainer.global_step)
            super().teardown(trainer, *args, **options)

    Counting.steps = []
    fit(Counting(1.0, samples=8), EpochBoundaries(EPOCHS), StrengthFinder(factors=(1.0, 2.0), share=share))
    assert Counting.steps == [6, 6 + round(6 * share), 6 + round(6 * share), 18]


def test_a_strength_that_forbids_all_movement_keeps_the_old_task_and_learns_nothing() -> None:
    class Still(Noticing):
        def __init__(self) -> None:
            super().__init__(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)))

    rule = EWC(1.0, proximal=True, samples=None)
    finder = StrengthFinder("val_loss", "min", factors=(1e-9, 1e9))
    fit(rule, EpochBoundaries(EPOCHS), finder, made=Still)
    assert finder.result is not None
    weak, strong = zip(finder.result.old, finder.result.new, strict=True)
    learned = finder.result.learned
    assert abs(strong[0] - learned) < 1e-3 and abs(weak[0] - learned) > 1e-2
    assert weak[1] < strong[1]


def test_a_rule_without_boundaries_and_several_with_a_common_factor() -> None:
    rules = [StreamingConsolidation(3.0), SynapticIntelligence(5.0, damping=1e-3)]
    finder = StrengthFinder(factors=FACTORS)
    found = fit(*rules, EpochBoundaries(EPOCHS), finder)
    assert finder.result is not None
    assert [rule.strength for rule in rules] == [s * finder.result.factor for s in (3.0, 5.0)]
    assert finder.result.rules == ("streaming_consolidation", "synaptic_intelligence")
    again = [StreamingConsolidation(rules[0].strength), SynapticIntelligence(rules[1].strength, damping=1e-3)]
    assert_alike(found, fit(*again, EpochBoundaries(EPOCHS)))


# -- what hears of it ----------------------------------------------------------------------------------------


class Hearing(Callback):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_fit_start(self, *args: Any) -> None:
        self.heard.append("fit")

    def on_train_start(self, *args: Any) -> None:
        self.heard.append("train")

    def on_task_end(self, *args: Any) -> None:
        self.heard.append("task")

    def on_train_end(self, *args: Any) -> None:
        self.heard.append("end")


def test_no_callback_no_logger_and_no_file(tmp_path: Path) -> None:
    def train(folder: Path, strength: float, *more: Callback) -> tuple[Any, list[str], str]:
        logger, hearing = CSVLogger(folder), Hearing()
        saving = ModelCheckpoint(folder / "saved", save_last=True)
        rule = EWC(strength, samples=8)
        fit(rule, EpochBoundaries(EPOCHS), *more, hearing, saving, logger=logger, log_every_n_steps=1,
            enable_checkpointing=True)  # fmt: skip
        assert hearing.heard == ["fit", "train", *["task"] * TASKS, "end"]
        files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
        run = folder / "lightning_logs" / "version_0"
        assert rule.strength == logger.experiment.hparams["cl_callbacks"]["ewc"]["strength"]
        seconds = "consolidation_seconds"
        lines = (run / "metrics.csv").read_text().splitlines()
        columns = [i for i, name in enumerate(lines[0].split(",")) if seconds not in name]
        table = "\n".join(",".join(line.split(",")[i] for i in columns) for line in lines)
        return rule.strength, files, table

    strength, files, table = train(tmp_path / "found", 20.0, StrengthFinder(factors=FACTORS))
    _, plain, expected = train(tmp_path / "plain", strength)
    figure = "lightning_logs/version_0/figures/cl-strength.png"
    assert set(files) - set(plain) == {figure}
    assert table == expected


def test_one_line_before_and_one_after(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def train(*callbacks: Callback) -> str:
        fit(EWC(1.0, samples=8), EpochBoundaries(EPOCHS), *callbacks, TQDMProgressBar(),
            enable_progress_bar=True)  # fmt: skip
        return capsys.readouterr().out

    text = train(StrengthFinder(factors=(1e-3, 1.0, 2.0)))
    assert text.count("StrengthFinder: tries 3 strengths, at the cost of 4 trainings of a task\n") == 1
    assert text.count("StrengthFinder: strength of ewc ") == 1
    assert text.count("task 0 ended at step 6") == text.count("task 1 ended at step 12") == 1
    assert "StrengthFinder: tasks learned" in text
    caplog.clear()
    fit(EWC(1.0, samples=8), StrengthFinder(factors=(1e-3, 1.0, 2.0)))  # the whole fit is a task
    assert caplog.text.count("`Trainer.fit` stopped") == 1


# -- what goes wrong -----------------------------------------------------------------------------------------


class Broken(Exception):
    pass


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt])
@pytest.mark.parametrize("step", [2, 7])
def test_everything_is_as_it_was_after_an_error_in_a_trial(error: type[BaseException], step: int) -> None:
    class Breaking(Noticing):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if self.trainer.global_step == step:
                raise error
            return super().training_step(batch, batch_idx)

    class Watching(Callback):
        """After the finder has left."""

        before: dict[str, Any]

        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            self.now(trainer, pl_module)
            self.before = self.found

        def now(self, trainer: Any, pl_module: Any) -> None:
            self.found = {"module": pl_module.everything(), "data": dict(vars(trainer.datamodule)),
                          "progress": trainer.fit_loop.state_dict(), "loggers": list(trainer.loggers),
                          "stop": trainer.should_stop, "callbacks": set(trainer.callbacks),
                          "random": torch.get_rng_state()}  # fmt: skip

        def on_exception(self, trainer: Trainer, pl_module: LightningModule, error: BaseException) -> None:
            self.now(trainer, pl_module)

    handler = signal.getsignal(signal.SIGINT)
    watching, rule = Watching(), EWC(2.0, samples=8)
    try:
        with pytest.raises((Broken, SystemExit)):
            fit(rule, EpochBoundaries(EPOCHS), StrengthFinder(factors=FACTORS), watching, made=Breaking)
    finally:
        signal.signal(signal.SIGINT, handler)
    found, before = watching.found, watching.before
    for name in ("module", "progress", "stop", "random", "callbacks", "loggers"):
        assert same(found[name], before[name]), name
    assert found["data"]["current_task"] == 0
    assert rule.strength == 2.0 and rule.tasks == 0 and not rule.synapses.known


class OneTask(LightningDataModule):
    current_task = 0

    def train_dataloader(self) -> DataLoader:
        return loader(*task(0))

    def val_dataloader(self) -> DataLoader:
        return loader(*task(0))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no validation": ({"limit_val_batches": 0}, "there is none"),
    "another score": ({"finder": {"monitor": "val_f1"}}, "no 'val_f1/dataloader_idx_0'; it logs .*val_acc"),
    "one task": ({"data": lambda: sequence(1)}, "TaskSequence has 1"),
    "one loader": ({"data": OneTask}, "validation has one loader"),
    "no tasks": ({"data": LightningDataModule}, "LightningDataModule does not"),
    "no rule": ({"rule": SeedEpochs}, "no rule with a strength"),
    "a strength of 0": ({"rule": lambda: EWC(0.0)}, "ewc has the strength 0"),
    "two": ({"more": lambda: [StrengthFinderOfMine()]}, "two: keep one"),
    "an unknown length": ({"boundaries": PlateauBoundaries}, "give it epochs_per_task"),
    "no training data": ({"limit_train_batches": 0}, "not trained for a single step"),
}  # fmt: skip


class StrengthFinderOfMine(StrengthFinder):
    pass


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_before_the_first_step(name: str) -> None:
    options, message = REFUSED[name]
    options = dict(options)
    boundaries = options.pop("boundaries", lambda: EpochBoundaries(EPOCHS))()
    callbacks = [options.pop("rule", lambda: EWC(1.0))(), *options.pop("more", list)(), boundaries]
    finder = StrengthFinder(**options.pop("finder", {}))
    data = options.pop("data", sequence)()
    trainer = make_trainer(*callbacks, finder, reload_dataloaders_every_n_epochs=1, max_epochs=2, **options)
    module = Noticing()
    with pytest.raises(MisconfigurationException, match=message):
        trainer.fit(module, data)
    assert module.steps == trainer.global_step == 0


def test_loaders_without_a_data_module_are_refused() -> None:
    trainer = make_trainer(EWC(1.0), StrengthFinder())
    with pytest.raises(MisconfigurationException, match=r"there is none\. Use one, or find_strength"):
        trainer.fit(Noticing(), loader(*task(0)), [loader(*task(0)), loader(*task(1))])


def test_two_finders_are_refused() -> None:
    with pytest.raises(MisconfigurationException, match="two StrengthFinder"):
        make_trainer(EWC(1.0), StrengthFinder(), StrengthFinder())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factors": (1.0,)}, "at least two numbers that rise"),
        ({"factors": (1.0, 1.0)}, "at least two numbers that rise"),
        ({"factors": (0.0, 1.0)}, "factors must be a list, each a finite number above 0"),
        ({"factors": (1.0, float("nan"))}, "factors must be a list, each a finite number above 0"),
        ({"mode": "largest"}, "mode must be 'max' or 'min'"),
        ({"share": 1.5}, "at most 1"),
        ({"share": 0}, "above 0"),
        ({"epochs_per_task": 0}, "at least 1"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StrengthFinder(**arguments)


def test_a_first_task_that_is_not_learned_is_said() -> None:
    with pytest.warns(UserWarning, match="which is no better"):
        fit(EWC(1.0, samples=8), EpochBoundaries(EPOCHS), StrengthFinder("val_loss", factors=(1.0, 2.0)))


# -- further fits --------------------------------------------------------------------------------------------


def resume(folder: Path, *callbacks: Callback, stop: bool = False) -> tuple[Trainer, Noticing]:
    saving = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    trainer = make_trainer(
        *callbacks, EpochBoundaries(EPOCHS), saving, max_epochs=EPOCHS if stop else TASKS * EPOCHS,
        reload_dataloaders_every_n_epochs=1, num_sanity_val_steps=0, enable_checkpointing=True,
    )  # fmt: skip
    module = Noticing()
    path = None if stop else str(folder / f"epoch={EPOCHS - 1}.ckpt")
    trainer.fit(module, sequence(), ckpt_path=path, weights_only=True)
    return trainer, module


def test_a_resumed_fit_takes_the_strength_of_its_checkpoint(tmp_path: Path) -> None:
    finder, rule = StrengthFinder(factors=(1e-3, 1e3)), EWC(2.0, samples=8)
    resume(tmp_path, rule, finder, stop=True)
    resumed, other = StrengthFinder(factors=(1e-3, 1e3)), EWC(2.0, samples=8)
    _, module = resume(tmp_path, other, resumed)
    assert resumed.result == finder.result and other.strength == rule.strength != 2.0
    assert module.steps == 3 * EPOCHS * (TASKS - 1)
    with pytest.raises(MisconfigurationException, match="use the same callbacks"):
        resume(tmp_path, EWC(2.0, samples=8), EWC(2.0, exclude="bias", name="other"), StrengthFinder())


def test_a_resumed_fit_without_a_search_keeps_its_strength(tmp_path: Path) -> None:
    resume(tmp_path, EWC(2.0, samples=8), stop=True)
    rule, finder = EWC(2.0, samples=8), StrengthFinder(factors=FACTORS)
    with pytest.warns(UserWarning, match="no strength from a search"):
        resume(tmp_path, rule, finder)
    assert rule.strength == 2.0 and finder.result is None


def test_fast_dev_run_does_not_search() -> None:
    rule, finder = EWC(2.0), StrengthFinder(factors=FACTORS)
    trainer = make_trainer(
        rule, EpochBoundaries(1), finder, fast_dev_run=True, reload_dataloaders_every_n_epochs=1
    )
    trainer.fit(Noticing(), sequence())
    assert finder.result is None and rule.strength == 2.0


# -- several processes ---------------------------------------------------------------------------------------


class Uneven(Net):
    """Logs a score that differs between the processes, and does not ask for it to be reduced."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        right = (self(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log("val_acc", right + 0.1 * self.global_rank * torch.rand(()), sync_dist=False)


class Sharded(Uneven):
    def configure_model(self) -> None:
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


def train_together_on(sharded: bool, strengths: list[float], *more: Callback) -> Any:
    torch.manual_seed(0)
    rules = [EWC(strengths[0], samples=8), StreamingConsolidation(strengths[1])]
    options: dict[str, Any] = {"max_epochs": TASKS * EPOCHS, "reload_dataloaders_every_n_epochs": 1}
    options |= {"devices": 2, "use_distributed_sampler": True, "num_sanity_val_steps": 0}
    options |= {"strategy": ModelParallelStrategy() if sharded else "ddp"}
    module = (Sharded if sharded else Uneven)(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)))
    make_trainer(*rules, EpochBoundaries(EPOCHS), *more, **options).fit(module, sequence())
    return [rule.strength for rule in rules], [full_tensor(p.detach()) for p in module.parameters()]


def in_two_processes(rank: int, folder: Path, sharded: bool) -> None:
    finder = StrengthFinder(factors=FACTORS)
    strengths, found = train_together_on(sharded, [3.0, 5.0], finder)
    _, plain = train_together_on(sharded, strengths)
    torch.save([finder.state_dict(), strengths, found, plain], folder / f"{rank}.pt")


@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp2"])
def test_two_processes_find_the_same(sharded: bool, tmp_path: Path) -> None:
    train_together(2, in_two_processes, tmp_path, sharded)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first[0]["result"] is not None
    assert same(first, second)
    assert same(first[2], first[3])
