"""What is consolidated and scored is what a fit leaves, and a fit that ends no task says so."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    LambdaCallback,
    ModelCheckpoint,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from cl_callbacks import (
    EWC,
    MAS,
    MESU,
    BatchBoundaries,
    DriftBoundaries,
    EpochBoundaries,
    FitBoundaries,
    KFACLaplace,
    PlateauBoundaries,
    RWalk,
    SynapseStatistics,
    SynapticIntelligence,
    TaskBoundaries,
    TaskEvaluation,
    TaskSequence,
    fisher_information,
)
from tests.small import CLASSES, FEATURES, Net, loader, make_trainer, plain_net, task, weights


class Scored(Net):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())


class Swapping(Callback):
    """A user's own average of the weights, which takes their place in one hook or another."""

    def __init__(self) -> None:
        self.average: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        now = [p.detach().clone() for p in pl_module.parameters()]
        self.average = [a.lerp(p, 0.1) for a, p in zip(self.average or now, now, strict=True)]

    def swap(self, trainer: Any, pl_module: Any) -> None:
        for parameter, average in zip(pl_module.parameters(), self.average, strict=True):
            parameter.data.copy_(average)


class AtTrainEnd(Swapping):
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.swap(trainer, pl_module)


class AtFitEnd(Swapping):
    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        self.swap(trainer, pl_module)


class SwappingModule(Scored):
    """Puts its weights on half of what they are when the training ends, as an optimizer's ``eval()`` may."""

    def on_train_end(self) -> None:
        for parameter in self.parameters():
            parameter.data.mul_(0.5)


AVERAGES: dict[str, Callable[[], Callback]] = {
    "EMA": lambda: EMAWeightAveraging(decay=0.9),
    "plain average": WeightAveraging,
    "SWA": lambda: StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=0.5),
    "own": AtTrainEnd,
    "function": lambda: LambdaCallback(on_train_end=lambda t, m: [p.data.mul_(0.5) for p in m.parameters()]),
}
BOUNDARIES: dict[str, Callable[[], Any]] = {
    "fit": FitBoundaries,
    "epochs": lambda: EpochBoundaries(2),
    "batches": lambda: BatchBoundaries(key=2),
}


def with_batchnorm() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, CLASSES))


class OfTriples(EWC):
    """Reads batches that carry the number of their task."""

    def outputs(self, pl_module: Any, batch: Any) -> Any:
        return pl_module(batch[0]), batch[1]


def data(number: int = 0, tagged: bool = False) -> Any:
    x, y = task(number)
    tags = [torch.full((len(x),), number)] if tagged else []
    return loader(x, y, *tags, shuffle=True)


VALIDATION = [loader(*task(k, samples=300), batch_size=300) for k in range(2)]


def anchor(rule: Any) -> Tensor:
    return torch.cat([t.flatten() for t in rule.state_dict()["synapses"]["anchor"].values()])


def descent(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5)


def fit(model: Any, *callbacks: Callback, epochs: int = 4, **options: Any) -> Trainer:
    tagged = any(isinstance(callback, BatchBoundaries) for callback in callbacks)
    torch.manual_seed(0)
    trainer = make_trainer(*callbacks, max_epochs=epochs, num_sanity_val_steps=0, **options)
    trainer.fit(model, data(tagged=tagged), VALIDATION)
    return trainer


