"""Who hears of a task, when, and what the checkpoints of that moment hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader

from cl_callbacks import EWC, BatchBoundaries, EpochBoundaries, FitBoundaries, TaskSequence
from cl_callbacks.boundaries.batch_boundaries import _refuse_disagreement
from cl_callbacks.tensors.batches import count_samples
from cl_callbacks.training.task_batches import task_batches
from tests.small import FEATURES, Net, fit_tasks, loader, make_trainer, plain_net, task, weights


class Diary(Callback):
    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_train_start(self, *args: Any) -> None:
        self.events.append("train starts")

    def on_task_start(self, trainer: Any, pl_module: Any, task: int) -> None:
        self.events.append(("start", task, trainer.current_epoch))

    def on_task_end(self, trainer: Any, pl_module: Any, task: int) -> None:
        self.events.append(("end", task, trainer.current_epoch))


class Listening(Net):
    """A LightningModule hears of tasks too."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[str, int]] = []

    def on_task_start(self, trainer: Any, pl_module: Any, task: int) -> None:
        assert pl_module is self
        self.heard.append(("start", task))

    def on_task_end(self, trainer: Any, pl_module: Any, task: int) -> None:
        self.heard.append(("end", task))


@pytest.mark.parametrize("given", ["first", "last", "none"])
def test_each_fit_is_a_task(given: str) -> None:
    diary, model = Diary(), Listening()
    callbacks = [EWC(1.0), diary]
    if given != "none":
        callbacks.insert(0 if given == "first" else 2, FitBoundaries())
    fit_tasks(model, *callbacks, tasks=2, max_epochs=2)
    assert diary.events == [
        "train starts", ("start", 0, 0), ("end", 0, 1),
        "train starts", ("start", 1, 2), ("end", 1, 3),
    ]  # fmt: skip
    assert model.heard == [("start", 0), ("end", 0), ("start", 1), ("end", 1)]


