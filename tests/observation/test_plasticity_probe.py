"""Copies of a network that learn a new task tell why it learns less, and nobody notices them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional as F

from cl_callbacks import BGD, EWC, L2SP, MESU, UPGD, EpochBoundaries, PlasticityProbe, SynapticIntelligence
from cl_callbacks.observation.fork import WAYS, Fork
from cl_callbacks.observation.fresh_tasks import fresh_batches
from tests.every_rule import assert_same, make, state
from tests.small import CLASSES, FEATURES, Net, loader, make_trainer, plain_net, task, weights


def fit(model: Net, *callbacks: Callback, epochs: int = 2, **options: Any) -> Trainer:
    seed_everything(0, verbose=False)
    trainer = make_trainer(*callbacks, EpochBoundaries(1), max_epochs=epochs, **options)
    trainer.fit(model, loader(*task(0), shuffle=True))
    return trainer


@pytest.mark.parametrize(
    "rules", [[], ["ewc"], ["si", "l2sp"], ["mesu"], ["upgd"], ["bgd"], ["cbp", "ewc"], ["er", "lwf"]]
)
def test_training_is_the_same_bit_for_bit(rules: list[str], tmp_path: Any) -> None:
    """Weights, statistics of BatchNorm, moments, states of rules and random numbers."""
    found = []
    for probes in ([PlasticityProbe(steps=5)], []):
        torch.manual_seed(0)
        model, own = Net(), [make(rule) for rule in rules]
        trainer = fit(model, *own, *probes)
        moments = [t for s in trainer.optimizers[0].state.values() for t in s.values()]
        states = {f"{i}{key}": t for i, rule in enumerate(own) for key, t in state(rule).items()}
        numbers = {"weights": weights(model), "random": torch.get_rng_state()}
        numbers |= {f"buffer {i}": b for i, b in enumerate(model.buffers())}
        numbers |= {f"moment {i}": torch.as_tensor(t) for i, t in enumerate(moments)}
        found.append(copy.deepcopy(numbers | states))
    assert_same(*found)


class Batches(Callback):
    """Weights, moments and all that, when the task has ended."""

    observes = True

    def on_task_end(self, trainer: Trainer, pl_module: Any, task: int) -> None:
        self.model = copy.deepcopy(pl_module.net)
        self.moments = copy.deepcopy(trainer.optimizers[0].state_dict())


def learned(net: nn.Module, batches: list[Any], moments: Any = None) -> float:
    """Mean loss of a plain loop."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    if moments is not None:
        optimizer.load_state_dict(moments)
    losses = []
    for x, y in batches:
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def test_copies_learn_what_a_plain_loop_does() -> None:
    seen: list[Any] = []

    def fresh(batch: Any, generator: torch.Generator) -> Any:
        seen.append((batch[0].flip(1), batch[1]))
        return seen[-1]

    torch.manual_seed(0)
    model = Net(plain_net())
    start, ended = copy.deepcopy(model.net), Batches()
    probe = PlasticityProbe(steps=3, fresh=fresh)
    fit(model, EWC(1.0), ended, probe, epochs=1)
    batches = seen[-3:]
    found = probe.results[0]
    assert found["released"] == pytest.approx(
        learned(copy.deepcopy(ended.model), batches, ended.moments), rel=1e-5
    )
    assert found["reset"] == pytest.approx(learned(copy.deepcopy(ended.model), batches), rel=1e-5)
    assert found["fresh"] == pytest.approx(learned(start, batches), rel=1e-5)
    assert found["rigidity"] == found["as_is"] - found["released"]


@pytest.mark.parametrize(
    "rule", [lambda: EWC(1e6), lambda: SynapticIntelligence(1e6), lambda: MESU(100, 1e-6)]
)
def test_a_rule_that_lets_nothing_move_is_rigid(rule: Any) -> None:
    torch.manual_seed(0)
    model, probe = Net(plain_net(), lambda p: torch.optim.SGD(p, lr=0.1)), PlasticityProbe(steps=30)
    fit(model, rule(), probe, epochs=4)
    last = probe.results[3]
    assert last["optimizer"] == 0.0  # plain gradient descent has no state
    if not isinstance(rule(), MESU):  # which begins anew as it began, and so stays where it is
        assert last["rigidity"] > 0.05


def test_a_rule_that_owns_the_update_takes_part_whatever_it_is_for() -> None:
    class Forking(Callback):
        observes = True

        def on_task_end(self, trainer: Trainer, pl_module: Any, task: int) -> None:
            fork = Fork(trainer, pl_module, {}, 0)
            self.copies = {way: [type(rule) for rule in fork._copies(way)] for way in WAYS}

    forking = Forking()
    fit(Net(plain_net(), lambda p: torch.optim.SGD(p, lr=0.1)), UPGD(), make("l2sp"), make("er"), forking)
    assert forking.copies["as_is"] == [UPGD, L2SP]
    assert forking.copies["released"] == forking.copies["fresh"] == [UPGD]


