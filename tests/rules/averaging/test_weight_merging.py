"""Merging of weights: plain loops, new heads, the order beside other rules, boundaries found late."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional as F

from cl_callbacks import (
    EWC,
    MESU,
    Cascade,
    DriftBoundaries,
    FitBoundaries,
    KFACLaplace,
    RWalk,
    SynapticIntelligence,
    WeightMerging,
)
from cl_callbacks.functional import path_importance
from tests.small import CLASSES, Net, fit_tasks, loader, make_trainer, plain_net, task, weights

Optimizer = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return plain_net().double()


def fit(model: Net, *callbacks: Callback, tasks: int = 3, **options: Any) -> None:
    """Tasks in double precision, in order, one optimizer for all."""
    trainer = make_trainer(FitBoundaries(carry_optimizer=True), *callbacks, **options)
    for index in range(tasks):
        if index:
            trainer.fit_loop.max_epochs += options.get("max_epochs", 1)
        x, y = task(index)
        trainer.fit(model, loader(x.double(), y))


def loop(
    optimizer: Optimizer, share: float | None, every: int | None = None, accumulate: int = 1, epochs: int = 2
) -> tuple[Tensor, list[Tensor]]:
    """The same in a plain loop: the weights it ends with, and those with which each task's training ended."""
    model = net()
    steps_with, parameters = optimizer(model.parameters()), list(model.parameters())
    old: list[Tensor] = []
    ends: list[Tensor] = []
    step = 0
    for index in range(3):
        x, y = task(index)
        for _ in range(epochs):
            for batch in range(0, 24, 8 * accumulate):
                for part in range(batch, batch + 8 * accumulate, 8):
                    rows = slice(part, part + 8)
                    (F.cross_entropy(model(x.double()[rows]), y[rows]) / accumulate).backward()
                steps_with.step()
                steps_with.zero_grad()
                step += 1
                if old and every is not None and step % every == 0:
                    average(parameters, old, share or 0.0)
        ends.append(weights(model))
        if old and every is None:
            average(parameters, old, index / (index + 1) if share is None else share)
        old = [p.detach().clone() for p in parameters]
    return weights(model), ends


@torch.no_grad()
def average(parameters: list[nn.Parameter], old: list[Tensor], share: float) -> None:
    for p, before in zip(parameters, old, strict=True):
        p.copy_((1 - share) * p + share * before)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("share", "every"), [(None, None), (0.3, None), (0.2, 2)])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_equals_a_plain_loop(optimizer: str, share: float | None, every: int | None, accumulate: int) -> None:
    model = Net(net(), OPTIMIZERS[optimizer])
    rule = WeightMerging("running" if share is None else share, every_n_steps=every)
    fit(model, rule, max_epochs=2, accumulate_grad_batches=accumulate)
    expected, _ = loop(OPTIMIZERS[optimizer], share, every, accumulate)
    torch.testing.assert_close(weights(model), expected, rtol=0, atol=1e-12)


def test_the_running_average_is_the_mean_of_the_weights_after_each_task() -> None:
    model = Net(net(), OPTIMIZERS["sgd"])
    fit(model, WeightMerging(), max_epochs=2)
    _, ends = loop(OPTIMIZERS["sgd"], None)
    torch.testing.assert_close(weights(model), torch.stack(ends).mean(0), rtol=0, atol=1e-12)


def test_the_start_counts_as_a_task_if_wanted() -> None:
    model = Net(net(), OPTIMIZERS["sgd"])
    start = weights(model)
    kept = End()
    fit(model, kept, WeightMerging(include_start=True), tasks=1)
    torch.testing.assert_close(weights(model), (start + kept.weights[0]) / 2, rtol=0, atol=1e-12)


class End(Callback):
    """Keeps the weights with which the training of each task has ended, and those with which tasks go on."""

    observes = True

    def __init__(self) -> None:
        self.weights: list[Tensor] = []
        self.merged: list[Tensor] = []

    def on_task_ending(self, trainer: Any, pl_module: Any, task: int) -> None:
        self.weights.append(weights(pl_module))

    def on_task_end(self, trainer: Any, pl_module: Any, task: int) -> None:
        self.merged.append(weights(pl_module))


# -- by importance ---------------------------------------------------------------------------------