@pytest.mark.parametrize("boundaries", ["default", "fresh", "same", "behind"])
def test_the_line_at_a_boundary_counts_tasks_across_trainers(
    boundaries: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rule, model, kept = EWC(1.0), Net(), EpochBoundaries(1)
    if boundaries == "behind":  # it has counted one task alone, and comes to a rule that has two
        make_trainer(kept, max_epochs=1, enable_progress_bar=True).fit(model, loader(*task(0)))
        capsys.readouterr()
    for fit in range(3):
        of_its_own = boundaries == "fresh" or (boundaries == "behind" and fit < 2)
        given = [] if boundaries == "default" else [EpochBoundaries(1) if of_its_own else kept]
        bar = TQDMProgressBar()
        trainer = make_trainer(rule, *given, bar, max_epochs=1, enable_progress_bar=True)
        trainer.fit(model, loader(*task(fit)))
    said = re.findall(r"task (\d+) ended at step", capsys.readouterr().out)
    assert said == ["0", "1", "2"] and rule.tasks == 3


def test_without_rules_and_boundaries_nobody_speaks_of_tasks() -> None:
    diary = Diary()
    fit_tasks(Net(), diary)
    assert diary.events == ["train starts", "train starts"]


@pytest.mark.parametrize("limit", [{"max_steps": 5}, {"max_epochs": 3}, {"limit_train_batches": 2}])
def test_a_fit_ends_its_task_whatever_ends_the_fit(limit: dict[str, int]) -> None:
    diary = Diary()
    options = {"max_epochs": -1 if "max_steps" in limit else 2} | limit
    make_trainer(diary, FitBoundaries(), **options).fit(Net(), loader(*task(0)))
    assert [e[0] for e in diary.events[1:]] == ["start", "end"]


@pytest.mark.parametrize("order", [1, -1])
def test_early_stopping_ends_the_task(order: int) -> None:
    diary = Diary()
    stopping = EarlyStopping("train_loss", patience=1, min_delta=1e9, check_on_train_epoch_end=True)
    model = Net()
    callbacks = [stopping, FitBoundaries(), diary][::order]
    make_trainer(*callbacks, max_epochs=9).fit(model, loader(*task(0)))
    assert [e[:2] for e in diary.events[1:]] == [("start", 0), ("end", 0)]


def test_epochs_make_tasks_and_an_incomplete_one_goes_on() -> None:
    diary, boundaries = Diary(), EpochBoundaries(2)
    trainer = make_trainer(diary, boundaries, max_epochs=5)
    model, data = Net(), loader(*task(0))
    trainer.fit(model, data)
    assert diary.events[1:] == [
        ("start", 0, 0), ("end", 0, 1), ("start", 1, 2), ("end", 1, 3), ("start", 2, 4),
    ]  # fmt: skip
    assert boundaries.task_is_open
    trainer.fit_loop.max_epochs = 6
    trainer.fit(model, data)
    assert diary.events[-2:] == ["train starts", ("end", 2, 5)]


def tagged(*ids: int) -> DataLoader:
    rows = [{"x": torch.randn(FEATURES), "y": torch.tensor(i % 3), "domain": i} for i in ids]
    return DataLoader(rows, batch_size=2)


class Tagged(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return super().training_step((batch["x"], batch["y"]), batch_idx)


def test_batches_name_their_tasks() -> None:
    diary = Diary()
    seen: dict[int, int] = {}

    class Counting(EWC):
        def estimate(self, trainer: Any, pl_module: Any, synapses: Any, task: int) -> Any:
            seen[task] = sum(map(count_samples, task_batches(trainer, self.samples)))
            return super().estimate(trainer, pl_module, synapses, task)

    ewc, boundaries = Counting(1.0, likelihood="categorical"), BatchBoundaries(key="domain", recent_samples=5)
    trainer = make_trainer(ewc, boundaries, diary)
    trainer.fit(Tagged(), tagged(*[7] * 10, *[3] * 4, *[7] * 2))
    assert [e[:2] for e in diary.events[1:]] == [
        ("start", 7), ("end", 7), ("start", 3), ("end", 3), ("start", 7), ("end", 7),
    ]  # fmt: skip
    assert ewc.tasks == 3
    # Five recent samples in batches of two are six; the Fisher reads this task's alone.
    assert seen[3] == 4
    assert seen[7] == 2


def test_batches_of_two_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"holds \[1, 2\]"):
        make_trainer(BatchBoundaries(key="domain")).fit(Tagged(), tagged(1, 2))
    with pytest.raises(ValueError, match=r"no task number at key='task'; it has \['x', 'y', 'domain'\]"):
        make_trainer(BatchBoundaries(key="task")).fit(Tagged(), tagged(1, 1))
    with pytest.raises(ValueError, match="a list"):
        make_trainer(BatchBoundaries(key=5)).fit(Net(), loader(*task(0)))


def test_tuple_batches_name_their_task_by_position() -> None:
    x, y = task(0)
    boundaries = BatchBoundaries(key=2)
    make_trainer(boundaries).fit(Net(), loader(x, y, torch.full((len(x),), 4)))
    assert boundaries.task == 5


def test_processes_that_disagree_on_the_task_are_told_so() -> None:
    _refuse_disagreement(torch.tensor([3, 3]))
    with pytest.raises(ValueError, match=r"different tasks at the same batch: \[3, 4\]"):
        _refuse_disagreement(torch.tensor([3, 4]))


def test_two_boundary_callbacks_are_refused() -> None:
    with pytest.raises(MisconfigurationException, match="FitBoundaries, EpochBoundaries"):
        make_trainer(FitBoundaries(), EpochBoundaries(1)).fit(Net(), loader(*task(0)))
    with pytest.raises(ValueError, match="every_n_epochs must be a whole number, at least 1"):
        EpochBoundaries(0)
    with pytest.raises(ValueError, match="at least 1"):
        BatchBoundaries(key="x", recent_samples=0)


def test_a_fit_that_would_do_nothing_says_so() -> None:
    for options, remedy in [
        ({"max_epochs": 2}, r"trainer.fit_loop.max_epochs \+= n"),
        ({"max_epochs": -1, "max_steps": 2}, "epoch_loop.max_steps"),
    ]:
        trainer, model = make_trainer(EWC(1.0), **options), Net()
        trainer.fit(model, loader(*task(0)))
        with pytest.raises(MisconfigurationException, match=remedy):
            trainer.fit(model, loader(*task(1)))


def test_a_finished_run_may_be_resumed_in_vain(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, save_last=True)
    make_trainer(EWC(1.0), saving, enable_checkpointing=True).fit(Net(), loader(*task(0)))
    ewc = EWC(1.0)
    again = make_trainer(ewc, max_epochs=1)
    again.fit(Net(), loader(*task(0)), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert ewc.tasks == 1
    again.fit(Net(), loader(*task(0)), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert ewc.tasks == 1


@pytest.mark.parametrize(
    "saving",
    [
        {},
        {"every_n_train_steps": 1},
        {"save_on_train_epoch_end": False},
        {"monitor": "train_loss"},
        {"save_last": "link"},
    ],
    ids=str,
)
@pytest.mark.parametrize("stopped_early", [False, True])
def test_last_checkpoint_of_a_task_holds_its_consolidated_state(
    tmp_path: Path, saving: dict[str, Any], stopped_early: bool
) -> None:
    class Validated(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    ewc, model = EWC(1.0), Validated()
    checkpoint = ModelCheckpoint(tmp_path, **({"save_last": True} | saving))
    callbacks: list[Callback] = [ewc, checkpoint]
    if stopped_early:
        callbacks.append(
            EarlyStopping("train_loss", patience=1, min_delta=1e9, check_on_train_epoch_end=True)
        )
    trainer = make_trainer(*callbacks, enable_checkpointing=True, max_epochs=4)
    trainer.fit(model, loader(*task(0)), loader(*task(1)))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"][ewc.state_key]
    assert saved["tasks"] == 1
    for name, value in zip(ewc.synapses.view.names, ewc.synapses.view["importance"], strict=True):
        assert torch.equal(saved["synapses"]["importance"][name], value)


def test_carried_optimizer_keeps_its_moments() -> None:
    found = {}
    for carry in (False, True):
        steps: list[float] = []

        class Watching(Net):
            def on_train_batch_start(self, *args: Any, steps: list[float] = steps) -> None:
                (optimizer,) = self.trainer.optimizers
                state = optimizer.state.get(self.net[0].weight)
                steps.append(float(state["step"]) if state else 0.0)

        fit_tasks(Watching(), FitBoundaries(carry_optimizer=carry), tasks=2)
        found[carry] = steps
    assert found[False] == [0, 1, 2, 0, 1, 2]
    assert found[True] == [0, 1, 2, 3, 4, 5]


def test_what_no_carrying_is_possible_for_starts_anew(tmp_path: Path) -> None:
    """Parameters grown in place, another kind of optimizer, and a resumed fit."""

    class Changing(Net):
        def configure_optimizers(self) -> Any:
            if self.trainer.current_epoch == 1:
                head = self.net[2]
                head.bias.data = torch.cat([head.bias.data, torch.zeros(2)])
                head.weight.data = torch.cat([head.weight.data, torch.zeros(2, 8)])
            kind = torch.optim.SGD if self.trainer.current_epoch == 2 else torch.optim.Adam
            return kind(self.parameters(), lr=0.01)

        def on_train_start(self) -> None:
            (optimizer,) = self.trainer.optimizers
            self.known = {n for n, p in self.named_parameters() if optimizer.state.get(p)}

    model, found = Changing(plain_net()), []
    saving = ModelCheckpoint(tmp_path, save_last=True)
    trainer = make_trainer(FitBoundaries(carry_optimizer=True), saving, enable_checkpointing=True)
    for _ in range(3):
        trainer.fit(model, loader(*task(0)))
        found.append(model.known)
        trainer.fit_loop.max_epochs += 1
    assert found == [set(), {"net.0.weight", "net.0.bias"}, set()]


def test_a_resumed_fit_takes_its_moments_from_the_checkpoint(tmp_path: Path) -> None:
    class Watching(Net):
        def on_train_start(self) -> None:
            (optimizer,) = self.trainer.optimizers
            self.steps = [float(s["step"]) for s in optimizer.state.values()]

    model = Watching(plain_net())
    boundaries = FitBoundaries(carry_optimizer=True)
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer = make_trainer(boundaries, saving, enable_checkpointing=True, max_epochs=1)
    trainer.fit(model, loader(*task(0)))
    trainer.fit_loop.max_epochs = 3
    trainer.fit(model, loader(*task(0)))
    assert set(model.steps) == {3.0}
    again = make_trainer(boundaries, max_epochs=4)
    again.fit(model, loader(*task(0)), ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True)
    assert set(model.steps) == {6.0}  # not the nine of the fit before


def test_carrying_the_optimizer_equals_one_fit() -> None:
    torch.manual_seed(0)
    start = Net().state_dict()
    found = []
    for one_fit in (True, False):
        model = Net()
        model.load_state_dict(start)
        model.net[3].p = 0.0
        data = loader(*task(0))
        if one_fit:
            make_trainer(max_epochs=2).fit(model, data)
        else:
            trainer = make_trainer(FitBoundaries(carry_optimizer=True))
            trainer.fit(model, data)
            trainer.fit_loop.max_epochs += 1
            trainer.fit(model, data)
        found.append(weights(model))
    assert torch.equal(*found)


def test_data_that_would_not_follow_the_tasks_are_refused() -> None:
    class Own(LightningDataModule):
        def train_dataloader(self) -> DataLoader:
            return loader(*task(0))

        def on_task_end(self, trainer: Any, pl_module: Any, task: int) -> None: ...

    sequence = TaskSequence([{"train": [0], "test": [0]}] * 2)
    for data, reload in ((Own(), 0), (Own(), 2), (sequence, 2)):
        trainer = make_trainer(EpochBoundaries(2), reload_dataloaders_every_n_epochs=reload)
        with pytest.raises(
            MisconfigurationException, match=r"Trainer\(reload_dataloaders_every_n_epochs=1\)"
        ):
            trainer.fit(Net(), data)


def test_the_default_boundary_speaks_before_checkpoints_are_written() -> None:
    trainer = make_trainer(EWC(1.0), ModelCheckpoint(), enable_checkpointing=True)
    trainer.fit(Net(), loader(*task(0)))
    kinds = [type(c).__name__ for c in trainer.callbacks]
    assert kinds.index("FitBoundaries") < kinds.index("ModelCheckpoint")


def test_older_last_checkpoints_are_left_alone(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, save_last=True, every_n_epochs=2)
    trainer = make_trainer(EWC(1.0), saving, enable_checkpointing=True, max_epochs=3)
    trainer.fit(Net(), loader(*task(0)))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 6


def test_a_fast_dev_run_may_fit_again() -> None:
    trainer, model = make_trainer(EWC(1.0), fast_dev_run=True), Net()
    for _ in range(2):
        trainer.fit(model, loader(*task(0)))
        assert trainer.state.finished


def test_evaluating_a_checkpoint_forgets_nothing(tmp_path: Path) -> None:
    class Tested(Net):
        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...

    images = torch.rand(20, 1, 2, 3), torch.arange(20) % 3
    data = TaskSequence.split_by_label((images[0], images[1]), groups=[(0, 1, 2)] * 3)
    ewc, boundaries = EWC(1.0), EpochBoundaries(2)
    model = Tested(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 3)))
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer = make_trainer(
        ewc, boundaries, saving, enable_checkpointing=True, max_epochs=4,
        reload_dataloaders_every_n_epochs=1,
    )  # fmt: skip
    trainer.fit(model, data)
    before = {n: t.clone() for n, t in ewc.state_dict()["synapses"]["importance"].items()}
    trainer.test(model, data, ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True)
    assert (ewc.tasks, boundaries.task, boundaries.task_is_open, data.current_task) == (2, 2, False, 2)
    after = ewc.state_dict()["synapses"]["importance"]
    assert all(torch.equal(before[n], after[n]) for n in before)
    ewc.load_state_dict(EWC(1.0).state_dict())  # by hand, after the evaluation, it does what it says
    assert ewc.tasks == 0


class ByEpoch(LightningDataModule):
    """The first epoch is task 0, the second is task 1."""

    def train_dataloader(self) -> DataLoader:
        torch.manual_seed(self.trainer.current_epoch)
        return tagged(*[self.trainer.current_epoch] * 6)


def test_recent_batches_survive_a_resume(tmp_path: Path) -> None:
    """Stopped between two tasks that only the batches tell apart: the first one's data are not lost."""

    def run(ckpt: Path | None = None) -> EWC:
        torch.manual_seed(0)
        model, ewc = Tagged(torch.nn.Linear(FEATURES, 3)), EWC(1.0, likelihood="categorical")
        saving = ModelCheckpoint(tmp_path / str(ckpt is None), filename="{epoch}", save_top_k=-1)
        trainer = make_trainer(
            ewc, BatchBoundaries("domain"), saving, enable_checkpointing=True,
            max_epochs=2, reload_dataloaders_every_n_epochs=1,
        )  # fmt: skip
        trainer.fit(model, datamodule=ByEpoch(), ckpt_path=ckpt, weights_only=True)
        return ewc

    whole, resumed = run(), run(tmp_path / "True" / "epoch=0.ckpt")
    assert whole.tasks == resumed.tasks == 2
    for a, b in zip(whole.synapses.view["importance"], resumed.synapses.view["importance"], strict=True):
        assert torch.equal(a, b)


class Validating(Net):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        pass


@pytest.mark.parametrize(("rules", "loaders", "said"), [([EWC], 2, 1), ([EWC], 1, 0), ([], 2, 0)])
def test_a_fit_that_looks_like_several_tasks_is_said_to_be_one(
    rules: list[Any], loaders: int, said: int, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, model = make_trainer(*[rule() for rule in rules], max_epochs=2), Validating()
    for _ in range(2):
        trainer.fit(model, loader(*task(0)), [loader(*task(k)) for k in range(loaders)])
        trainer.fit_loop.max_epochs += 2
    assert (
        caplog.text.count("so this whole fit is one: what it learns is kept by EWC from the next fit on")
        == said
    )


class Alike(LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        return loader(*task(0))


@pytest.mark.parametrize(("reload", "said"), [(0, 1), (1, 0)])
def test_a_loader_that_is_made_once_is_said(reload: int, said: int, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer(EpochBoundaries(1), max_epochs=2, reload_dataloaders_every_n_epochs=reload)
    trainer.fit(Net(), Alike())
    assert caplog.text.count("the loader of Alike is made once for all tasks") == said