@pytest.mark.parametrize("batchnorm", [False, True], ids=["", "BatchNorm"])
@pytest.mark.parametrize("first", [True, False], ids=["averages first", "averages last"])
@pytest.mark.parametrize("boundaries", BOUNDARIES)
@pytest.mark.parametrize("averages", AVERAGES)
def test_what_is_consolidated_and_scored_is_what_the_fit_leaves(
    averages: str, boundaries: str, first: bool, batchnorm: bool
) -> None:
    rule, evaluation = OfTriples(1.0, normalize=None), TaskEvaluation(table=False)
    declared, average = BOUNDARIES[boundaries](), AVERAGES[averages]()
    model = Scored(with_batchnorm() if batchnorm else plain_net(), optimizer=descent)
    callbacks = [rule, evaluation, declared]
    trainer = fit(model, *([average, *callbacks] if first else [*callbacks, average]))
    tasks = 2 if boundaries == "epochs" else 1
    assert (rule.tasks, declared.task, declared.task_is_open) == (tasks, tasks, False)
    assert torch.equal(anchor(rule), weights(model))
    scores = [next(iter(row.values())) for row in trainer.validate(model, VALIDATION, verbose=False)]
    assert evaluation.matrix[tasks].tolist() == pytest.approx(scores)
    assert evaluation.matrix.shape == (3, 2)
    if tasks == 1:
        model.eval()
        expected = fisher_information(model, [task(0)])
        for name, importance in rule.state_dict()["synapses"]["importance"].items():
            torch.testing.assert_close(importance, expected[name])


@pytest.mark.parametrize(
    "rule",
    [lambda: SynapticIntelligence(1.0), lambda: RWalk(1.0, window_steps=2), lambda: KFACLaplace(1.0)],
    ids=["si", "rwalk", "kfac"],
)
def test_a_task_that_is_consolidated_anew_counts_once(rule: Callable[[], Any]) -> None:
    """As if the averaged weights had been those at the task's end, for a rule with state of every kind."""
    found: list[dict[str, Any]] = []
    halves = Swapping()

    class Early(Callback):
        """Does before the end of the task what the other does after it."""

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            halves.on_train_batch_end(trainer, pl_module)

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 3:
                halves.swap(trainer, pl_module)

    both: list[Callback] = [Early(), AtTrainEnd()]
    for swapping in both:
        halves.average = []
        torch.manual_seed(0)
        model, learner = Scored(plain_net(), optimizer=descent), rule()
        fit(model, swapping, learner, EpochBoundaries(2))
        assert learner.tasks == 2
        found.append(learner.state_dict())
    flat = [torch.cat([t.flatten() for f in s["synapses"].values() for t in f.values()]) for s in found]
    torch.testing.assert_close(flat[1], flat[0])
    assert {k: v for k, v in found[0].items() if isinstance(v, int | float)} == pytest.approx(
        {k: v for k, v in found[1].items() if isinstance(v, int | float)}
    )


def test_a_module_that_changes_its_weights_in_the_end() -> None:
    rule, evaluation, model = EWC(1.0), TaskEvaluation(table=False), SwappingModule(plain_net())
    fit(model, rule, evaluation)
    assert torch.equal(anchor(rule), weights(model))


