"""Parameters of unusual kinds: every rule works with them, or refuses them by name before the first step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.utils import prune

from cl_callbacks import EWC, EpochBoundaries, SynapticCallback, fisher_information
from cl_callbacks.guards.parameters import parameter_fault
from tests.every_rule import (
    CONSOLIDATING,
    DISTILLING,
    MATRICES_ONLY,
    OWNING,
    RECYCLING,
    REHEARSING,
    RULES,
    every_rule,
    make,
    selected,
    state,
)
from tests.odd.modules import (
    HIDDEN,
    ODD,
    Between,
    Fourier,
    Lazy,
    Quantised,
    SparseTable,
    built,
    plain_sgd,
)
from tests.small import CLASSES, FEATURES, Net, loader, make_trainer, plain_net, task

odd_kind = pytest.mark.parametrize("kind", ODD)


# Several draws repeat passes, and those of manual optimization are the module's own.
automatic_or_not = pytest.mark.parametrize(
    "rule", [rule for rule in RULES if rule not in {"mesu draws", *REHEARSING, *DISTILLING, *RECYCLING}]
)


def assert_finite(rule: SynapticCallback) -> None:
    view = rule.synapses.view
    assert all(t.isfinite().all() for tensors in (view.parameters, *view.fields.values()) for t in tensors)


@odd_kind
@automatic_or_not
def test_is_nothing_to_a_rule_that_leaves_it_out(rule: str, kind: str) -> None:
    model, memory = built(kind), make(rule, exclude="odd")
    make_trainer(memory, EpochBoundaries(1), max_epochs=2).fit(model, loader(*task(0)))
    names = [f"net.{layer}.{name}" for layer in ("first", "last") for name in ("weight", "bias")]
    assert memory.synapses.view.names == selected(rule, names)
    assert_finite(memory)
    assert memory.tasks == (2 if rule in CONSOLIDATING else 0)


@odd_kind
@pytest.mark.parametrize("rule", [r for r in (*REHEARSING, *DISTILLING) if r != "er joined"])  # takes no part
def test_is_nothing_to_a_rule_with_a_loss_of_its_own(rule: str, kind: str) -> None:
    torch.manual_seed(0)
    model, memory = Net(ODD[kind][0](), plain_sgd), make(rule, exclude="odd")
    make_trainer(memory, EpochBoundaries(1), max_epochs=2).fit(model, loader(*task(0)))
    assert_finite(memory)
    assert memory.tasks == 2
    assert memory.penalty(memory.synapses.view) is None  # the training is over


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "er joined"])  # which takes no `exclude`
def test_a_parameter_without_values_is_refused_by_name(rule: str) -> None:
    """Without a Trainer, since Lightning can neither move such a module to a device nor away from it."""
    model = Net(Between(nn.Parameter(torch.empty(2, 2, device="meta"))))
    with pytest.raises(MisconfigurationException, match=r"net\.odd is on the meta device, .*configure_model"):
        make(rule)._place(model)
    memory = make(rule, exclude="odd")
    memory._place(model)
    assert_finite(memory)


def test_a_sparse_gradient_is_refused_between_several_draws() -> None:
    trainer = make_trainer(make("mesu draws"))
    with pytest.raises(ValueError, match=r"of shape \(5, 8\) .* gets a sparse gradient: .*sparse=False"):
        trainer.fit(Net(SparseTable(), plain_sgd), loader(*task(0)))
    assert trainer.global_step == 0


@every_rule
def test_a_lazy_module_that_has_run_is_like_any_other(rule: str) -> None:
    torch.manual_seed(0)
    model, memory = Net(Lazy()), make(rule)
    model(task(0)[0])
    make_trainer(memory, EpochBoundaries(1), max_epochs=2).fit(model, loader(*task(0)))
    assert "net.odd.weight" in memory.synapses.view.names
    assert_finite(memory)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in RECYCLING])  # for lack of units
def test_frozen_whole_numbers_stay_what_they_are(rule: str) -> None:
    torch.manual_seed(0)
    model, memory = Net(Quantised(), plain_sgd), make(rule)
    odd = model.net.odd.clone()
    make_trainer(memory, EpochBoundaries(1), max_epochs=2).fit(model, loader(*task(0)))
    assert torch.equal(model.net.odd, odd)
    assert "net.odd" not in memory.synapses.view.names
    assert_finite(memory)


class Observed(Between):
    """Ranges of the activations, which the first forward resizes, as those of a training for quantisation."""

    def __init__(self) -> None:
        super().__init__(None)
        self.register_buffer("largest", torch.empty(0))

    def between(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            self.largest.resize_(HIDDEN).copy_(h.amax(0))
        return h


class WithLazyNorm(Lazy):
    def __init__(self) -> None:
        super().__init__()
        self.odd = nn.LazyBatchNorm1d()


@pytest.mark.parametrize("rule", ["ewc", "kfac", "mas", "si"])
@pytest.mark.parametrize("odd", [Observed, WithLazyNorm])
def test_buffers_without_a_shape_before_the_first_forward(rule: str, odd: Any) -> None:
    model, memory = Net(odd(), plain_sgd), make(rule, parameters="first|last")
    make_trainer(memory, EpochBoundaries(1), max_epochs=2).fit(model, loader(*task(0)))
    assert memory.tasks == 2
    assert_finite(memory)


def test_types_that_cannot_be_learned() -> None:
    assert "int8" in str(parameter_fault(torch.zeros(2, dtype=torch.int8)))
    assert "float8" in str(parameter_fault(torch.zeros(2).to(torch.float8_e4m3fn)))
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert parameter_fault(nn.Parameter(torch.zeros(2, dtype=dtype))) is None


def test_the_fisher_information_names_a_complex_parameter() -> None:
    with pytest.raises(ValueError, match="odd is complex"):
        fisher_information(Fourier(), [task(0)])


# -- more parameters than the class of a layer has ---------------------------------------------------------


@every_rule
def test_a_layer_that_is_pruned_between_tasks_keeps_its_state(rule: str) -> None:
    found = []
    for pruning in (False, True):
        torch.manual_seed(0)
        model, memory = Net(plain_net(), plain_sgd), make(rule)
        trainer = make_trainer(memory)
        for index in range(3):
            if pruning and index == 1:
                prune.identity(model.net[0], "weight")
            if pruning and index == 2:
                prune.remove(model.net[0], "weight")
            trainer.fit_loop.max_epochs = index + 1
            trainer.fit(model, loader(*task(index)))
        found.append((memory.synapses.view.names, state(memory)))
    assert sorted(found[0][0]) == sorted(found[1][0])  # pruning moves the weight behind the bias
    # In KFACLaplace a pruned layer has a diagonal and no more factors; random numbers depend on the order.
    # While it is pruned, its weights are computed, and its units are left out.
    if "kfac" not in rule and rule not in {*OWNING, *RECYCLING}:
        for key, expected in found[0][1].items():
            torch.testing.assert_close(found[1][1][key], expected, rtol=1e-4, atol=1e-6, msg=key)


# -- two names that would be one ---------------------------------------------------------------------------


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc(x).tanh()).tanh()


class TwoHeads(Net):
    """The attribute `module` is the user's own, and not what wraps a network."""

    def __init__(self) -> None:
        super().__init__(nn.Identity(), plain_sgd)
        self.module, self.head = Body(), nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.module(x))


@every_rule
def test_an_attribute_of_the_name_of_a_wrapper(rule: str) -> None:
    model, memory = TwoHeads(), make(rule)
    make_trainer(memory, EpochBoundaries(1), max_epochs=2).fit(model, loader(*task(0)))
    expected = dict(model.named_parameters())
    if rule in MATRICES_ONLY:
        expected = {name: p for name, p in expected.items() if p.ndim > 1}
    assert memory.synapses.view.names == list(expected)
    for field in memory.synapses.state_dict().values():
        assert {name: t.shape for name, t in field.items()} == {n: p.shape for n, p in expected.items()}


def test_two_parameters_of_one_plain_name_are_refused() -> None:
    model = Net(plain_net())
    model.net.register_parameter("weight", nn.Parameter(torch.ones(2)))
    model.net._orig_mod = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"net\.weight and net\._orig_mod\.weight .* another name"):
        make_trainer(EWC()).fit(model, loader(*task(0)))