class Quadratic(Net):
    """The loss of task k is a quadratic with diagonal curvature, which is its Fisher information.

    A single sample x with a Gaussian output: the loss is half the square of w·x - y, for each weight of its
    own.
    """

    def __init__(self, curvatures: Tensor, minima: Tensor) -> None:
        super().__init__(nn.Identity(), lambda p: torch.optim.SGD(p, lr=0.1))
        self.weight = nn.Parameter(torch.zeros(curvatures.shape[1], dtype=torch.float64))
        self.curvatures, self.minima, self.index = curvatures, minima, 0

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return 0.5 * (self(batch[0]) - batch[1]).square().sum(1).mean()


def test_by_importance_it_ends_at_the_joint_minimum_of_quadratics() -> None:
    """And that is the anchor of the rule whose importance it is."""
    torch.manual_seed(0)
    curvatures = torch.rand(3, 5, dtype=torch.float64) + 0.5
    minima = torch.randn(3, 5, dtype=torch.float64)
    model = Quadratic(curvatures, minima)
    ewc = EWC(0.0, likelihood="gaussian", normalize=None, state_dtype="float64")
    trainer = make_trainer(ewc, WeightMerging(weighted_by="ewc"), max_epochs=600)
    for curvature, minimum in zip(curvatures, minima, strict=True):
        scale = curvature.sqrt()
        trainer.fit(model, loader(scale[None], (scale * minimum)[None]))
        trainer.fit_loop.max_epochs += 600
    expected = (curvatures * minima).sum(0) / curvatures.sum(0)
    torch.testing.assert_close(model.weight.detach(), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(ewc.synapses.view["anchor"][0], expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(ewc.synapses.view["importance"][0], curvatures.sum(0), rtol=0, atol=1e-10)


def test_the_importance_that_weighs_is_measured_once_at_the_weights_that_training_ended_with() -> None:
    """The path of synaptic intelligence is gone once it is read, and the weights are others then."""
    model, si, kept = (
        Net(net(), OPTIMIZERS["sgd"]),
        SynapticIntelligence(0.0, normalize=None, name="si"),
        End(),
    )
    merging, paths = WeightMerging(weighted_by="si", state_dtype="float64"), Paths(si)
    fit(model, merging, kept, si, paths, tasks=2)
    starts = [weights(Net(net())), kept.merged[0]]
    ways = zip(paths.found, kept.weights, starts, strict=True)
    importance = [path_importance([path], [end], [start], si.damping)[0] for path, end, start in ways]
    total = importance[0] + importance[1]
    mean = (importance[0] * kept.weights[0] + importance[1] * kept.weights[1]) / total
    expected = torch.where(total > 0, mean, kept.weights[1])
    torch.testing.assert_close(weights(model), expected, rtol=0, atol=1e-12)
    found = torch.cat([t.flatten() for t in si.synapses.view["importance"]])
    torch.testing.assert_close(found, total, rtol=1e-10, atol=1e-14)


class Paths(Callback):
    """Keeps the path of each task."""

    def __init__(self, si: SynapticIntelligence) -> None:
        self.si = si
        self.found: list[Tensor] = []

    def on_task_ending(self, *args: Any) -> None:
        self.found.append(torch.cat([p.flatten() for p in self.si.synapses.view["path"]]))


def test_weights_without_importance_count_tasks() -> None:
    model, kept = Net(net(), OPTIMIZERS["sgd"]), End()
    merging = WeightMerging(weighted_by="ewc")
    fit(model, kept, EWC(0.0, parameters="weight"), merging, tasks=2)
    mean = torch.stack(kept.weights).mean(0)
    view = merging.synapses.view
    sizes = [p.numel() for p in view.parameters]
    for name, found, expected in zip(view.names, weights(model).split(sizes), mean.split(sizes), strict=True):
        assert torch.allclose(found, expected, rtol=0, atol=1e-12) == name.endswith("bias")


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (lambda: EWC(name="mine"), r"weighted_by='ewc' must be the name of one rule .* there are \['mine'\]"),
        (lambda: KFACLaplace(name="ewc"), "as KFACLaplace does not, and is that of 0; there are none"),
        (lambda: EWC(anchors="each"), "it would average a second time: use anchors='latest'"),
    ],
)
def test_an_importance_that_cannot_be_used(other: Callable[[], Callback], sentence: str) -> None:
    model = Net(plain_net())
    before = weights(model)
    with pytest.raises(MisconfigurationException, match=sentence):
        fit_tasks(model, WeightMerging(weighted_by="ewc"), other())
    assert torch.equal(weights(model), before)


