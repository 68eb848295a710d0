"""Each private attribute of Lightning that the package uses, by itself: which version has changed it.

A failure here means that the installed Lightning has renamed or changed what the function of the same name in
``cl_callbacks/training/lightning_private.py`` stands for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    EarlyStopping,
    ModelCheckpoint,
    RichProgressBar,
    StochasticWeightAveraging,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DistributedSampler, SequentialSampler

import cl_callbacks
from cl_callbacks.training import lightning_private as private
from tests.small import Net, loader, make_trainer, plain_net, task


@pytest.fixture(autouse=True)
def version() -> Iterator[None]:
    """Says which version of Lightning it was, should a test fail."""
    try:
        yield
    finally:
        print(f"Lightning {lightning.__version__}")


class Asking(Callback):
    """Asks something after each training batch."""

    def __init__(self, ask: Any) -> None:
        self.ask, self.answers = ask, []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.answers.append(self.ask(trainer, pl_module))


class Validating(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))


def asked(ask: Any, *callbacks: Callback, model: Any = None, **options: Any) -> list[Any]:
    asking = Asking(ask)
    make_trainer(asking, *callbacks, **options).fit(model or Net(plain_net()), loader(*task(0)))
    return asking.answers


def test_attached_trainer() -> None:
    assert private.attached_trainer(Net()) is None
    assert all(asked(lambda trainer, module: private.attached_trainer(module) is trainer))


def test_is_logging_step(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    found = asked(lambda t, m: private.is_logging_step(t), logger=logger, log_every_n_steps=2, max_epochs=2)
    assert found == [False, True] * 3
    found = asked(
        lambda t, m: private.is_logging_step(t), logger=logger, log_every_n_steps=1, accumulate_grad_batches=3
    )
    assert found == [False, False, True]


def test_is_stepping_batch() -> None:
    assert asked(lambda t, m: private.is_stepping_batch(t)) == [True] * 3
    found = asked(lambda t, m: private.is_stepping_batch(t), accumulate_grad_batches=2)
    assert found == [False, True, True]  # also of a last window with fewer


def test_logged_step() -> None:
    assert asked(lambda t, m: private.logged_step(t)) == [0, 1, 2]
    assert asked(lambda t, m: private.logged_step(t), accumulate_grad_batches=3) == [0, 0, 0]


def test_progress_bar_metrics() -> None:
    def ask(trainer: Any, module: Any) -> Any:
        private.progress_bar_metrics(trainer)["word"] = "here"
        return trainer.progress_bar_metrics["word"]

    assert asked(ask) == ["here"] * 3


def test_loaders_in_use_and_like() -> None:
    def ask(trainer: Any, module: Any) -> Any:
        used = private.loaders_in_use(trainer)
        like = private.loaders_like(used)
        return (
            [type(one).__name__ for one in used.flattened],
            like is not used,
            like.flattened == used.flattened,
        )

    assert asked(ask)[0] == (["DataLoader"], True, True)


def test_before_batch_transfer() -> None:
    class Doubling(Net):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return 2 * batch

    found = asked(
        lambda trainer, module: private.before_batch_transfer(module, [torch.ones(1)]),
        model=Doubling(plain_net()),
    )
    assert found == [[torch.ones(1), torch.ones(1)]] * 3


def test_may_stop_early() -> None:
    assert asked(lambda t, m: private.may_stop_early(t), min_epochs=2, max_epochs=2)[:2] == [False, False]
    assert asked(lambda t, m: private.may_stop_early(t), min_epochs=0)[0]


def test_last_saved_step(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=2)
    asked(lambda t, m: None, checkpoint, enable_checkpointing=True)
    assert private.last_saved_step(checkpoint) == 2


def test_last_saved_file(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, filename="saved")
    assert private.last_saved_file(checkpoint) == ""
    make_trainer(checkpoint, enable_checkpointing=True).fit(Net(), loader(*task(0)))
    assert Path(private.last_saved_file(checkpoint)).name.startswith("saved")


def test_last_averaged_epoch() -> None:
    averaging = StochasticWeightAveraging(swa_lrs=0.1)
    assert private.last_averaged_epoch(averaging) == math.inf
    make_trainer(averaging, max_epochs=3).fit(Net(), loader(*task(0)))
    assert private.last_averaged_epoch(averaging) == 2


@pytest.mark.parametrize(
    ("options", "at_epoch_end"),
    [({}, True), ({"check_val_every_n_epoch": 2}, False)],
    ids=["epochs", "rarer"],
)
def test_looks_at_epoch_end(options: dict[str, Any], at_epoch_end: bool) -> None:
    def look(trainer: Any, module: Any) -> list[bool]:
        return [private.looks_at_epoch_end(c, trainer) for c in (checkpoint, stopping, Callback())]

    checkpoint, stopping = ModelCheckpoint(), EarlyStopping("train_loss")
    assert asked(look, stopping, **options) == [[at_epoch_end, at_epoch_end, False]] * 3
    set_by_hand = ModelCheckpoint(save_on_train_epoch_end=not at_epoch_end)
    assert asked(lambda t, m: private.looks_at_epoch_end(set_by_hand, t), **options) == [not at_epoch_end] * 3


def test_looks_within_epochs() -> None:
    assert private.looks_within_epochs(ModelCheckpoint(every_n_train_steps=3))
    assert private.looks_within_epochs(ModelCheckpoint(train_time_interval=timedelta(seconds=1)))
    assert not private.looks_within_epochs(ModelCheckpoint(every_n_epochs=3))
    assert not private.looks_within_epochs(EarlyStopping("train_loss"))


def test_monitored_metrics() -> None:
    def tell(trainer: Any, module: Any) -> Any:
        private.monitored_metrics(trainer)["mine"] = torch.tensor(1.0)
        return trainer.callback_metrics["mine"]

    assert asked(tell) == [1.0] * 3


def test_names_in_validation() -> None:
    class Look(Callback):
        def __init__(self) -> None:
            self.found: list[Any] = []

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            self.found.append((trainer.sanity_checking, sorted(set(private.names_in_validation(trainer)))))

    class Several(Net):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("score", 0.5)
            self.log(f"mine_{dataloader_idx}", 0.5, add_dataloader_idx=False)

    look = Look()
    loaders = [loader(*task(k)) for k in range(2)]
    make_trainer(look).fit(Several(plain_net()), loader(*task(0)), loaders)
    names = ["mine_0", "mine_1", "score/dataloader_idx_0", "score/dataloader_idx_1"]
    assert look.found == [(True, names), (False, names)]
    look.found.clear()
    make_trainer(look).fit(Several(plain_net()), loader(*task(0)), loaders[:1])
    assert look.found == [(True, ["mine_0", "score"]), (False, ["mine_0", "score"])]


def test_the_rich_bar() -> None:
    bar, lines = RichProgressBar(), []

    def ask(trainer: Any, module: Any) -> Any:
        live = private.is_live(bar)
        lines.append(private.add_line(bar, "extra", 3))
        bar.progress.update(lines[-1], visible=False)
        return live

    assert asked(ask, bar, enable_progress_bar=True) == [True] * 3
    assert len(set(lines)) == 3
    assert not private.is_live(bar)
    trainer = make_trainer(RichProgressBar(), enable_progress_bar=True)
    again = trainer.progress_bar_callback
    private.start_bar(again, trainer)
    assert private.is_live(again)
    private.stop_bar(again)
    assert not private.is_live(again)


def test_has_training_line() -> None:
    bar = TQDMProgressBar()
    assert asked(lambda t, m: private.has_training_line(bar), bar, enable_progress_bar=True) == [True] * 3
    assert not private.has_training_line(bar)


def test_metrics_kept() -> None:
    def ask(trainer: Any, module: Any) -> Any:
        before = dict(trainer.callback_metrics)
        with private.metrics_kept(trainer):
            trainer._logger_connector._callback_metrics["other"] = torch.ones(())
        return dict(trainer.callback_metrics).keys() == before.keys()

    assert all(asked(ask))


def test_validation_loop_kept() -> None:
    def ask(trainer: Any, module: Any) -> Any:
        loop = trainer.fit_loop.epoch_loop.val_loop
        before = dict(vars(loop))
        with private.validation_loop_kept(loop) as loaders:
            kinds = [type(one).__name__ for one in loaders]
            loop.batch_progress = None
        return kinds, vars(loop).keys() == before.keys() and loop.batch_progress is not None

    asking = Asking(ask)
    make_trainer(asking).fit(Validating(plain_net()), loader(*task(0)), loader(*task(1)))
    assert asking.answers == [(["DataLoader"], True)] * 3


def test_no_other_file_touches_a_private_attribute_of_lightning() -> None:
    package = Path(cl_callbacks.__file__).parent
    owners = "trainer|pl_module|loop|fit_loop|epoch_loop|val_loop|checkpoint|bar|connector|lightning_module"
    found = [
        f"{file.relative_to(package)}: {match}"
        for file in package.rglob("*.py")
        if file.name != "lightning_private.py"
        for match in re.findall(rf"\b(?:{owners})\._[a-z]\w+", file.read_text())
    ]
    assert not found


def test_new_fit_loop() -> None:
    """It trains from the start, on the same data to the same limits; the Trainer's own has not moved."""
    trainer = make_trainer(max_epochs=2, max_steps=5)
    model, batches = Validating(plain_net()), loader(*task(0))
    trainer.fit(model, batches, batches)
    own, progress = trainer.fit_loop, trainer.fit_loop.state_dict()
    trainer.fit_loop = loop = private.new_fit_loop(trainer)
    assert (trainer.global_step, trainer.current_epoch) == (0, 0)
    assert (trainer.max_epochs, trainer.max_steps, trainer.enable_validation) == (2, 5, True)
    trainer.training = True
    trainer.strategy.setup_optimizers(trainer)
    loop.run()
    assert trainer.global_step == 5
    assert own.state_dict() == progress


