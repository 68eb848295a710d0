"""What every public rule promises."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

import cl_callbacks
from cl_callbacks import (
    DriftBoundaries,
    EpochBoundaries,
    FitBoundaries,
    SynapticCallback,
    SynapticIntelligence,
)
from tests.every_rule import (
    COUNTING_TASKS,
    DISTILLING,
    MATRICES_ONLY,
    OWNING,
    PULLING,
    RECYCLING,
    RECYCLING_SILENT,
    REHEARSING,
    REWRITING,
    RULES,
    any_rule,
    assert_same,
    make,
    pulling_rule,
    selected,
    state,
)
from tests.small import CLASSES, Net, fit_tasks, loader, make_trainer, plain_net, task, weights


def test_every_public_rule_is_here() -> None:
    public = {getattr(cl_callbacks, name) for name in cl_callbacks.__all__}
    rules = {c for c in public if isinstance(c, type) and issubclass(c, SynapticCallback)}
    # The guard needs validation: tests/retention.
    assert {type(make(rule)) for rule in [*RULES, *RECYCLING_SILENT]} == rules - {
        SynapticCallback,
        cl_callbacks.RetentionGuard,
    }


@pytest.mark.parametrize("rule", [*PULLING, *REWRITING, *REHEARSING, *DISTILLING])
@pytest.mark.parametrize("proximal", [False, True])
def test_strength_zero_leaves_training_bit_identical(rule: str, proximal: bool) -> None:
    if rule == "kfac list" and proximal:
        pytest.skip("refused: a sum of Kronecker products has no cheap proximal step")
    options = {"proximal": True} if proximal and rule in PULLING else {}
    plain, with_rule = Net(), Net()
    with_rule.load_state_dict(plain.state_dict())
    fit_tasks(plain, FitBoundaries(), tasks=3, max_epochs=2)
    fit_tasks(with_rule, make(rule, 0.0, **options), tasks=3, max_epochs=2)
    assert torch.equal(weights(plain), weights(with_rule))
    for a, b in zip(plain.buffers(), with_rule.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rule", [*REWRITING, *OWNING, "er", "er joined", "der"])
def test_a_rule_of_usual_strength_shows(rule: str) -> None:
    found = []
    for callbacks in ([], [make(rule)]):
        torch.manual_seed(0)
        model = Net(plain_net())
        fit_tasks(model, *callbacks, tasks=2)
        found.append(weights(model))
    assert not torch.equal(*found)


@pulling_rule
def test_the_pull_is_the_gradient_of_the_penalty(rule: str) -> None:
    model = Net(plain_net()).double()
    memory = make(rule)
    seconds = [(x.double(), y) for x, y in map(task, range(2))]
    for data in seconds:
        make_trainer(memory, max_epochs=3).fit(model, loader(*data))
    memory._place(model)
    view = memory.synapses.view
    with torch.no_grad():
        for p in view.parameters:
            p.add_(0.05 * torch.randn_like(p))
    pull = [torch.zeros_like(p) for p in view.parameters]
    memory.pull(view, pull)
    assert all(g.abs().sum() > 0 for g in pull)
    if rule == "streaming path":
        return  # its importance depends on the weights, and is held fixed in the pull
    direction, epsilon = [torch.randn_like(p) for p in view.parameters], 1e-5
    values = []
    for sign in (1, -2):
        with torch.no_grad():
            torch._foreach_add_(view.parameters, direction, alpha=sign * epsilon)
        values.append(memory.penalty(view))
    slope = (values[0] - values[1]) / (2 * epsilon)
    expected = sum((g * d).sum() for g, d in zip(pull, direction, strict=True))
    torch.testing.assert_close(slope, expected, rtol=1e-5, atol=0)


@pytest.mark.slow
@pulling_rule
@pytest.mark.parametrize("proximal", [False, True])
def test_a_great_strength_holds_what_was_learned(rule: str, proximal: bool) -> None:
    """And the proximal form stays finite where the gradient's would diverge."""
    if rule == "kfac list" and proximal:
        pytest.skip("refused")
    moved = {}
    for strength in (0.0, PULLING[rule][2]):
        torch.manual_seed(0)
        # Sign-like steps: an explicit pull of any strength moves a weight by no more than the rate.
        optimizer = torch.optim.SGD if proximal else torch.optim.Adam
        model = Net(plain_net(), lambda p, make=optimizer: make(p, lr=0.01))
        memory = make(rule, strength, proximal=proximal)
        fit_tasks(model, memory, tasks=1, max_epochs=20)
        before = weights(model)
        make_trainer(memory, max_epochs=20).fit(model, loader(*task(1)))
        moved[strength > 0] = (weights(model) - before).norm().item()
    assert moved[True] < (0.1 if proximal else 0.7) * moved[False]