def test_the_next_task_begins_without_a_penalty() -> None:
    rule = EWC(1.0)
    penalties: list[float] = []

    class First(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 0:
                penalties.append(float(rule.penalty(rule.synapses.view)))

    model = Scored(plain_net(), optimizer=descent)
    trainer = fit(model, rule, EMAWeightAveraging(decay=0.9), First(), epochs=1)
    trainer.fit_loop.max_epochs += 1
    trainer.fit(model, data(1), VALIDATION)
    assert penalties == [0.0, 0.0]
    assert rule.tasks == 2


def test_early_stopping_and_averages() -> None:
    rule, declared, model = EWC(1.0), EpochBoundaries(2), Scored(plain_net(), optimizer=descent)
    stop = EarlyStopping("train_loss", patience=1, min_delta=1e9, check_on_train_epoch_end=True)
    fit(model, rule, declared, stop, EMAWeightAveraging(decay=0.9), epochs=9)
    assert rule.tasks == 1
    assert torch.equal(anchor(rule), weights(model))


@pytest.mark.parametrize("boundaries", [DriftBoundaries, PlateauBoundaries])
def test_the_open_task_of_a_stream_is_scored_as_the_fit_leaves_it(boundaries: Callable[[], Any]) -> None:
    evaluation, model = TaskEvaluation(table=False), Scored(plain_net(), optimizer=descent)
    trainer = fit(model, evaluation, boundaries(), AtTrainEnd())
    scores = [next(iter(row.values())) for row in trainer.validate(model, VALIDATION, verbose=False)]
    assert evaluation.matrix[1].tolist() == pytest.approx(scores)


@pytest.mark.parametrize(
    "saving", [{"save_last": True}, {"filename": "best", "monitor": "train_loss"}], ids=str
)
def test_checkpoints_of_the_last_step_hold_what_was_consolidated_anew(
    tmp_path: Path, saving: dict[str, Any]
) -> None:
    rule, model = EWC(1.0), Scored(plain_net(), optimizer=descent)
    checkpoint = ModelCheckpoint(tmp_path, **saving)
    fit(model, rule, AtTrainEnd(), checkpoint, enable_checkpointing=True, epochs=1)
    path = tmp_path / ("last.ckpt" if "save_last" in saving else "best.ckpt")
    saved = torch.load(path, weights_only=True)["callbacks"][rule.state_key]["synapses"]["anchor"]
    assert torch.equal(torch.cat([t.flatten() for t in saved.values()]), weights(model))


def test_statistics_are_of_what_was_consolidated_anew(tmp_path: Path) -> None:
    rule, model = EWC(1.0, normalize=None), Scored(plain_net(), optimizer=descent)
    logger = CSVLogger(tmp_path, name="", version="")
    fit(model, rule, SynapseStatistics(), AtTrainEnd(), logger=logger)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    logged = [row["cl_synapses/ewc/importance/mean"] for row in rows]
    importance = rule.state_dict()["synapses"]["importance"].values()
    assert float([value for value in logged if value][-1]) == pytest.approx(
        torch.cat([t.flatten() for t in importance]).mean().item()
    )


def test_weights_that_change_too_late_are_noticed() -> None:
    with pytest.warns(match="the weights have changed after task 0 ended"):
        fit(Scored(plain_net(), optimizer=descent), EWC(1.0), AtFitEnd())


def test_the_epoch_that_renews_statistics_is_no_task() -> None:
    """Nor does it end one: five epochs of training, tasks of three, and the sixth is SWA's."""
    declared, model = EpochBoundaries(3), Scored(with_batchnorm(), optimizer=descent)
    fit(model, EWC(1.0), declared, AVERAGES["SWA"](), epochs=5)
    assert (declared.task, declared.task_is_open) == (1, True)
    found = DriftBoundaries()
    fit(Scored(with_batchnorm(), optimizer=descent), found, AVERAGES["SWA"](), epochs=5)
    assert found.state_dict()["batches"] == 15


@pytest.mark.parametrize("by_epoch", [True, False], ids=["epochs_per_task", "boundaries"])
def test_a_sequence_serves_its_last_task_for_the_statistics(by_epoch: bool) -> None:
    tasks = [dict.fromkeys(("train", "validation"), loader(*task(k)).dataset) for k in range(2)]
    sequence = TaskSequence(tasks, batch_size=8, epochs_per_task=2 if by_epoch else None)
    rule, model = EWC(1.0), Scored(with_batchnorm(), optimizer=descent)
    trainer = make_trainer(
        rule, EpochBoundaries(2), AVERAGES["SWA"](), max_epochs=4, reload_dataloaders_every_n_epochs=1
    )
    trainer.fit(model, sequence)
    assert trainer.current_epoch == 5
    assert rule.tasks == 2
    assert torch.equal(anchor(rule), weights(model))


# -- a memory that nobody filled ---------------------------------------------------------------


@contextmanager
def no_warning_of_tasks() -> Iterator[None]:
    with warnings.catch_warnings():
        for words in ("No task has ended", ".*empty memory", ".*weights have changed"):
            warnings.filterwarnings("error", words)
        yield


def test_a_fit_in_which_no_task_ended_says_so_once() -> None:
    with pytest.warns(match="No task has ended.*EWC and MAS.*EpochBoundaries waits for 10 epochs") as said:
        fit(Scored(), EWC(1.0), MAS(1.0), MESU(100.0), EpochBoundaries(10))
    assert sum("No task has ended" in str(each.message) for each in said) == 1


def test_a_boundary_of_the_users_own_that_never_comes() -> None:
    class Never(TaskBoundaries): ...

    with pytest.warns(match="No task has ended.*Never has declared no end"):
        fit(Scored(), EWC(1.0), Never())


class Interrupting(Callback):
    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("callbacks", "options"),
    [
        (lambda: [EWC(1.0), EpochBoundaries(10)], {"fast_dev_run": True}),
        (lambda: [EWC(1.0), EpochBoundaries(10), Timer("00:00:00:00")], {}),
        (lambda: [EWC(1.0), DriftBoundaries()], {}),
        (lambda: [EWC(1.0), PlateauBoundaries()], {}),
        (lambda: [MESU(100.0), EpochBoundaries(10)], {}),
        (lambda: [EWC(1.0), EpochBoundaries(3)], {}),
        (lambda: [EWC(1.0)], {}),
        (lambda: [TaskEvaluation(table=False), EpochBoundaries(10)], {}),
    ],
    ids=["fast_dev_run", "out of time", "drift", "plateau", "no need", "unfinished", "default", "no rule"],
)
def test_ordinary_fits_are_not_warned(callbacks: Callable[[], Any], options: dict[str, Any]) -> None:
    with no_warning_of_tasks():
        fit(Scored(), *callbacks(), **options)


