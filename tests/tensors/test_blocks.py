"""Blocks change the order of the work, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_callbacks import (
    BGD,
    EWC,
    MESU,
    BennaFusi,
    MetaplasticGate,
    RWalk,
    StreamingConsolidation,
    SynapticCallback,
    SynapticIntelligence,
)
from cl_callbacks.synapses.offload import Offload
from cl_callbacks.synapses.state import Synapses
from cl_callbacks.synapses.step import Step
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.tensors import blocks
from cl_callbacks.tensors.blocks import in_blocks, rows_of, spans
from tests.every_rule import RULES, assert_same, every_rule, make, state
from tests.small import CLASSES, FEATURES, Net, fit_tasks, plain_net, weights

SHAPES = [(4, 3), (), (2,), (1, 50), (0, 3), (7,), (9, 2, 2), (30,)]


@pytest.mark.parametrize("elements", [1, 5, 6, 12, 1000])
def test_every_row_is_in_one_block_in_order(elements: int) -> None:
    parameters = [torch.zeros(shape) for shape in SHAPES]
    found = in_blocks(parameters, elements)
    met: dict[int, list[Tensor]] = {}
    for block in found:
        sizes = [rows_of(p, rows).numel() for p, rows in block.items()]
        # At most so many, or one row of more.
        assert sum(sizes) <= elements or len([size for size in sizes if size]) == 1
        for p, rows in block.items():
            met.setdefault(id(p), []).append(rows_of(torch.arange(p.numel()).view(p.shape), rows))
    assert list(met) == [id(p) for p in parameters]
    for p in parameters:
        rows = [part.flatten() for part in met[id(p)]]
        assert torch.equal(torch.cat(rows), torch.arange(p.numel()))
    if elements == 1000:
        assert len(found) == 1


def test_what_lies_side_by_side_is_one_span() -> None:
    flat, other = torch.arange(10.0), torch.arange(4.0)
    found = spans([flat[6:8], other, flat[:4].view(2, 2), flat[4:6]])
    assert sorted(len(span) for span in found) == [4, 8]
    for span in found:
        span.zero_()
    assert flat.tolist() == [0.0] * 8 + [8.0, 9.0]
    assert not other.any()


def test_a_span_is_in_the_order_of_the_memory() -> None:
    flat = torch.arange(48.0)
    last = flat[:24].view(2, 2, 3, 2).permute(0, 3, 1, 2)  # as with channels_last
    found = spans([flat[24:].view(4, 6), last])
    assert [span.tolist() for span in found] == [flat.tolist()]
    assert [span.tolist() for span in spans([last[1:]])] == [flat[12:24].tolist()]


def trained(*rules: SynapticCallback) -> tuple[Tensor, list[dict[str, Tensor]]]:
    torch.manual_seed(0)
    model = Net(plain_net())
    fit_tasks(model, *rules, tasks=3)
    return weights(model), [state(rule) for rule in rules]


def assert_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, build: Any) -> None:
    whole, expected = trained(*build())
    monkeypatch.setattr(blocks, "ELEMENTS_ON_CPU", 7)  # of matrices a row or two, and of biases a few
    cut, found = trained(*build())
    assert torch.equal(cut, whole)
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


@every_rule
def test_training_in_blocks_is_the_same_bit_for_bit(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_blocks_change_nothing(monkeypatch, lambda: [make(rule)])


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "metaplastic"])
def test_also_of_state_that_lives_elsewhere(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Offload, "_everywhere", True)
    assert_blocks_change_nothing(monkeypatch, lambda: [make(rule, state_device="cpu")])


def test_rules_that_share_their_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> list[SynapticCallback]:
        return [
            SynapticIntelligence(5.0),
            EWC(20.0, exclude="bias"),
            BennaFusi(3, 0.2, gated_by="ewc"),
            MetaplasticGate(5.0),
        ]

    assert_blocks_change_nothing(monkeypatch, build)


class Seeing(SynapticCallback):
    """Writes down how many synapses each call of a verb had."""

    def __init__(self) -> None:
        super().__init__()
        self.observed: list[int] = []
        self.ended: list[int] = []

    def observe(self, step: Step) -> None:
        self.observed.append(sum(p.numel() for p in step.synapses.parameters))

    def end_step(self, synapses: SynapseView) -> None:
        self.ended.append(sum(p.numel() for p in synapses.parameters))


@pytest.mark.parametrize("local", [False, True])
def test_a_rule_sees_parts_only_if_it_says_that_it_is_local(
    local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Seeing, "local", local)
    monkeypatch.setattr(blocks, "ELEMENTS_ON_CPU", 7)
    model, rule = Net(plain_net()), Seeing()
    fit_tasks(model, EWC(1.0), rule, tasks=1)
    size = weights(model).numel()
    steps = len(rule.ended)
    assert rule.ended == [size] * steps
    assert sum(rule.observed) == size * steps
    assert (len(rule.observed) > steps) == local


def test_a_weight_that_moves_to_other_memory_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan holds views of parameters, which do not know that `p.data` was set to something else."""
    monkeypatch.setattr(blocks, "ELEMENTS_ON_CPU", 7)

    class Moving(Net):
        def on_train_batch_start(self, *args: Any) -> None:
            for p in self.parameters():
                p.data = p.data.clone()

    found = []
    for kind in (Net, Moving):
        torch.manual_seed(0)
        model, rule = kind(plain_net()), SynapticIntelligence(5.0)
        fit_tasks(model, rule, tasks=2)
        found.append((weights(model), state(rule)))
    assert torch.equal(found[0][0], found[1][0])
    assert_same(found[0][1], found[1][1])


