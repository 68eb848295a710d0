"""Training whose parameters are sharded over processes, as FSDP2 does it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from cl_callbacks import EWC, DarkExperienceReplay, EpochBoundaries, RWalk, SynapticIntelligence
from cl_callbacks.synapses.offload import Offload
from cl_callbacks.tensors.shards import full_tensor, held
from tests import every_rule
from tests.every_rule import REHEARSING, SHARDABLE
from tests.processes import train_together
from tests.rules.test_contract import Told
from tests.settings.processes import EXACT_LABELS, DealtTasks, DoubleTasks, Sharded
from tests.settings.training import BATCH, EPOCHS
from tests.small import Net, loader, make_trainer, plain_net, task

pytestmark = pytest.mark.slow
ALL = sorted(SHARDABLE - {*REHEARSING})  # what is rehearsed depends on the number of processes


def callbacks() -> list[Any]:
    """Every rule at once, each with a name of its own."""
    exact = {rule: {"estimator": "exact"} if rule in EXACT_LABELS else {} for rule in ALL}
    return [every_rule.make(rule, name=rule.replace(" ", "_"), **exact[rule]) for rule in ALL]


def strategy(processes: int, folder: bool = False) -> ModelParallelStrategy:
    return ModelParallelStrategy(processes, 1, save_distributed_checkpoint=folder)


def train(model: Net, folder: Path, name: str, resumed: str | None = None, **options: Any) -> None:
    """Three tasks; the middle of the second is kept in a checkpoint."""
    memory = callbacks()
    keep = ModelCheckpoint(folder / name, "{epoch}", every_n_epochs=1, save_top_k=-1)
    trainer = make_trainer(
        *memory,
        EpochBoundaries(EPOCHS),
        keep,
        max_epochs=3 * EPOCHS,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        enable_checkpointing=True,
        **options,
    )
    data = DoubleTasks() if options["devices"] == 1 and "strategy" not in options else DealtTasks()
    checkpoint = resumed and folder / resumed / "epoch=2.ckpt"
    trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
    found = {
        "weights": {name: full_tensor(p.detach()) for name, p in model.named_parameters()},
        "states": [every_rule.state(rule) for rule in memory],
        "penalties": [rule.penalty(rule.synapses.view) for rule in memory],
        "bytes": sum(t.nbytes for rule in memory for ts in rule.synapses.view.fields.values() for t in ts),
    }
    torch.save(found, folder / f"{name}-{trainer.global_rank}.pt")


def build(kind: type[Net] = Net) -> Net:
    torch.manual_seed(0)
    return kind(plain_net(), partial(torch.optim.Adam, lr=0.01)).double()


def two(rank: int, folder: Path) -> None:
    for name in ("file", "folder"):
        for run, resumed in ((name, None), (f"resumed from {name}", name)):
            kept_as = strategy(2, folder=name == "folder")
            train(build(Sharded), folder, run, resumed, devices=2, strategy=kept_as)
    left_out(folder, "left out", RootOnly, devices=2, strategy=strategy(2))
    memory = SynapticIntelligence(1.0, damping=1e-3)
    for kind, on in ((Sharded, strategy(2)), (Net, "ddp"), (Sharded, strategy(2))):
        trainer = make_trainer(memory, use_distributed_sampler=False, devices=2, strategy=on)
        trainer.fit(build(kind), DealtTasks())
    torch.save(every_rule.state(memory), folder / f"by turns-{rank}.pt")
    drift(folder, "drift")
    drift(folder, "resumed drift", "drift")


class OneByOne(DealtTasks):
    """A batch for each epoch."""

    def samples(self) -> tuple[Tensor, ...]:
        now = slice(BATCH * self.trainer.current_epoch, BATCH * (self.trainer.current_epoch + 1))
        x, y = task(0, samples=16 * BATCH)
        return x[now].double(), y[now]


class RootOnly(Net):
    """All parameters are the root's, which stay together after a forward without a backward."""

    def configure_model(self) -> None:
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        return found if self.training else found / (x[:, 2:3] > -0.7)  # not finite for some samples


class LeavingOut(RootOnly):
    def configure_model(self) -> None:
        pass


