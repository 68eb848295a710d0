"""Importance in units of its mean, in which one strength serves many networks and data."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_callbacks import (
    EWC,
    MAS,
    EpochBoundaries,
    KFACLaplace,
    RWalk,
    StreamingConsolidation,
    SynapticIntelligence,
)
from tests.small import Net, fit_tasks, loader, make_trainer, plain_net, task, weights

BOUNDARY: dict[str, Callable[..., Any]] = {
    "ewc": EWC,
    "ewc each": lambda *a, **o: EWC(*a, anchors="each", estimator="sampled", **o),
    "mas": MAS,
    "si": SynapticIntelligence,
    "rwalk": RWalk,
    "kfac": KFACLaplace,
}
each_rule = pytest.mark.parametrize("rule", BOUNDARY)


def mean_importance(rule: Any) -> float:
    found = rule.importance_of_each(rule.synapses.view)
    return (sum(t.sum() for t in found) / sum(t.numel() for t in found)).item()


def of_seed_0() -> Net:
    torch.manual_seed(0)
    return Net(plain_net())


def sgd(lr: float) -> Callable[..., Any]:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


@each_rule
def test_the_mean_over_all_selected_weights_is_one_for_each_task(rule: str) -> None:
    memory = BOUNDARY[rule]()
    fit_tasks(Net(plain_net()), memory, tasks=1)
    assert mean_importance(memory) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize(("decay", "mean"), [(1.0, 3.0), (0.5, 1.75), ("mean", 1.0)])
@pytest.mark.parametrize("anchors", ["latest", "each"])
def test_every_task_counts_the_same_whatever_the_size_of_its_own(
    decay: Any, mean: float, anchors: Any
) -> None:
    memory = EWC(decay=decay, anchors=anchors)
    fit_tasks(Net(plain_net()), memory, tasks=3)
    assert mean_importance(memory) == pytest.approx(mean, rel=1e-5)


@each_rule
def test_it_is_the_strength_in_the_papers_units_divided_by_the_mean(rule: str) -> None:
    raw = BOUNDARY[rule](0.0, normalize=None)
    fit_tasks(of_seed_0(), raw, tasks=1)
    found = []
    for strength, normalize in ((0.1, "mean"), (0.1 / mean_importance(raw), None)):
        memory, model = BOUNDARY[rule](strength, normalize=normalize), of_seed_0()
        trainer = fit_tasks(model, memory, tasks=1)
        model.optimizer = sgd(1e-3)  # small enough for the papers' units to be stable
        trainer.fit_loop.max_epochs += 2
        trainer.fit(model, loader(*task(1)))
        found.append(weights(model))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-7)


def test_the_scale_of_the_outputs_does_not_matter() -> None:
    class Scaled(nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            self.net, self.by = plain_net(), by

        def forward(self, x: Tensor) -> Tensor:
            return self.by * self.net(x)

    def importance(by: float, normalize: Any) -> list[Tensor]:
        torch.manual_seed(0)
        memory = MAS(normalize=normalize)
        make_trainer(memory).fit(Net(Scaled(by), sgd(0.0)), loader(*task(0)))
        return memory.synapses.view["importance"]

    for one, ten in zip(importance(1.0, None), importance(10.0, None), strict=True):
        torch.testing.assert_close(100 * one, ten)
    for one, ten in zip(importance(1.0, "mean"), importance(10.0, "mean"), strict=True):
        torch.testing.assert_close(one, ten)


def test_the_limit_of_importance_is_in_the_same_unit() -> None:
    memory = EWC(max_importance=2.0)
    fit_tasks(Net(plain_net()), memory, tasks=1)
    assert max(t.max() for t in memory.synapses.view["importance"]) == 2.0


@pytest.mark.parametrize("strength", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("make", [EWC, KFACLaplace, StreamingConsolidation], ids=["ewc", "kfac", "streaming"])
def test_plain_gradient_descent_is_stable_at_any_strength(make: Any, strength: float) -> None:
    model = Net(plain_net(), lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9))
    fit_tasks(model, make(strength), tasks=3, max_epochs=5)
    assert weights(model).abs().max() < 100


def test_in_the_papers_units_it_diverges_as_theirs_does() -> None:
    model = Net(plain_net(), sgd(0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit_tasks(model, EWC(1e6, normalize=None), tasks=2, max_epochs=5)
    assert not weights(model).abs().max() < 1e6


@pytest.mark.parametrize("normalize", ["mean", None])
@each_rule
def test_a_network_that_no_weight_matters_to_is_not_consolidated(rule: str, normalize: Any) -> None:
    class Frozen(nn.Module):
        """Outputs that the weights do not change, and that all classes share."""

        def __init__(self) -> None:
            super().__init__()
            self.net = plain_net()

        def forward(self, x: Tensor) -> Tensor:
            return 0.0 * self.net(x)

    memory = BOUNDARY[rule](normalize=normalize)
    trainer, model = make_trainer(memory), Net(Frozen())
    with pytest.warns(UserWarning, match="no weight has any importance for task 0"):
        trainer.fit(model, loader(*task(0)))
    assert memory.tasks == 0
    assert mean_importance(memory) == 0.0


def test_a_task_without_importance_leaves_that_of_the_others_as_it_was() -> None:
    memory, model = EWC(), Net(plain_net())
    trainer = fit_tasks(model, memory, tasks=1)
    before = copy.deepcopy(memory.state_dict())
    with torch.no_grad():
        model.net[2].bias.copy_(torch.tensor([1e4, 0.0, 0.0]))  # certain: a softmax of exactly 0 and 1
    model.optimizer = sgd(0.0)
    trainer.fit_loop.max_epochs += 1
    with pytest.warns(UserWarning, match="logits_reversal"):
        trainer.fit(model, loader(*task(1)))
    assert memory.tasks == 1
    for field, named in memory.state_dict()["synapses"].items():
        assert all(torch.equal(t, before["synapses"][field][name]) for name, t in named.items())


@pytest.mark.parametrize("rule", [*BOUNDARY, "streaming"])
@pytest.mark.parametrize("written", ["mean", None])
def test_a_checkpoint_in_another_unit_is_refused_by_name(rule: str, written: Any) -> None:
    build, read = (BOUNDARY | {"streaming": StreamingConsolidation})[rule], None if written else "mean"
    source = build(normalize=written)
    build(normalize=read).load_state_dict(source.state_dict())  # nothing has been measured yet
    fit_tasks(Net(plain_net()), source, tasks=1)
    other = build(normalize=read)
    with pytest.raises(ValueError, match=f"normalize={written!r}, and this rule that of normalize={read!r}"):
        other.load_state_dict(source.state_dict())
    assert other.tasks == 0
    build(normalize=written).load_state_dict(source.state_dict())


def test_a_checkpoint_that_does_not_say_its_unit_has_the_papers() -> None:
    source = EWC(1.0, normalize=None)
    fit_tasks(Net(plain_net()), source, tasks=1)
    old = {key: value for key, value in source.state_dict().items() if key != "normalized"}
    with pytest.raises(ValueError, match=r"Build the rule with normalize=None"):
        EWC().load_state_dict(old)
    EWC(1.0, normalize=None).load_state_dict(old)


def test_an_importance_file_in_another_unit_is_refused_by_name(tmp_path: Path) -> None:
    for written, read in (("mean", None), (None, "mean")):
        source = SynapticIntelligence(normalize=written)
        fit_tasks(Net(plain_net()), source, tasks=1)
        source.save_importance(tmp_path / "file")
        with pytest.raises(ValueError, match=rf"'normalize': '{written or 'none'}'.* this rule measures"):
            SynapticIntelligence(normalize=read, importance_file=tmp_path / "file")
        assert SynapticIntelligence(normalize=written, importance_file=tmp_path / "file").tasks == 1


@pytest.mark.parametrize("measure", ["fisher", "sensitivity", "path"])
def test_a_running_importance_keeps_a_mean_of_one(measure: Any) -> None:
    memory = StreamingConsolidation(measure=measure)
    fit_tasks(Net(plain_net()), memory, tasks=2, max_epochs=10)
    view = memory.synapses.view
    found = memory.effective_importance(view)
    mean = (sum(t.sum() for t in found) / sum(t.numel() for t in found)).item()
    assert mean == pytest.approx(1.0, abs=0.15)  # measured up to a tenth of all steps ago


def test_the_running_unit_is_measured_ever_more_rarely() -> None:
    class Counting(StreamingConsolidation):
        measured: list[int]

        def _mean_importance(self) -> float:
            self.measured.append(max(self.steps.values()))
            return super()._mean_importance()

    memory = Counting()
    memory.measured = []
    trainer = make_trainer(memory, EpochBoundaries(100), max_epochs=100)
    trainer.fit(Net(plain_net()), loader(*task(0)))
    assert memory.measured[:5] == [1, 2, 3, 4, 5]
    assert trainer.global_step == 300
    assert len(memory.measured) < 60
    assert all(later - one <= 1 + one // 10 for one, later in pairwise(memory.measured))


@pytest.mark.parametrize("rule", [*BOUNDARY, "streaming"])
def test_an_unknown_unit_is_refused(rule: str) -> None:
    build = (BOUNDARY | {"streaming": StreamingConsolidation})[rule]
    with pytest.raises(ValueError, match="normalize must be 'mean' or None"):
        build(normalize="max")


@pytest.mark.parametrize("measure", ["fisher", "sensitivity", "path"])
def test_the_limit_of_a_running_importance_is_in_its_unit(measure: Any) -> None:
    memory = StreamingConsolidation(2.0, measure=measure, max_importance=1.5)
    fit_tasks(Net(plain_net()), memory, tasks=2, max_epochs=3)
    view = memory.synapses.view
    pull = [torch.zeros_like(p) for p in view.parameters]
    with torch.no_grad():
        memory.pull(view, pull)
    importance, anchor = memory.effective_importance(view), view["anchor"]
    assert memory.unit_of_importance != 1.0
    assert max(t.max() for t in importance) == 1.5
    for found, omega, theta, center in zip(pull, importance, view.parameters, anchor, strict=True):
        torch.testing.assert_close(found, 2.0 * omega * (theta.detach() - center))