def test_an_importance_that_is_there_is_pointed_to(caplog: pytest.LogCaptureFixture) -> None:
    sentence = "weighted_by='ewc' would count it by the importance"
    with caplog.at_level("INFO"):
        fit_tasks(Net(plain_net()), WeightMerging(weighted_by="ewc"), EWC())
        fit_tasks(Net(plain_net()), WeightMerging(), KFACLaplace())
        assert sentence not in caplog.text
        fit_tasks(Net(plain_net()), WeightMerging(), EWC())
    assert caplog.text.count(sentence) == 1


# -- weights that are new --------------------------------------------------------------------------


class Heads(Net):
    """A head for each task: a layer of its own, or rows of one whose other outputs are masked."""

    def __init__(self, masked: bool, optimizer: Optimizer) -> None:
        super().__init__(net(), optimizer)
        self.masked, self.index = masked, 0
        self.heads = nn.ModuleList(nn.Linear(CLASSES, CLASSES).double() for _ in range(1 if masked else 3))
        if masked:
            self.heads[0] = nn.Linear(CLASSES, 3 * CLASSES).double()

    def forward(self, x: Tensor) -> Tensor:
        if not self.masked:
            return self.heads[self.index](self.net(x))
        return self.heads[0](self.net(x))[:, CLASSES * self.index : CLASSES * (self.index + 1)]

    def on_task_start(self, trainer: Any, pl_module: Any, task: int) -> None:
        self.index = task

    def head(self, index: int) -> Tensor:
        if not self.masked:
            return self.heads[index].weight.detach().clone()
        return self.heads[0].weight[CLASSES * index : CLASSES * (index + 1)].detach().clone()


class Heard(Callback):
    def __init__(self) -> None:
        self.heads: list[Tensor] = []

    def on_task_ending(self, trainer: Any, pl_module: Any, task: int) -> None:
        self.heads.append(pl_module.head(task))


@pytest.mark.parametrize("masked", [False, True], ids=["modules", "masked rows"])
@pytest.mark.parametrize("share", ["running", 0.5])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.Adam(p, lr=0.02),
        lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
    ],
    ids=["sgd", "adam", "adamw"],
)
def test_a_head_that_no_task_has_used_before_is_not_averaged(
    masked: bool, share: Any, optimizer: Optimizer
) -> None:
    """A head that was learned is what it was right after its task, also under weight decay."""
    torch.manual_seed(1)
    model, heard = Heads(masked, optimizer), Heard()
    trainer = make_trainer(WeightMerging(share), heard, max_epochs=2)  # a new optimizer for each task
    for index in range(3):
        x, y = task(index)
        trainer.fit(model, loader(x.double(), y))
        trainer.fit_loop.max_epochs += 2
        assert torch.equal(model.head(index), heard.heads[index])
    assert (model.head(0) - heard.heads[0]).norm() <= 0.02 * heard.heads[0].norm()


def test_within_a_task_a_new_head_is_not_drawn_back() -> None:
    trained = []
    for share in (0.0, 0.5):
        torch.manual_seed(1)
        model = Heads(True, lambda p: torch.optim.SGD(p, lr=0.0))
        rule = WeightMerging(share, every_n_steps=1)
        fit(model, rule, tasks=1)
        rule.synapses.view["total"][-2][:CLASSES] = 1.0
        with torch.no_grad():
            model.heads[0].weight += 1.0
        rule.tasks = 1
        trainer = make_trainer(rule)
        x, y = task(1)
        trainer.fit(model, loader(x.double(), y))
        trained.append(model.heads[0].weight.detach().clone())
    assert torch.equal(trained[0][CLASSES:], trained[1][CLASSES:])
    assert (trained[0][:CLASSES] - trained[1][:CLASSES]).abs().min() > 0.5


# -- beside other rules ----------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
def test_other_rules_take_the_merged_weights_wherever_they_are_in_the_list(first: bool) -> None:
    found = []
    merging, ewc = WeightMerging(0.5), EWC(1.0, normalize=None)
    model, kept = Net(net(), OPTIMIZERS["sgd"]), End()
    fit(model, kept, *([merging, ewc] if first else [ewc, merging]), tasks=2)
    anchor = torch.cat([t.flatten() for t in ewc.synapses.view["anchor"]])
    assert torch.equal(anchor, weights(model))
    assert torch.equal(anchor, kept.merged[1]) and not torch.equal(anchor, kept.weights[1])
    # Its importance is the sum of the Fisher information at the weights that both tasks have gone on with.
    for index in range(2):
        plain = Net(net(), lambda p: torch.optim.SGD(p, lr=0.0))
        nn.utils.vector_to_parameters(kept.merged[index], plain.parameters())
        alone = EWC(1.0, normalize=None)
        x, y = task(index)
        make_trainer(alone).fit(plain, loader(x.double(), y))
        found.append(alone.synapses.view["importance"])
    for one, two, both in zip(*found, ewc.synapses.view["importance"], strict=True):
        torch.testing.assert_close(one + two, both, rtol=1e-10, atol=1e-14)