@any_rule
@pytest.mark.parametrize("stop_after", [2, 3])
def test_resume_is_bit_identical(rule: str, stop_after: int, tmp_path: Path) -> None:
    """Stopped at a boundary, and in the middle of a task."""

    def run(epochs: int, resumed: Path | None = None) -> tuple[Net, Any]:
        torch.manual_seed(0)
        model, memory = Net(plain_net()), make(rule)
        saving = ModelCheckpoint(tmp_path / str(epochs), save_last=True, save_top_k=0)
        trainer = make_trainer(
            memory, EpochBoundaries(2), saving, max_epochs=epochs, enable_checkpointing=True
        )
        trainer.fit(model, loader(*task(0)), ckpt_path=resumed, weights_only=True)
        return model, memory

    whole, memory = run(6)
    run(stop_after)
    again, resumed = run(6, tmp_path / str(stop_after) / "last.ckpt")
    assert torch.equal(weights(whole), weights(again))
    assert_same(state(memory), state(resumed))
    view = memory.synapses.view
    assert memory.penalty(view) == resumed.penalty(resumed.synapses.view)


@any_rule
def test_a_head_that_grows(rule: str) -> None:
    class Growing(Net):
        def on_task_start(self, trainer: Any, pl_module: Any, task: int) -> None:
            if task == 1:
                old, self.net[2] = self.net[2], nn.Linear(8, CLASSES + 2)
                with torch.no_grad():
                    self.net[2].weight[:CLASSES] = old.weight
                trainer.optimizers[0].add_param_group({"params": list(self.net[2].parameters())})

    model, memory = Growing(plain_net()), make(rule)
    make_trainer(memory, EpochBoundaries(2), max_epochs=6).fit(model, loader(*task(0)))
    view = memory.synapses.view
    head = view.names.index("net.2.weight")
    assert view.parameters[head] is model.net[2].weight
    assert all(field[head].shape == (CLASSES + 2, 8) for field in view.fields.values())
    assert weights(model).isfinite().all()
    assert rule not in PULLING or memory.penalty(view).isfinite()


@any_rule
def test_frozen_parameters_stay_out(rule: str) -> None:
    model, memory = Net(plain_net()), make(rule)
    model.net[0].requires_grad_(False)
    before = copy.deepcopy(model.net[0].state_dict())
    fit_tasks(model, memory, tasks=2)
    assert memory.synapses.view.names == selected(rule, ["net.2.weight", "net.2.bias"])
    assert all(torch.equal(before[name], value) for name, value in model.net[0].state_dict().items())
    model.net[0].requires_grad_(True)  # joins with the next task
    fit_tasks(model, memory, tasks=2)
    assert memory.synapses.view.names[0] == "net.0.weight"
    assert weights(model).isfinite().all()


@any_rule
def test_the_order_in_the_list_does_not_matter(rule: str) -> None:
    found = []
    for order in (1, -1):
        torch.manual_seed(0)
        model = Net(plain_net())
        callbacks: list[Callback] = [make(rule), SynapticIntelligence(name="other")]
        fit_tasks(model, *callbacks[::order], tasks=3)
        found.append(weights(model))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


