"""Validation that nobody notices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric, MinMaxMetric
from torchmetrics.classification import MulticlassAccuracy

from cl_callbacks.training.quiet_validation import quiet_validation
from tests.small import CLASSES, Net, loader, make_trainer, task, weights


class Validated(Net):
    """Validates with a metric of its own, random numbers and a logger, as users do."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.accuracy = MulticlassAccuracy(CLASSES)
        self.best = MulticlassAccuracy(CLASSES)  # never reset: over all validations
        self.validated = 0

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        assert not self.training and not torch.is_grad_enabled()
        x, y = batch
        torch.rand(3)
        self.accuracy(self(x), y)
        self.best(self(x), y)
        self.log("val_acc", self.accuracy)
        self.log("val_sum", x.sum(), reduce_fx="sum", logger=False)
        if self.loggers:
            self.logger.experiment.log_image("a logger that is used directly", x)
            self.logger.experiment.add_image("whatever it is")

    def on_validation_epoch_end(self) -> None:
        self.validated += 1


class Hearing(Callback):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.heard.append("start")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.heard.append("end")


class Peeking(Callback):
    """Validates quietly in every hook of training that rules may use."""

    def __init__(self, *hooks: str) -> None:
        self.found: list[dict[str, Tensor]] = []
        for hook in hooks:
            setattr(self, hook, self._peek)

    def _peek(self, trainer: Trainer, *args: Any) -> None:
        self.found.append(quiet_validation(trainer))


HOOKS = ("on_train_start", "on_train_epoch_start", "on_train_batch_end", "on_train_epoch_end")


def val_loaders(tasks: int = 2) -> list[DataLoader]:
    return [loader(*task(index, samples=16)) for index in range(tasks)]


def fit(*callbacks: Callback, tasks: int = 2, **options: Any) -> tuple[Validated, Trainer]:
    seed_everything(0, verbose=False)
    model = Validated()
    trainer = make_trainer(*callbacks, **({"max_epochs": 2, "num_sanity_val_steps": 0} | options))
    trainer.fit(model, loader(*task(0), shuffle=True), val_loaders(tasks))
    return model, trainer


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"val_check_interval": 2}], ids=str)
def test_training_does_not_notice(hook: str, options: dict[str, Any]) -> None:
    plain, expected = fit(**options)
    peeking = Peeking(hook)
    watched, trainer = fit(peeking, **options)
    assert peeking.found
    assert torch.equal(weights(plain), weights(watched))
    assert trainer.callback_metrics == expected.callback_metrics
    assert trainer.progress_bar_metrics == expected.progress_bar_metrics
    assert trainer.logged_metrics == expected.logged_metrics
    loop = trainer.fit_loop.epoch_loop.val_loop
    assert loop.batch_progress == expected.fit_loop.epoch_loop.val_loop.batch_progress
    for metric, other in ((watched.accuracy, plain.accuracy), (watched.best, plain.best)):
        assert metric._update_count == other._update_count
        assert torch.equal(metric.tp, other.tp)


def test_it_finds_what_validation_finds() -> None:
    class Comparing(Peeking):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.usual = dict(trainer.callback_metrics)

    peeking = Comparing("on_train_epoch_end")
    fit(peeking, max_epochs=1)
    (found,) = peeking.found
    assert found.keys() == peeking.usual.keys() - {"train_loss"}
    assert len(found) == 4
    for name, value in found.items():
        assert value == peeking.usual[name]


def test_one_loader_keeps_the_plain_name() -> None:
    peeking = Peeking("on_train_start")
    fit(peeking, tasks=1)
    assert peeking.found[0].keys() == {"val_acc", "val_sum"}


def test_no_callback_and_no_logger_hears_of_it(tmp_path: Any) -> None:
    hearing, peeking = Hearing(), Peeking("on_train_batch_end")
    logger = CSVLogger(tmp_path)
    logger.experiment.log_image = logger.experiment.add_image = lambda *args: None  # type: ignore[attr-defined]
    model, _ = fit(hearing, peeking, limit_val_batches=1, logger=logger, log_every_n_steps=1)
    assert hearing.heard == ["start", "end"] * 2
    assert model.validated == 2 + len(peeking.found)
    metrics = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    column = metrics[0].split(",").index("val_acc/dataloader_idx_0")
    assert sum(bool(line.split(",")[column]) for line in metrics[1:]) == 2


