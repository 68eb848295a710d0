"""Two gloo processes that are resumed in the middle of an epoch."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import TensorDataset

from cl_callbacks import EWC, MESU, DriftBoundaries, EpochBoundaries, SynapticIntelligence
from tests.drift.traces import noisy
from tests.every_rule import COUNTING_TASKS, OWNING, RECYCLING, REHEARSING, RULES, make, same
from tests.processes import train_together
from tests.resumable import Resumable
from tests.small import CLASSES, FEATURES, Net, make_trainer, task

CHANGE = 40


class Sharded(Net):
    def __init__(self) -> None:
        net = nn.Sequential(nn.Linear(FEATURES, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, CLASSES))
        super().__init__(net, partial(torch.optim.Adam, lr=0.01))

    def train_dataloader(self) -> Any:
        data = TensorDataset(*task(0, samples=48))
        return Resumable(data, processes=2, rank=self.trainer.global_rank)


class Changing(Sharded):
    """Its loss has the height that the data say, another one on each process, and rises at the change."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        return loss * batch[2].mean() / loss.detach().clamp_min(1e-6)

    def train_dataloader(self) -> Any:
        heights = [noisy([(0.1, CHANGE), (2.0, 40)], seed=seed) for seed in range(2)]
        each = torch.tensor(heights).T.repeat_interleave(4, dim=0).flatten()  # samples go to both in turn
        data = TensorDataset(*task(0, samples=len(each)), each)
        return Resumable(data, shuffle=False, processes=2, rank=self.trainer.global_rank)


class OnTriples(EWC):
    def outputs(self, pl_module: Any, batch: Any) -> Any:
        return pl_module(batch[0]), batch[1]


def parts(case: str) -> tuple[Net, list[Any], Any, int, int]:
    """Network, rules, boundaries, epochs, and the step of the checkpoint: all anew."""
    if case == "drift":
        found = DriftBoundaries(min_task_batches=20, check_every_n_batches=5, recent_samples=20)
        # With unread values, and with samples from before the change that has just begun.
        return Changing(), [OnTriples(1.0, samples=20), SynapticIntelligence(1.0)], found, 1, CHANGE + 3
    if case == "replay":
        rules = [make(rule, 0.2, name=rule, batch_size=3) for rule in REHEARSING if rule != "er joined"]
    elif case == "owner":
        rules = [MESU(100, 0.2, draws=3)]
    else:
        rules = [
            make(rule, 0.2, name=rule) for rule in RULES if rule not in {*OWNING, *REHEARSING, *RECYCLING}
        ]
    return Sharded(), rules, EpochBoundaries(2), 4, 15


def train(case: str, folder: Path, resumed: Path | None, **options: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    model, rules, boundaries, epochs, step = parts(case)
    saving = ModelCheckpoint(folder, f"{case}-{{step}}", every_n_train_steps=step, save_top_k=-1)
    trainer = make_trainer(
        *rules,
        boundaries,
        *([] if resumed else [saving]),
        max_epochs=epochs,
        enable_checkpointing=resumed is None,
        **options,
    )
    trainer.fit(model, ckpt_path=resumed, weights_only=True)
    penalties = [rule.penalty(rule.synapses.view) for rule in rules]
    return {
        "weights": dict(model.state_dict()),
        "moments": trainer.optimizers[0].state_dict()["state"],
        "rules": [rule.state_dict() for rule in rules],
        "penalties": [penalty for penalty in penalties if penalty is not None],
        "boundaries": boundaries.state_dict(),
    }


CASES = ("rules", "owner", "drift", "replay")


def both_runs(rank: int, folder: Path) -> None:
    """Of each case, in one process group."""
    options = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
    for case in CASES:
        whole = train(case, folder, None, **options)
        resumed = train(case, folder, next(folder.glob(f"{case}-*.ckpt")), **options)
        torch.save([whole, resumed], folder / f"{case}-{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("ddp")
    train_together(2, both_runs, found)
    return found


@pytest.mark.parametrize("case", CASES)
def test_two_processes_go_on_as_if_they_had_never_stopped(case: str, folder: Path) -> None:
    whole, resumed = zip(
        *(torch.load(folder / f"{case}-{rank}.pt", weights_only=True) for rank in range(2)), strict=True
    )
    for rank in range(2):
        for part, value in whole[rank].items():
            assert same(value, resumed[rank][part]), (rank, part)
    assert same(whole[0]["weights"], whole[1]["weights"])
    assert all(value.isfinite().all() for value in whole[0]["weights"].values())
    if case != "replay":  # of which each process remembers samples of its own until a task ends
        assert same(whole[0]["rules"], whole[1]["rules"])
    tasks = [rule["tasks"] for rule in whole[0]["rules"]]
    counting = len(COUNTING_TASKS - set(REHEARSING))
    assert sum(tasks) == {"rules": 2 * counting, "owner": 0, "drift": 2, "replay": 6}[case]


def test_each_process_has_its_own_recent_samples_and_values_in_the_checkpoint(folder: Path) -> None:
    (path,) = folder.glob("drift-*.ckpt")
    first, second = torch.load(path, weights_only=True)["callbacks"]["DriftBoundaries"]["processes"]
    assert len(first["unread"]) == len(second["unread"]) == 3
    assert not same(first["unread"], second["unread"])
    assert len(first["recent"]["kept"]) == len(second["recent"]["kept"]) > 5
    for mine, others in zip(first["recent"]["kept"], second["recent"]["kept"], strict=True):
        assert mine[:3] == others[:3]
        assert not same(mine[3], others[3])


def test_one_process_goes_on_with_the_samples_of_the_first_of_two(folder: Path, tmp_path: Path) -> None:
    (path,) = folder.glob("drift-*.ckpt")
    saved = torch.load(path, weights_only=True)["callbacks"]["DriftBoundaries"]
    boundaries = parts("drift")[2]
    with pytest.warns(UserWarning, match="written by 2 processes and is resumed by 1"):
        boundaries.load_state_dict(saved)
        boundaries._restore_process()  # as when a fit begins
    assert same(boundaries.state_dict()["processes"], saved["processes"][:1])