def test_an_interrupted_fit_is_not_warned() -> None:
    with no_warning_of_tasks(), pytest.raises(SystemExit):
        fit(Scored(), EWC(1.0), EpochBoundaries(10), Interrupting())


def test_a_task_that_goes_on_over_fits_is_not_warned() -> None:
    rule, model = EWC(1.0), Scored()
    with pytest.warns(match="goes on with the open task"):
        trainer = fit(model, rule, EpochBoundaries(3), epochs=1)
    with no_warning_of_tasks():
        for _ in range(2):
            trainer.fit_loop.max_epochs += 1
            trainer.fit(model, data(), VALIDATION)
    assert rule.tasks == 1


def test_the_number_of_the_task_goes_on_in_a_new_trainer() -> None:
    class Heard(Callback):
        def __init__(self) -> None:
            self.tasks: list[int] = []

        def on_task_end(self, trainer: Any, pl_module: Any, task: int) -> None:
            self.tasks.append(task)

    for keeper in (EWC(1.0), MESU(100.0), TaskEvaluation(table=False)):
        model, heard = Scored(), Heard()
        for boundaries in (None, FitBoundaries(), EpochBoundaries(1), None):
            fit(model, keeper, heard, *([] if boundaries is None else [boundaries]), epochs=1)
        assert heard.tasks == [0, 1, 2, 3]


def test_a_new_rule_in_a_new_trainer_is_told_of_what_it_forgets() -> None:
    for make in (lambda: EWC(1.0), lambda: MESU(100.0)):
        model, kept = Scored(plain_net()), make()
        with no_warning_of_tasks():
            fit(model, kept, epochs=1)
            fit(model, kept, epochs=1)
        name = type(kept).__name__
        with pytest.warns(match=f"This {name} begins with an empty memory"):
            fit(model, make(), epochs=1)


def test_a_new_beginning_is_not_warned(tmp_path: Path) -> None:
    model = Scored(plain_net())
    start = {name: value.clone() for name, value in model.state_dict().items()}
    with no_warning_of_tasks():
        fit(model, EWC(1.0), fast_dev_run=True)
        fit(model, EWC(1.0), enable_checkpointing=True, default_root_dir=tmp_path, epochs=1)
        model.load_state_dict(start)
        fit(model, EWC(1.0), epochs=1)  # the weights are new
        fit(Scored(plain_net()), EWC(1.0), epochs=1)  # so is the module
        fit(model, EWC(0.0), epochs=1)  # remembers nothing anyway
        saved = next(tmp_path.rglob("*.ckpt"))
        again = make_trainer(EWC(1.0), max_epochs=2)
        again.fit(model, data(), ckpt_path=saved, weights_only=True)