class Seeing(EWC):
    """Remembers the labels that it has drawn."""

    drawn: ClassVar[list[Tensor]] = []

    def read_as(self, *arguments: Any) -> None:
        super().read_as(*arguments)
        cotangents = self.reader.cotangents

        def seen(outputs: Tensor, labels: Tensor | None) -> Iterator[Tensor]:
            for vector in cotangents(outputs, labels):
                self.drawn.append(vector)
                yield vector

        self.reader.cotangents = seen  # type: ignore[method-assign]


def left_out(folder: Path, name: str, kind: type[Net], **options: Any) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8, momentum=0.0)  # no statistics are gathered
    net = nn.Sequential(nn.Linear(6, 8), norm, nn.Tanh(), nn.Linear(8, 3))
    model = kind(net, partial(torch.optim.SGD, lr=0.0)).double()
    memory = [EWC(1.0), Seeing(1.0, estimator="sampled", name="sampled")]
    trainer = make_trainer(*memory, use_distributed_sampler=False, **options)
    kept: list[bool] = []

    class Kept(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            norm.running_mean.fill_(trainer.global_rank)

        def on_task_end(self, trainer: Any, pl_module: Any, task: int) -> None:
            gradients = [None if p.grad is None else held(p.grad).clone() for p in pl_module.parameters()]
            self.before = gradients

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            now = [None if p.grad is None else held(p.grad) for p in pl_module.parameters()]
            kept.extend(torch.equal(a, b) for a, b in zip(self.before, now, strict=True) if a is not None)

    trainer.callbacks.insert(0, Kept())
    trainer.fit(model, DoubleTasks() if kind is LeavingOut else DealtTasks())
    found = {"importance": every_rule.state(memory[0]), "kept": kept, "drawn": Seeing.drawn}
    torch.save(found, folder / f"{name}-{trainer.global_rank}.pt")


def drift(folder: Path, name: str, resumed: str | None = None) -> None:
    """A change after 8 batches that is found after 11; after 9 a checkpoint is written."""
    memory = [SynapticIntelligence(1.0), EWC(1.0), RWalk(1.0, window_steps=3), DarkExperienceReplay(12)]
    model = build(Sharded)
    keep = ModelCheckpoint(folder / name, "{epoch}", every_n_epochs=9)
    trainer = make_trainer(
        *memory,
        Told(3),
        keep,
        max_epochs=16,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        enable_checkpointing=True,
        devices=2,
        strategy=strategy(2),
    )
    checkpoint = resumed and folder / resumed / "epoch=8.ckpt"
    trainer.fit(model, OneByOne(), ckpt_path=checkpoint, weights_only=True)
    found = [full_tensor(p.detach()) for p in model.parameters()], [every_rule.state(rule) for rule in memory]
    torch.save(found, folder / f"{name}-{trainer.global_rank}.pt")


class Partly(Net):
    def configure_model(self) -> None:
        fully_shard(self.net[0], mesh=self.device_mesh["data_parallel"])


class Replicated(Net):
    def configure_model(self) -> None:
        names = ("copies", "shards")
        fully_shard(self.net, mesh=init_device_mesh("cpu", (1, 1), mesh_dim_names=names))


class Elsewhere(Sharded):
    def on_fit_start(self) -> None:
        weight = self.net[2].weight  # as offloaded parameters are, on a device that is here
        weight._local_tensor = held(weight).to("meta")


def one(rank: int, folder: Path) -> None:
    for name in ("file", "folder"):
        train(build(Sharded), folder, f"one from {name}", name, devices=1, strategy=strategy(1))
    refused = {}
    for kind in (Partly, Replicated, Elsewhere):
        trainer = make_trainer(EWC(1.0), strategy=strategy(1))
        with pytest.raises(MisconfigurationException) as error:
            trainer.fit(kind(plain_net()), loader(*task(0)))
        refused[kind.__name__] = str(error.value)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(MisconfigurationException) as error:
        patch.setattr(Offload, "_everywhere", True)
        trainer = make_trainer(EWC(1.0, state_device="cpu"), strategy=strategy(1))
        trainer.fit(Sharded(plain_net()), loader(*task(0)))
    refused["state elsewhere"] = str(error.value)
    make_trainer(EWC(1.0, state_device="cpu"), strategy=strategy(1)).fit(
        Sharded(plain_net()), loader(*task(0))
    )
    torch.save(refused, folder / "refused.pt")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sharded")
    train_together(2, two, folder)
    train_together(1, one, folder)
    train(build(), folder, "plain", devices=1)
    left_out(folder, "left out plain", LeavingOut, devices=1)
    train(build(), folder, "plain from file", "file", devices=1)
    return {path.stem: torch.load(path, weights_only=True) for path in folder.glob("*.pt")}


@pytest.mark.parametrize("form", ["file", "folder"])
def test_resume_is_bit_identical(runs: dict[str, Any], form: str) -> None:
    found, expected = runs[f"resumed from {form}-0"], runs[f"{form}-0"]
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("name", ["one from file", "one from folder", "plain from file", "plain"])
def test_a_checkpoint_does_not_depend_on_the_number_of_processes(runs: dict[str, Any], name: str) -> None:
    found, expected = runs[f"{name}-0"], runs["file-0"]
    for part in ("weights", "states", "penalties"):
        torch.testing.assert_close(found[part], expected[part], rtol=1e-9, atol=1e-12)


def test_a_rule_goes_on_whole_and_sharded_by_turns(runs: dict[str, Any]) -> None:
    first, second = runs["by turns-0"], runs["by turns-1"]
    assert first["/tasks"] == 3
    torch.testing.assert_close(first, second, rtol=0.0, atol=0.0)


def test_each_process_holds_half_of_the_state(runs: dict[str, Any]) -> None:
    """The network has 8 units and 3 classes: 8 of 9 rows divide by two."""
    first, second, alone = (runs[name]["bytes"] for name in ("file-0", "file-1", "plain-0"))
    assert first + second == alone
    assert 0.4 < second / alone <= 0.5


def test_a_change_is_found_late_on_shards(runs: dict[str, Any]) -> None:
    """With a checkpoint between the change and its alarm."""
    whole_run, resumed = runs["drift-0"], runs["resumed drift-0"]
    torch.testing.assert_close(resumed, whole_run, rtol=0.0, atol=0.0)
    assert all(state["/tasks"] == 1 for state in whole_run[1])


def test_samples_that_are_left_out_and_buffers_that_differ(runs: dict[str, Any]) -> None:
    """With weights at rest; processes have other statistics, of which those of the first are used."""
    first, second, plain = (runs[name] for name in ("left out-0", "left out-1", "left out plain-0"))
    assert first["kept"]
    assert all(first["kept"] + second["kept"])
    torch.testing.assert_close(first["importance"], second["importance"], rtol=0.0, atol=0.0)
    torch.testing.assert_close(first["importance"], plain["importance"], rtol=1e-9, atol=1e-12)
    # The first are of the check before the first step, on the process's own samples.
    torch.testing.assert_close(first["drawn"][1:], second["drawn"][1:], rtol=0.0, atol=0.0)
    assert len(first["drawn"]) == 1 + 17


def test_what_is_sharded_otherwise_is_refused(runs: dict[str, Any]) -> None:
    reasons = {
        "Partly": "net.2.weight: not sharded, so nobody averages its gradient",
        "Replicated": r"net.0.weight: placed as \(Replicate\(\), Shard\(dim=0\)\) over 2 dimensions",
        "Elsewhere": "net.2.weight: offloaded to meta",
    }
    for kind, reason in reasons.items():
        assert re.search(reason, runs["refused"][kind]), runs["refused"][kind]
        assert "Wrap the whole network with `fully_shard`" in runs["refused"][kind]


def test_state_that_lives_elsewhere_than_the_shards_is_refused(runs: dict[str, Any]) -> None:
    assert "state_device='cpu' is not where the shards are" in runs["refused"]["state elsewhere"]


@pytest.mark.parametrize("kind", [FSDPStrategy, DeepSpeedStrategy])
def test_other_ways_to_shard_are_refused_and_fsdp2_named(kind: type) -> None:
    trainer = make_trainer(rule := EWC(1.0))
    trainer.strategy.__class__ = kind  # they need a GPU, or a package
    with pytest.raises(MisconfigurationException, match="FSDP2, which is ModelParallelStrategy"):
        rule.setup(trainer, Net(), "fit")
