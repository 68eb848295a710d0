"""A head for each task: the layer, batches with the number of the task, and every kind of rule on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F

from cl_callbacks import (
    EWC,
    MAS,
    DarkExperienceReplay,
    Distillation,
    ExperienceReplay,
    ImageTasks,
    KFACLaplace,
    MultiHead,
    TaskEvaluation,
    TaskSequence,
    fisher_information,
)
from cl_callbacks.data import digits
from tests.small import make_trainer, weights

GROUPS = [(0, 1), (3, 2), (4, 5, 6)]


class Net(LightningModule):
    """What a user writes."""

    def __init__(self, num_labels: Any = (2, 2, 3)) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())
        self.heads = MultiHead(32, num_labels)

    def forward(self, x: Tensor, task: Any) -> Tensor:
        return self.heads(self.body(x), task)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y, task = batch
        return F.cross_entropy(self(x, task), y)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        x, y, task = batch
        self.log("val_acc", (self(x, task).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def split(**options: Any) -> TaskSequence:
    return TaskSequence.split_by_label(digits(), groups=GROUPS, heads=True, epochs_per_task=2, **options)


# -- the layer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 8), (5, 4, 8)])
def test_the_task_chooses_the_head(shape: tuple[int, ...]) -> None:
    heads, x = MultiHead(8, [2, 3]), torch.rand(shape)
    first, second = (head(x) for head in heads)
    assert torch.equal(heads(x, 0), first)
    for task in (1, [1] * 5, torch.ones(5, dtype=torch.long), torch.tensor(1)):
        assert torch.equal(heads(x, task), second)
    for mixed in ([1, 0, 1, 1, 0], torch.tensor([1, 0, 1, 1, 0])):
        found = heads(x, mixed)
        assert torch.equal(found[[0, 2, 3]], second[[0, 2, 3]])
        assert torch.equal(found[[1, 4]][..., :2], first[[1, 4]])
        assert (found[[1, 4]][..., 2] == -1e4).all()
    both = heads(x, "all")
    assert torch.equal(both[..., 1, :], second)
    assert torch.equal(both[..., 0, :2], first)
    assert torch.equal(MultiHead(8, [2])(x, 0), MultiHead(8, [2])(x, 7)) is False  # of other weights
    assert MultiHead(8, [2])(x, 7).shape[-1] == 2  # one for all tasks


def test_other_heads_are_left_alone() -> None:
    heads = MultiHead(8, [2, 2, 2])
    heads(torch.rand(4, 8), torch.tensor([2, 0, 0, 2])).sum().backward()
    assert [head.weight.grad is None for head in heads] == [False, True, False]


@pytest.mark.parametrize("task", [2, -1, [0, 2], torch.tensor([0, 2])])
def test_a_task_without_a_head(task: Any) -> None:
    with pytest.raises(ValueError, match=r"the batch is of task (2|-1), and the network has 2 heads"):
        MultiHead(8, [2, 3])(torch.rand(2, 8), task)


def test_heads_that_cannot_be() -> None:
    for arguments in ((0, [2]), (8, [2, 0]), (8, [])):
        with pytest.raises(ValueError, match=r"features|num_labels"):
            MultiHead(*arguments)


# -- the data ----------------------------------------------------------------------------------------------


def test_batches_carry_the_task_of_each_sample() -> None:
    data = split(batch_size=16)
    assert data.num_labels == [2, 2, 3]
    for index, loader in enumerate(data.val_dataloader()):
        for x, y, task in loader:
            assert task.tolist() == [index] * len(x)
            assert set(y.tolist()) == set(range(len(GROUPS[index])))
    plain = TaskSequence.split_by_label(digits(), groups=GROUPS)
    x, y = next(iter(plain.val_dataloader()[1]))
    own, numbers, _ = next(iter(data.val_dataloader()[1]))
    assert torch.equal(x, own)
    assert torch.equal(torch.tensor(GROUPS[1])[numbers], y)
    assert len(plain.num_labels) == 0


def test_a_configuration_has_heads_too() -> None:
    data = ImageTasks("digits", label_groups=GROUPS, heads=True)
    assert data.num_labels == [2, 2, 3]
    assert next(iter(data.train_dataloader()))[2].unique().tolist() == [0]
    with pytest.raises(ValueError, match="heads=True is for label_groups"):
        ImageTasks("digits", permutations=3, heads=True)


# -- rules -------------------------------------------------------------------------------------------------


def by_hand(pl_module: Any, batch: Any) -> Any:
    x, y, task = batch
    return pl_module(x, task), y


def all_by_hand(pl_module: Any, batch: Any) -> Any:
    features = pl_module.body(batch[0])
    return pl_module.heads(features, "all"), batch[1][:, None, None].expand(-1, 3, 1)


RULES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "EWC": (EWC, by_hand),
    "sampled": (lambda: EWC(estimator="sampled"), by_hand),
    "MAS": (MAS, by_hand),
    "KFAC": (KFACLaplace, by_hand),
    "ER": (lambda: ExperienceReplay(60), by_hand),
    "ER by loss": (lambda: ExperienceReplay(60, select="loss"), by_hand),
    "DER": (lambda: DarkExperienceReplay(60), by_hand),
    "LwF": (Distillation, all_by_hand),
}


@pytest.mark.parametrize("name", RULES)
def test_nothing_is_overridden(name: str) -> None:
    """A rule does on these batches what it does with its outputs told by hand, and all tasks are scored."""
    make, told = RULES[name]
    found: list[Tensor] = []
    for rule in (make(), make(), None):
        if len(found) == 1 and rule is not None:
            rule.outputs = told
        seed_everything(0, verbose=False)
        evaluation, net = TaskEvaluation("val_acc", table=False), Net()
        rules = [] if rule is None else [rule]
        make_trainer(*rules, evaluation, max_epochs=None, num_sanity_val_steps=0).fit(net, split())
        assert min(evaluation.record.table()[-1]) > 0.85
        found.append(weights(net))
    ours, hand, plain = found
    assert ours.isfinite().all()
    assert torch.equal(ours, hand)
    assert not torch.equal(ours, plain)


def test_the_fisher_information_of_samples_of_several_tasks() -> None:
    net = Net()
    x, y, task = torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 1, 0, 2, 0]), torch.tensor([0, 1, 1, 0, 2, 2])
    found = fisher_information(net, [(x, y, task)], estimator="empirical")
    expected = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for i in range(6):
        net.zero_grad()
        F.cross_entropy(net(x[i : i + 1], int(task[i])), y[i : i + 1]).backward()
        for name, p in net.named_parameters():
            expected[name] += 0.0 if p.grad is None else p.grad**2 / 6
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_three_that_are_something_else() -> None:
    """Of a batch of three, the last is the task only if ``forward`` says so."""

    class Pairs(Net):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return super().forward(left, 0)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self(batch[0], batch[1]), batch[1] * 0)

    with pytest.raises(TypeError, match=r"\(x, y, task\) for a `forward\(x, task\)`.* a tuple of 3"):
        make_trainer(EWC(1.0), max_epochs=None).fit(Pairs(), split())
