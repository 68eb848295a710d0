"""Rules that draw random numbers, on two processes whose devices make others of one seed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from cl_callbacks import BGD, MESU, EpochBoundaries
from cl_callbacks.tensors import random_numbers
from cl_callbacks.tensors.random_numbers import alike_in_all_processes
from tests.every_rule import OWNING, same
from tests.processes import train_together
from tests.small import Net, loader, make_trainer, plain_net, task, weights

ALL = random_numbers.PIECE


def fit(rule: str, piece: int) -> dict[str, Any]:
    """What a rule and the weights are after a training with a device that numbers its elements otherwise."""
    torch.manual_seed(0)
    model, drawing = Net(plain_net()), OWNING[rule]()
    trainer: Trainer = make_trainer(drawing, EpochBoundaries(1), max_epochs=2, devices=2, strategy="ddp")
    random_numbers.PIECE = piece  # larger tensors have other numbers, as on a GPU of another model
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.fit(model, loader(*task(0)))
        if isinstance(drawing, MESU | BGD) and trainer.global_rank == 1:
            drawing.predict_samples(model, task(1)[0], draws=2)  # waits for no other process
    return {
        "weights": weights(model),
        "state": drawing.state_dict(),
        "said": [str(each.message) for each in said if "draw different random numbers" in str(each.message)],
    }


def work(rank: int, folder: Path) -> None:
    found: dict[str, Any] = {
        rule: {other: fit(rule, 8 if rank and other == "unlike" else ALL) for other in ("alike", "unlike")}
        for rule in OWNING
    }
    several = [torch.zeros(10), torch.zeros(0), torch.zeros(100_000)]
    found["compared"] = [alike_in_all_processes(several)]
    several[-1][-3] = rank  # a GPU with more multiprocessors differs only there
    found["compared"].append(alike_in_all_processes(several))
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("unlike")
    train_together(2, work, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("rule", OWNING)
def test_all_have_the_numbers_of_the_first(found: list[dict[str, Any]], rule: str) -> None:
    alike, unlike = (found[0][rule][other] for other in ("alike", "unlike"))
    for each in (alike, unlike, found[1][rule]["alike"], found[1][rule]["unlike"]):
        assert torch.equal(each["weights"], alike["weights"])
        assert same(each["state"], alike["state"])


@pytest.mark.parametrize("rule", OWNING)
def test_it_is_said_once(found: list[dict[str, Any]], rule: str) -> None:
    said = [[each[rule][other]["said"] for each in found] for other in ("alike", "unlike")]
    assert said[0] == [[], []]
    (message,), nothing = said[1]
    assert nothing == []
    assert message.endswith("so that their weights stay the same.")


def test_all_processes_hear_of_a_difference(found: list[dict[str, Any]]) -> None:
    assert [each["compared"] for each in found] == [[True, False]] * 2