def test_path_rules_measure_the_way_that_training_took() -> None:
    """From where the task began to where its training ended, and not to the average."""
    model, si, kept = Net(net(), OPTIMIZERS["sgd"]), SynapticIntelligence(0.0, normalize=None), End()
    paths = Paths(si)
    fit(model, si, kept, WeightMerging(0.5), paths, tasks=2)
    starts = [weights(Net(net())), kept.merged[0]]
    expected = [
        path_importance([path], [end], [start], si.damping)[0]
        for path, end, start in zip(paths.found, kept.weights, starts, strict=True)
    ]
    found = torch.cat([t.flatten() for t in si.synapses.view["importance"]])
    torch.testing.assert_close(found, sum(expected), rtol=1e-10, atol=1e-14)
    assert torch.equal(torch.cat([t.flatten() for t in si.synapses.view["anchor"]]), weights(model))


def test_the_last_window_of_rwalk_is_of_the_way_that_training_took() -> None:
    """Its score is that without merging, which comes after the first two tasks' training."""
    found = []
    for callbacks in ([], [WeightMerging(0.5)]):
        model, rwalk = Net(net(), OPTIMIZERS["sgd"]), RWalk(0.0, damping=1e-9)
        fit(model, rwalk, *callbacks, tasks=2)
        start = torch.cat([t.flatten() for t in rwalk.synapses.view["start"]])
        torch.testing.assert_close(start, weights(model), rtol=0, atol=1e-12)
        found.append(torch.cat([t.flatten() for t in rwalk.synapses.view["score"]]))
    torch.testing.assert_close(*found, rtol=1e-6, atol=0)


def test_rules_that_draw_weights_keep_the_average() -> None:
    model, kept = Net(plain_net()), End()
    fit_tasks(model, MESU(100, 0.2), WeightMerging(0.5), kept)
    torch.testing.assert_close(kept.merged[1], (kept.merged[0] + kept.weights[1]) / 2)
    assert torch.equal(weights(model), kept.merged[1])


def test_weights_that_have_two_values_are_refused() -> None:
    with pytest.raises(MisconfigurationException, match="none of the values that Cascade gives its weights"):
        fit_tasks(Net(plain_net()), WeightMerging(), Cascade())
    fit_tasks(Net(plain_net()), WeightMerging(exclude="weight"), Cascade())


# -- statistics ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", ["running", 0.25])
def test_statistics_of_batch_norm_are_averaged_when_a_task_ends(share: Any) -> None:
    model = Net()
    seen: list[dict[str, Tensor]] = []

    class Seen(Callback):
        def on_task_ending(self, trainer: Any, pl_module: Any, task: int) -> None:
            seen.append({name: buffer.clone() for name, buffer in pl_module.named_buffers()})

    fit_tasks(model, WeightMerging(share), Seen(), tasks=2)
    old = 0.5 if share == "running" else share
    for name in ("net.1.running_mean", "net.1.running_var"):
        expected = old * seen[0][name] + (1 - old) * seen[1][name]
        torch.testing.assert_close(model.get_buffer(name), expected)
    assert model.net[1].num_batches_tracked == 6


@pytest.mark.parametrize(
    "rule", [lambda: WeightMerging(exclude=r"net\.1"), lambda: WeightMerging(0.5, every_n_steps=2)]
)
def test_statistics_that_are_left_to_the_data(rule: Callable[[], WeightMerging]) -> None:
    """The layer before them is frozen, so that they are the same as without merging."""
    found = []
    for callbacks in ([], [rule()]):
        torch.manual_seed(0)
        model = Net()
        model.net[0].requires_grad_(False)
        fit_tasks(model, *callbacks)
        found.append(model)
    for name in ("net.1.running_mean", "net.1.running_var"):
        assert torch.equal(*(model.get_buffer(name) for model in found))
    assert not torch.equal(*map(weights, found))


# -- boundaries that are found late, and ends that are revised -------------------------------------


class Late(DriftBoundaries):
    """Ends the task as of the second snapshot, three batches after it."""

    def see(self, trainer: Any, batch: int, value: float) -> None:
        self._onset = min(batch + 1, 2)
        if batch == 5:
            self.then = {name: t.clone() for name, t in self._snapshots._kept[0]["network"].items()}
            self.now = copy.deepcopy(trainer.lightning_module.state_dict())
            self.end(trainer, as_of=self._as_of_onset(trainer))
            self.after = copy.deepcopy(trainer.lightning_module.state_dict())