def test_without_learning_nothing_is_lost() -> None:
    model, probe = Net(plain_net(), lambda p: torch.optim.SGD(p, lr=0.0)), PlasticityProbe(steps=3)
    fit(model, probe, epochs=1)
    assert [probe.results[0][name] for name in ("rigidity", "optimizer", "representation")] == [0.0] * 3


def test_the_state_of_the_network() -> None:
    """Of four units one is silent, and two are alike."""
    net = nn.Sequential(nn.Linear(FEATURES, 4), nn.ReLU(), nn.Linear(4, CLASSES))
    with torch.no_grad():
        net[0].bias[:] = torch.tensor([9.0, -99.0, 9.0, 9.0])
        net[0].weight[3] = net[0].weight[2]
    model, probe = Net(net, lambda p: torch.optim.SGD(p, lr=0.0)), PlasticityProbe(steps=3)
    start = weights(model)
    fit(model, probe, epochs=1)
    found = probe.results[0]
    assert found["weight_norm"] == pytest.approx(float(start.norm()), rel=1e-6)
    assert found["distance"] == 0.0
    assert found["dormant/net.0"] == 0.25
    values = torch.linalg.svdvals(net[0](task(0)[0]).relu().detach())
    shares = values / values.sum()
    entropy = -sum(p * torch.log(p) for p in shares if p > 1e-9)
    assert found["effective_rank/net.0"] == pytest.approx(float(torch.exp(entropy)), rel=1e-3)
    assert found["stable_rank/net.0"] == pytest.approx(float((values / values[0]).square().sum()), rel=1e-4)


def test_it_is_logged_and_saved(tmp_path: Any) -> None:
    model, probe = Net(plain_net()), PlasticityProbe(2, steps=2)
    trainer = fit(model, BGD(0.1), probe, epochs=4, logger=CSVLogger(tmp_path))
    assert list(probe.results) == [1, 3]
    trainer.logger.save()
    text = next(tmp_path.rglob("metrics.csv")).read_text()
    assert "cl_task/plasticity/rigidity" in text and "cl_task/plasticity/fresh" in text
    other = PlasticityProbe(2, steps=2)
    other.load_state_dict(probe.state_dict())
    assert other.results == probe.results
    start = {"start": {"net.0.weight": torch.full((8, FEATURES), torch.nan)}, "results": {}}
    with pytest.raises(ValueError, match="holds nan"):
        other.load_state_dict(start)
    assert other.results == probe.results


def test_new_tasks_keep_what_they_do_not_change() -> None:
    x, y = torch.randn(4, 2, 3), torch.tensor([0, 2, -100, 1])
    (same_y, new_x), (_, other) = (
        (batch["y"], batch["x"]) for batch in fresh_batches([{"x": x, "y": y}, {"x": x, "y": y}], "inputs", 3)
    )
    assert torch.equal(same_y, y) and torch.equal(new_x, other)
    assert torch.equal(new_x.flatten(1).sort(1).values, x.flatten(1).sort(1).values)
    assert not torch.equal(new_x, x)
    batch = {"x": x, "y": y}
    for seed in range(20):
        labels: Tensor = fresh_batches([batch], "labels", seed)[0]["y"]
        assert labels[2] == -100 and sorted(labels.tolist()) == [-100, 0, 1, 2]
    assert torch.equal(batch["x"], x)


@pytest.mark.parametrize(
    ("fresh", "batch"), [("inputs", torch.zeros(2, 3, dtype=torch.long)), ("labels", torch.zeros(2, 3))]
)
def test_data_of_which_no_new_task_can_be_made(fresh: Any, batch: Tensor) -> None:
    with pytest.raises(ValueError, match=f"fresh='{fresh}' permutes .* have none: use fresh="):
        fresh_batches([(batch,)], fresh, 0)


class ByHand(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


@pytest.mark.parametrize(("model", "reason"), [(ByHand, "manual optimization")])
def test_what_copies_cannot_be_trained_in(model: Any, reason: str) -> None:
    with pytest.raises(MisconfigurationException, match=f"PlasticityProbe .* cannot with {reason}"):
        fit(model(), PlasticityProbe())


def test_a_task_of_another_kind_of_data_is_refused_before_the_first_step() -> None:
    class OfWords(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step([F.one_hot(batch[0], FEATURES).float(), batch[1]], batch_idx)

    model = OfWords()
    before = weights(model)
    words = torch.randint(0, FEATURES, (24,)), torch.randint(0, CLASSES, (24,))
    with pytest.raises(ValueError, match="use fresh='labels'"):
        make_trainer(PlasticityProbe(), EpochBoundaries(1)).fit(model, loader(*words))
    assert torch.equal(weights(model), before)