class Replacing(torch.optim.SGD):
    """Puts other memory in the place of a weight's while it steps."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)
        for p in self.param_groups[0]["params"]:
            p.data = p.data.clone()


@pytest.mark.parametrize("rule", ["benna-fusi", "metaplastic", "mesu", "streaming path"])
def test_an_optimizer_that_replaces_weights_within_its_step(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for elements in (2**17, 7):
        monkeypatch.setattr(blocks, "ELEMENTS_ON_CPU", elements)
        for optimizer in (torch.optim.SGD, Replacing):
            torch.manual_seed(0)
            model, memory = Net(plain_net(), lambda p: optimizer(p, lr=0.1)), make(rule)  # noqa: B023
            fit_tasks(model, memory, tasks=2)
            found.append((weights(model), state(memory)))
    for other in found[1:]:
        assert torch.equal(other[0], found[0][0])
        assert_same(other[1], found[0][1])


def test_windows_that_end_within_a_task_also_of_state_that_lives_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Offload, "_everywhere", True)
    assert_blocks_change_nothing(
        monkeypatch, lambda: [RWalk(1.0, window_steps=2, state_device="cpu", damping=1e-3)]
    )


def test_a_part_of_a_view() -> None:
    weight = torch.arange(40.0).view(10, 4)
    whole = Synapses({"importance": 1.0}).place({"weight": weight}, ["weight"])
    part = whole.restrict_to({weight: slice(5, 9)})
    for same in (part, part.restrict_to([weight]), *part.blocks()):
        assert torch.equal(same.parameters[0], weight[5:9])
        assert same["importance"][0].shape == (4, 4)
        assert same.part == {weight: slice(5, 9)}
    with pytest.raises(ValueError, match="has a part"):
        part.restrict_to({weight: slice(0, 2)})


def test_who_changes_a_verb_says_anew_whether_it_is_local() -> None:
    class Counting(EWC):
        def observe(self, step: Step) -> None: ...

    class Local(Counting):
        local = True

        def observe(self, step: Step) -> None: ...

    class Renamed(EWC):
        """As local as its parent."""

    class Normalised:
        def effective_importance(self, synapses: SynapseView) -> list[Tensor]: ...

    class Mixed(Normalised, EWC):  # type: ignore[misc]
        """A verb that is not its own, nor its parent's."""

    assert [kind.local for kind in (Counting, Local, Renamed, Mixed)] == [False, True, True, False]
    assert all(kind.local for kind in (SynapticIntelligence, RWalk, StreamingConsolidation, MESU, BGD))


def test_weights_that_lie_otherwise_than_their_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `to(memory_format=torch.channels_last)`: rows of a tensor know no layout."""
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        for elements in (2**17, 40):
            monkeypatch.setattr(blocks, "ELEMENTS_ON_CPU", elements)
            torch.manual_seed(0)
            net = nn.Sequential(
                nn.Unflatten(1, (1, 2, FEATURES // 2)),
                nn.Conv2d(1, 5, 2),
                nn.Flatten(),
                nn.Linear(5 * (FEATURES // 2 - 1), CLASSES),
            )
            model, rule = Net(net.to(memory_format=layout)), SynapticIntelligence(5.0)
            fit_tasks(model, rule, tasks=2)
            found.append(weights(model))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])