def test_a_boundary_that_is_found_late_merges_what_was_there_before_and_adds_what_came_since() -> None:
    model, ewc, merging = Net(), EWC(1.0), WeightMerging(0.5)
    boundaries = Late(snapshot_every_n_batches=2, check_every_n_batches=1)
    trainer = make_trainer(merging, ewc, boundaries, max_epochs=2)
    fit_tasks(model, FitBoundaries(), merging, ewc, tasks=1)
    old = {
        n: t.clone() for n, t in zip(merging.synapses.view.names, merging.synapses.view["old"], strict=True)
    }
    trainer.fit(model, loader(*task(1)))
    assert merging.tasks == 2
    for name, before in old.items():
        merged = (before + boundaries.then[name]) / 2
        shift = merged - boundaries.then[name]
        assert shift.abs().max() > 1e-4
        torch.testing.assert_close(boundaries.after[name], boundaries.now[name] + shift)
        index = ewc.synapses.view.names.index(name)
        torch.testing.assert_close(ewc.synapses.view["anchor"][index], merged)
    for name in ("net.1.running_mean", "net.1.running_var", "net.1.num_batches_tracked"):
        assert torch.equal(boundaries.after[name], boundaries.now[name])


def test_a_late_boundary_without_merging_leaves_the_present_weights_bit_for_bit() -> None:
    model, boundaries = Net(), Late(snapshot_every_n_batches=2, check_every_n_batches=1)
    make_trainer(EWC(1.0), boundaries, max_epochs=2).fit(model, loader(*task(0)))
    assert all(torch.equal(boundaries.after[name], t) for name, t in boundaries.now.items())


def test_averages_that_are_swapped_in_at_the_end_are_merged_in_place_of_the_weights() -> None:
    model, kept, si = Net(net(), OPTIMIZERS["sgd"]), End(), SynapticIntelligence(1.0)
    merging, ewc = WeightMerging(0.5), EWC(1.0)
    fit(model, merging, ewc, si, tasks=1)
    old = weights(model)
    swa = StochasticWeightAveraging(0.05, swa_epoch_start=1)
    trainer = make_trainer(swa, ewc, si, merging, kept, max_epochs=4)
    x, y = task(1)
    trainer.fit(model, loader(x.double(), y))
    assert len(kept.weights) == 2  # at the end of the task, and of the averages
    torch.testing.assert_close(weights(model), (old + kept.weights[1]) / 2, rtol=0, atol=1e-12)
    assert merging.tasks == ewc.tasks == si.tasks == 2
    for rule in (ewc, si):
        assert torch.equal(torch.cat([t.flatten() for t in rule.synapses.view["anchor"]]), weights(model))


# -- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"share": 1.0}, "from 0 to below 1, or 'running'; got 1.0"),
        ({"share": -0.1}, "from 0 to below 1"),
        ({"share": float("nan")}, "from 0 to below 1"),
        ({"share": "mean"}, "or 'running'; got 'mean'"),
        ({"every_n_steps": 10}, "with every_n_steps give a number"),
        ({"share": 0.1, "every_n_steps": 0}, "every_n_steps must be a whole number, at least 1"),
        ({"share": 0.1, "weighted_by": "ewc"}, "leave share='running'"),
        ({"weighted_by": "ewc", "include_start": True}, "include_start=False"),
    ],
)
def test_arguments_that_cannot_work(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        WeightMerging(**arguments)


def test_each_parameter_counts_its_own_steps() -> None:
    """Of two optimizers, with every second step: one takes eight of the twelve, the other four."""

    class Two(Net):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()[batch_idx % 2]
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(layer.parameters(), 0.1) for layer in (self.net[0], self.net[2])]

    drawn: list[list[str]] = []

    class Seen(WeightMerging):
        def rewrite(self, step: Any) -> None:
            before = [p.clone() for p in step.synapses.parameters]
            super().rewrite(step)
            if not all(map(torch.equal, before, step.synapses.parameters)):
                drawn.append(step.synapses.names)

    fit_tasks(Two(plain_net()), Seen(0.5, every_n_steps=2, include_start=True), tasks=1, max_epochs=4)
    first, second = ["net.0.weight", "net.0.bias"], ["net.2.weight", "net.2.bias"]
    assert drawn == [first, second, first] * 2