def test_a_generator_that_training_shares_is_where_it_was() -> None:
    def train(*callbacks: Callback) -> Tensor:
        seed_everything(0, verbose=False)
        shared, model = torch.Generator().manual_seed(0), Validated()
        loaders = [loader(*task(k), shuffle=True, generator=shared) for k in (0, 1)]
        make_trainer(*callbacks, max_epochs=3, num_sanity_val_steps=0).fit(model, *loaders)
        return weights(model)

    assert torch.equal(train(), train(Peeking("on_train_epoch_start")))


def test_the_loop_is_where_it_was() -> None:
    class Counting(Validated):
        """Logs by step, and asks for its loaders, as the Trainer's own validations have them."""

        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Any] = []

        def val_dataloader(self) -> list[DataLoader]:
            if not self.peeking:
                self.seen.append(("loaders", self.trainer.current_epoch))
            return val_loaders()

        def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            if not self.peeking:
                loop = self.trainer.fit_loop.epoch_loop.val_loop
                self.seen.append(dict(loop._seen_batches_per_dataloader))

        peeking = False

    class Marked(Peeking):
        def _peek(self, trainer: Trainer, *args: Any) -> None:
            trainer.lightning_module.peeking = True
            super()._peek(trainer)
            trainer.lightning_module.peeking = False

    def train(*callbacks: Callback) -> list[Any]:
        model = Counting()
        options = {"reload_dataloaders_every_n_epochs": 2, "num_sanity_val_steps": 0}
        make_trainer(*callbacks, max_epochs=5, check_val_every_n_epoch=2, **options).fit(
            model, loader(*task(0))
        )
        return model.seen

    assert train() == train(Marked("on_train_epoch_start"))


def test_a_metric_that_remembers_the_best_does_not_remember_this() -> None:
    class Tracking(Validated):
        def __init__(self) -> None:
            super().__init__()
            self.extremes = MinMaxMetric(MeanMetric())

        def on_validation_epoch_end(self) -> None:
            self.extremes.update(self.trainer.global_step % 3 + 1.0)
            self.extremes.compute()

    def train(*callbacks: Callback) -> Any:
        seed_everything(0, verbose=False)
        model = Tracking()
        make_trainer(*callbacks, max_epochs=2, num_sanity_val_steps=0).fit(
            model, loader(*task(0)), val_loaders()
        )
        return model.extremes.min_val, model.extremes.max_val

    assert train() == train(Peeking("on_train_batch_end"))


def test_what_a_module_may_use_is_there(tmp_path: Path) -> None:
    class Using(Net):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.used = [
                self.logger.log_dir,
                self.logger.name,
                self.logger.version,
                self.trainer.log_dir,
                self.trainer.checkpoint_callback,
                "train_loss" in self.trainer.callback_metrics,
            ]

    class Comparing(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            usual, pl_module.used = pl_module.used, []
            quiet_validation(trainer)
            assert pl_module.used == usual
            assert usual[-2] is not None and usual[-1]

    make_trainer(
        Comparing(), num_sanity_val_steps=0, logger=CSVLogger(tmp_path), enable_checkpointing=True
    ).fit(Using(), loader(*task(0)), val_loaders())


def test_averaged_weights_are_validated_as_ever() -> None:
    class Comparing(Peeking):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.usual = dict(trainer.callback_metrics)

    peeking = Comparing("on_train_epoch_end")
    fit(peeking, EMAWeightAveraging(decay=0.9), max_epochs=3)
    for name, value in peeking.found[-1].items():
        assert value == peeking.usual[name]


def test_gradients_that_wait_for_their_step_stay() -> None:
    class Watching(Callback):
        def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
            before = pl_module.net[0].weight.grad.clone()
            assert before.any()
            quiet_validation(trainer)
            assert torch.equal(pl_module.net[0].weight.grad, before)

    fit(Watching(), max_epochs=1)


def test_everything_is_as_before_also_after_an_error() -> None:
    class Breaking(Validated):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            if self.trainer.global_step == 0:
                raise ZeroDivisionError
            super().validation_step(batch, batch_idx, dataloader_idx)

    class Catching(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            before = list(trainer.callbacks)
            with pytest.raises(ZeroDivisionError):
                quiet_validation(trainer)
            assert trainer.callbacks == before
            assert trainer.training
            assert pl_module.training

    trainer = make_trainer(Catching(), num_sanity_val_steps=0)
    trainer.fit(Breaking(), loader(*task(0)), val_loaders())
    assert trainer.global_step == 3
    assert "val_acc/dataloader_idx_1" in trainer.callback_metrics


def test_without_validation_data_there_is_nothing() -> None:
    class Checking(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            assert quiet_validation(trainer) == {}

    make_trainer(Checking()).fit(Net(), loader(*task(0)))