# One has no selection, and units have several weights.
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in {"er joined", *RECYCLING}])
def test_a_selection_is_all_it_touches(rule: str) -> None:
    moved = []
    for strong in (False, True):
        torch.manual_seed(0)
        model = Net(plain_net())
        strength = None
        if rule in PULLING or rule in REWRITING:
            strength = PULLING[rule][2] if rule in PULLING else REWRITING[rule][1]
        memory = make(rule, strength, parameters=r"net\.2\.weight") if strong else FitBoundaries()
        fit_tasks(model, memory, tasks=2, max_epochs=5)
        moved.append(model.net[2].weight.detach().clone())
    held = {name for field in memory.synapses.state_dict().values() for name in field}
    assert held == ({"net.2.weight"} if memory.fields else set())
    assert not torch.equal(*moved)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in {*REHEARSING, *DISTILLING}])
@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_state_is_wide_beside_half_precision(rule: str, precision: str) -> None:
    model, memory = Net(plain_net()), make(rule)
    fit_tasks(model, memory, tasks=2, precision=precision)
    tensors = [t for t in state(memory).values() if t.ndim]
    assert bool(tensors) == bool(memory.fields or rule in RECYCLING)
    assert all(torch.finfo(t.dtype).bits >= 32 and t.isfinite().all() for t in tensors)
    assert weights(model).isfinite().all()


@pytest.mark.parametrize("rule", [*PULLING, *REWRITING, *REHEARSING, *DISTILLING])
@pytest.mark.parametrize("strength", [-1.0, float("nan")])
def test_strengths_that_cannot_work(rule: str, strength: float) -> None:
    with pytest.raises(ValueError, match=r"(strength|steepness|coupling|share|shrink|weight|alpha) must be"):
        make(rule, strength)


@any_rule
def test_arguments_that_cannot_work(rule: str) -> None:
    with pytest.raises(ValueError, match="not a regular expression"):
        make(rule, parameters="(")
    if rule not in MATRICES_ONLY:  # without state, or with whole numbers
        with pytest.raises(ValueError, match="floating-point"):
            make(rule, state_dtype="int8")


class Told(DriftBoundaries):
    """Finds two changes: at once, or late and then as of their onset."""

    def __init__(self, late: int) -> None:
        super().__init__(check_every_n_batches=1, snapshot_every_n_batches=4, recent_samples=16)
        self.late = late

    def see(self, trainer: Any, batch: int, value: float) -> None:
        onset = 8 if batch < 16 else 20
        self._onset = min(batch + 1, onset)
        if self.late and batch == onset + self.late:
            self.end(trainer, as_of=self._as_of_onset(trainer))
        elif not self.late and batch == onset - 1:
            self._prune()
            self.end(trainer)


@pytest.mark.parametrize("late", [3, 7])
@any_rule
def test_a_change_that_is_found_late_is_consolidated_as_of_its_onset(rule: str, late: int) -> None:
    """State and weights are those of a boundary that was declared when it was there."""
    found = []
    for delay in (late, 0):
        torch.manual_seed(0)
        options = {} if rule in MATRICES_ONLY else {"state_dtype": "float64"}  # those have no state
        memory = make(rule, 0.0, **options)
        model = Net().double()
        x, y = task(0, samples=8 * 32)
        make_trainer(memory, Told(delay)).fit(model, loader(x.double(), y))
        found.append((state(memory), weights(model), memory.tasks))
    assert found[0][2] == found[1][2] == (2 if rule in COUNTING_TASKS else 0)
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][0].keys() == found[1][0].keys()
    for key, value in found[0][0].items():
        torch.testing.assert_close(value, found[1][0][key], rtol=1e-9, atol=1e-15)