def test_continued_fit_loop() -> None:
    """It goes on as a further fit does: in the next epoch, and not as after a checkpoint."""
    trainer = make_trainer(max_epochs=2)
    model, batches = Validating(plain_net()), loader(*task(0))
    trainer.fit(model, batches, batches)
    progress = trainer.fit_loop.state_dict()
    for _ in range(2):
        trainer.fit_loop = loop = private.continued_fit_loop(trainer, progress)
        assert (trainer.global_step, trainer.current_epoch) == (6, 2)
        loop.max_epochs = 4
        trainer.training = True
        assert not (loop.restarting or loop.epoch_loop.restarting or loop.is_resuming)
        loop.run()
        assert (trainer.global_step, trainer.current_epoch) == (12, 4)


def test_set_training_data() -> None:
    trainer = make_trainer()
    trainer.fit(Net(plain_net()), loader(*task(0)))
    trainer.fit_loop, trainer.training = private.new_fit_loop(trainer), True
    private.set_training_data(trainer.fit_loop, loader(*task(0), batch_size=24))
    trainer.fit_loop.run()
    assert trainer.global_step == 1


def test_starts_processes() -> None:
    assert not private.starts_processes(make_trainer())
    assert not private.starts_processes(make_trainer(strategy="ddp"))
    assert private.starts_processes(make_trainer(strategy="ddp_spawn"))


def test_undivided() -> None:
    own = SequentialSampler(range(4))
    assert private.undivided(DistributedSamplerWrapper(own, num_replicas=2, rank=0)) is own
    assert private.undivided(DistributedSampler(range(4), 2, 0)) is None  # type: ignore[arg-type, type-var]
    assert private.undivided(own) is None


def test_leave_fit() -> None:
    class Leaving(Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            private.leave_fit()

    trainer = make_trainer(Leaving())
    trainer.fit(Net(plain_net()), loader(*task(0)))
    assert trainer.global_step == 0 and trainer.state.finished


def test_call_after_batches() -> None:
    found: list[tuple[int, int]] = []

    class Asked(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            progress = trainer.fit_loop.epoch_loop.batch_progress.current
            self.undo = private.call_after_batches(
                trainer, lambda: found.append((progress.processed, progress.completed))
            )

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self.undo()
            assert "on_batch_end" not in vars(trainer._logger_connector)

    make_trainer(Asked()).fit(Net(plain_net()), loader(*task(0)))
    assert found == [(1, 0), (2, 1), (3, 2)]
