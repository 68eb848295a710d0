"""Rules that replace units: which, by what, and what stays as it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from cl_callbacks import (
    EWC,
    MESU,
    Cascade,
    ContinualBackprop,
    EpochBoundaries,
    KFACLaplace,
    ReDo,
    SelfNormalizedResets,
    SynapticIntelligence,
)
from cl_callbacks.rules.renewal.activity import Activity
from cl_callbacks.rules.renewal.recycling import Recycling
from cl_callbacks.rules.renewal.unit_rule import UnitRule
from cl_callbacks.rules.renewal.units import Units, find_units
from tests.every_rule import make, same
from tests.references.continual_backprop import PlainContinualBackprop
from tests.rules.renewal.test_units import Gated, Residual, Squeezed, Stream, named
from tests.small import CLASSES, FEATURES, Net, fit_tasks, loader, make_trainer, task, weights


def rectified() -> nn.Sequential:
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES))


def renew(units: Units, index: int, module: nn.Module, optimizers: Any = (), rules: Any = ()) -> None:
    trained = dict(module.named_parameters())
    Recycling(module, optimizers, rules, seed=0).renew(units, torch.tensor([index]), 1, {}, trained)


class Looking(Callback):
    """Calls a function before and after the rule replaces units, which is at the end of a batch."""

    def __init__(self, look: Callable[[LightningModule], Any]) -> None:
        self.look = look
        self.found: list[Any] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.found.append(self.look(pl_module))


def around(
    rule: UnitRule,
    model: Net,
    look: Callable[[LightningModule], Any],
    batches: list[Any],
    *others: Callback,
) -> Any:
    """What is seen before and after the end of each batch."""
    before, after = Looking(look), Looking(look)
    make_trainer(*others, before, rule, after, EpochBoundaries(1)).fit(
        model, DataLoader(batches, batch_size=None)
    )
    return list(zip(before.found, after.found, strict=True))


def test_it_replaces_the_units_that_a_plain_loop_replaces() -> None:
    seed_everything(0, verbose=False)
    model = Net(rectified(), lambda p: torch.optim.SGD(p, lr=0.1))
    twin = Net(rectified())
    twin.load_state_dict(model.state_dict())
    x, y = task(0, samples=8 * 60)
    rule = ContinualBackprop(0.05, maturity=2)
    seen = around(rule, model, lambda m: m.net[0].weight.detach().clone(), list(loader(x, y)))

    plain = PlainContinualBackprop(0.05, maturity=2, decay=0.99, units=8)
    layer, reader = twin.net[0], twin.net[2]
    optimizer, replaced = torch.optim.SGD(twin.parameters(), lr=0.1), 0
    for (inputs, labels), (before, after) in zip(loader(x, y), seen, strict=True):
        hidden = layer(inputs).relu()
        optimizer.zero_grad()
        F.cross_entropy(reader(hidden), labels).backward()
        optimizer.step()
        units = plain.after_step(hidden.detach(), reader)
        replaced += len(units)
        assert sorted(units) == (before != after).any(1).nonzero().flatten().tolist()
        for unit in units:
            plain.replace(unit, layer, reader, after[unit])
    assert replaced == rule.renewed > 10
    torch.testing.assert_close(weights(model), weights(twin), rtol=1e-4, atol=1e-5)


def squeezed() -> Squeezed:
    net = Squeezed()
    net.norm = nn.Identity()  # or a new channel would change what the others are normalised by
    return net


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (rectified, (FEATURES,)),
        (lambda: Stream(nn.Identity), (FEATURES,)),
        (Gated, (FEATURES,)),
        (squeezed, (1, 5, 5)),
    ],
)
def test_outputs_stay_where_units_have_their_mean(
    net: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    """All batches are the same sample, and nothing learns, so that each unit always has one value.

    In a residual stream that is another one for each block; of an image it is one where all pixels are alike.
    """
    torch.manual_seed(0)
    model = Net(net(), lambda p: torch.optim.SGD(p, lr=0.0))
    x = torch.randn(1, shape[0], *[1] * len(shape[1:])).expand(1, *shape)
    batches = [(x.expand(4, *shape), torch.zeros(4, dtype=torch.long))] * 12
    rule = ContinualBackprop(0.5, maturity=3)
    seen = around(rule, model, lambda m: m(x).detach().clone(), batches)
    for before, after in seen:
        torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-6)
    assert rule.renewed >= 8


def test_replacing_silent_units_changes_no_output_and_nothing_else() -> None:
    model = Net(rectified(), lambda p: torch.optim.Adam(p, lr=1e-3))
    with torch.no_grad():
        model.net[0].bias[[2, 5]] = -100.0
    x, y = task(0)
    rule = ReDo(threshold=0.0, every_n_steps=3)

    def look(module: LightningModule) -> Any:
        moments = module.optimizers().optimizer.state[module.net[2].weight]
        return (
            module(x).detach().clone(),
            {name: p.detach().clone() for name, p in module.named_parameters()},
            {name: moments[name].clone() for name in ("exp_avg", "exp_avg_sq")},
        )

    (_, _), (_, _), (before, after) = around(rule, model, look, list(loader(x, y)))
    assert rule.renewed == 2
    assert torch.equal(before[0], after[0])
    gone, stayed = [2, 5], [0, 1, 3, 4, 6, 7]
    for name, dim in (("net.0.weight", 0), ("net.0.bias", 0), ("net.2.weight", 1)):
        index = torch.tensor(stayed)
        assert torch.equal(before[1][name].index_select(dim, index), after[1][name].index_select(dim, index))
        assert not torch.equal(before[1][name], after[1][name]) or name == "net.2.weight"
    assert torch.equal(before[1]["net.2.bias"], after[1]["net.2.bias"])
    assert not after[1]["net.2.weight"][:, gone].any()
    for name, moment in after[2].items():
        assert not moment[:, gone].any()
        assert torch.equal(moment[:, stayed], before[2][name][:, stayed])
    bound = FEATURES**-0.5
    new = after[1]["net.0.weight"][gone]
    assert (
        new.abs().max() <= bound and new.abs().max() > 0.5 * bound and not after[1]["net.0.bias"][gone].any()
    )


def test_moments_of_a_unit_are_zero_and_all_others_stay() -> None:
    model, rule = Net(rectified()), ContinualBackprop(0.3, maturity=1)

    def look(module: LightningModule) -> Any:
        state = module.optimizers().optimizer.state
        layers = {"net.0.weight": 0, "net.0.bias": 0, "net.2.weight": 1}
        return {
            (name, moment): state[module.get_parameter(name)][moment].transpose(0, dim).clone()
            for name, dim in layers.items()
            for moment in ("exp_avg", "exp_avg_sq")
        }

    replaced = 0
    for before, after in around(rule, model, look, list(loader(*task(0)))):
        for key, moment in after.items():
            gone = [i for i in range(8) if not torch.equal(moment[i], before[key][i])]
            assert not moment[gone].any()
            replaced += len(gone) * (key == ("net.0.weight", "exp_avg"))
    assert replaced == rule.renewed > 2


def test_only_what_happened_since_the_last_time_counts() -> None:
    """Unit 0 is active before the first replacement, and silent after it."""
    model = Net(rectified(), lambda p: torch.optim.SGD(p, lr=0.0))
    with torch.no_grad():
        model.net[0].weight[0] = torch.eye(FEATURES)[0]
        model.net[0].bias[:] = torch.tensor([0.0, *[9.0] * 7])
    x = torch.zeros(8 * 4, FEATURES)
    x[: 8 * 2, 0] = 1.0
    rule = ReDo(threshold=0.0, every_n_steps=2)
    y = torch.zeros(len(x), dtype=torch.long)
    seen = around(rule, model, lambda m: m.net[0].weight.detach().clone(), list(loader(x, y)))
    assert [bool((before != after).any()) for before, after in seen] == [False, False, False, True]
    assert rule.renewed == 1


@pytest.mark.parametrize("spared_by", ["ewc", "mesu"])
def test_units_that_another_rule_holds_are_spared(spared_by: str) -> None:
    """Without it those that the batches do not use would be the first to go."""
    held, taken = [1, 3], {}
    for name in (None, spared_by):
        torch.manual_seed(0)
        model = Net(rectified(), lambda p: torch.optim.SGD(p, lr=0.0))
        keeper = EWC() if spared_by == "ewc" else MESU(100, 0.2)
        fit_tasks(model, keeper, tasks=1)
        with torch.no_grad():
            if isinstance(keeper, MESU):
                keeper.synapses.state_dict()["std"]["net.2.weight"][:, held] = 1e-3
            else:
                keeper.synapses.state_dict()["importance"]["net.2.weight"][:, held] = 100.0
            model.net[0].bias[held] = -100.0
        rule = ContinualBackprop(0.2, maturity=0, spared_by=name)
        seen = around(rule, model, lambda m: m.net[0].weight.detach().clone(), list(loader(*task(1))), keeper)
        changed = [(before != after).any(1).nonzero().flatten().tolist() for before, after in seen]
        taken[name] = {unit for units in changed for unit in units}
        assert rule.renewed >= 3
    assert taken[None] >= set(held)
    assert not taken[spared_by] & set(held)


def test_a_rule_that_spares_units_must_know_a_plasticity() -> None:
    with pytest.raises(MisconfigurationException, match=r"spared_by='si' must be the name of one rule"):
        fit_tasks(Net(rectified()), EWC(), ContinualBackprop(spared_by="si"))


class Images(nn.Module):
    """A channel that is normalised and flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(3 * 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.conv(x)).relu().flatten(1))


def test_of_a_channel_all_columns_and_the_norm_are_new() -> None:
    module, x = Images(), torch.randn(5, 1, 4, 4)
    for _ in range(3):
        module(x)
    nn.init.uniform_(module.norm.weight, 2, 3)
    [units], _ = find_units(module, lambda: module(x))
    before = {name: t.clone() for name, t in module.state_dict().items()}
    renew(units, 1, module)
    after = module.state_dict()
    for name in ("conv.weight", "conv.bias", "norm.weight", "norm.running_mean", "norm.running_var"):
        same = (before[name] == after[name]).reshape(3, -1).all(1)
        assert same.tolist() == [True, False, True], name
    fresh = [float(after[f"norm.{name}"][1]) for name in ("weight", "bias", "running_mean", "running_var")]
    assert fresh == [1.0, 0.0, 0.0, 1.0]
    stayed = [0, 1, 2, 3, 8, 9, 10, 11]
    assert not after["out.weight"][:, 4:8].any()
    assert torch.equal(after["out.weight"][:, stayed], before["out.weight"][:, stayed])


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_a_new_unit_has_new_parameters_in_a_norm_over_all_units(kind: type[nn.Module]) -> None:
    module, x = nn.Sequential(nn.Linear(4, 3), kind(3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(5, 4)
    for parameter in module[1].parameters():
        nn.init.uniform_(parameter, 2, 3)
    optimizer = torch.optim.Adam(module.parameters())
    module(x).sum().backward()
    optimizer.step()
    [units], _ = find_units(module, lambda: module(x))
    renew(units, 1, module, [optimizer])
    fresh = {"weight": 1.0, "bias": 0.0}
    for name, parameter in module[1].named_parameters():
        assert (parameter == fresh[name]).tolist() == [False, True, False]
        assert (optimizer.state[parameter]["exp_avg"] == 0)[1]


def test_every_rule_forgets_the_weights_that_were_replaced_and_no_others() -> None:
    model = Net(rectified())
    rules = {"ewc": EWC(), "si": SynapticIntelligence(), "kfac": KFACLaplace(), "mesu": MESU(100, 0.2)}
    rule = ContinualBackprop(0.0)
    fit_tasks(model, *rules.values(), rule, tasks=3)
    before = {name: _copied(rule.synapses.state_dict()) for name, rule in rules.items()}
    factors = [f.clone() for f in rules["kfac"].memory.factors["net.0.weight"][0]]
    outer = [f.clone() for f in rules["kfac"].memory.factors["net.2.weight"][0]]
    units = Units("net.0", 8, ("net.0.weight", "net.0.bias"), (), ("net.2.weight",))
    renew(units, 3, model, rules=rules.values())
    stayed = torch.tensor([0, 1, 2, 4, 5, 6, 7])
    for name, keeper in rules.items():
        for field, state in keeper.synapses.state_dict().items():
            for weight, dim in (("net.0.weight", 0), ("net.0.bias", 0), ("net.2.weight", 1)):
                new, old = state[weight], before[name][field][weight]
                assert torch.equal(new.index_select(dim, stayed), old.index_select(dim, stayed))
            assert torch.equal(state["net.2.bias"], before[name][field]["net.2.bias"])
        of_new = {field: state["net.0.weight"][3] for field, state in keeper.synapses.state_dict().items()}
        for field in ("importance", "path"):
            assert field not in of_new or not of_new[field].any()
        if "anchor" in of_new:
            assert torch.equal(of_new["anchor"], model.net[0].weight[3].detach())
        if "std" in of_new:
            assert of_new["std"].unique().numel() == 1
    now = rules["kfac"].memory.factors
    assert not now["net.0.weight"][0].outputs[3].any() and not now["net.0.weight"][0].outputs[:, 3].any()
    assert torch.equal(now["net.0.weight"][0].inputs, factors[0])
    assert not now["net.2.weight"][0].inputs[3].any()
    assert torch.equal(now["net.2.weight"][0].outputs, outer[1])


def _copied(state: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    return {field: {name: t.clone() for name, t in own.items()} for field, own in state.items()}


def test_a_unit_that_dies_is_replaced_and_one_that_is_rarely_active_is_not() -> None:
    """Unit 0 is always active, unit 1 once in 16 samples, unit 2 dies after half of the training."""
    model = Net(rectified(), lambda p: torch.optim.SGD(p, lr=0.0))
    with torch.no_grad():
        model.net[0].weight.zero_()
        model.net[0].bias.zero_()
        for unit in range(3):
            model.net[0].weight[unit, unit] = 1.0
    x = torch.zeros(16 * 40, FEATURES)
    x[:, 0] = 1.0
    x[::16, 1] = 1.0
    x[: 16 * 20, 2] = 1.0
    rule = SelfNormalizedResets(0.001, every_n_steps=1, decay=0.9)
    y = torch.zeros(len(x), dtype=torch.long)
    seen = around(rule, model, lambda m: m.net[0].weight.detach().clone(), list(loader(x, y)))
    changed = [(before != after).any(1).nonzero().flatten().tolist() for before, after in seen]
    assert [units for units in changed if units] == [[2]]
    assert changed.index([2]) == 2 * 20  # the first batch in which it is silent


def test_a_unit_does_not_get_used_to_its_own_silence() -> None:
    """Active in half of the samples, then silent: 24 misses are the first rarer than one in a million."""
    model = Net(rectified(), lambda p: torch.optim.SGD(p, lr=0.0))
    with torch.no_grad():
        model.net[0].weight.zero_()
        model.net[0].weight[0, 0] = 1.0
        model.net[0].bias[:] = torch.tensor([0.0, *[9.0] * 7])
    x = torch.zeros(8 * 40, FEATURES)
    x[: 8 * 20 : 2, 0] = 1.0
    rule = SelfNormalizedResets(1e-6, every_n_steps=1, decay=0.9)
    y = torch.zeros(len(x), dtype=torch.long)
    seen = around(rule, model, lambda m: m.net[0].weight.detach().clone(), list(loader(x, y)))
    assert [bool((before != after).any()) for before, after in seen].index(True) == 20 + 2


def test_what_runs_outside_of_training_is_not_counted() -> None:
    """Here no loss is returned, so that no backward ends the forward, and no step is taken."""

    class Silent(Net):
        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0])

    rule, counted = ReDo(), []

    class Counting(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if not trainer.sanity_checking:
                assert rule._activity is not None
                counted.append(rule._activity.samples)

    data = loader(*task(0))
    make_trainer(rule, EpochBoundaries(1), Counting()).fit(Silent(rectified()), data, data)
    assert counted == [0]


@pytest.mark.parametrize("others", [[], ["er", "lwf"], ["ewc", "mesu"]])
def test_passes_of_other_rules_are_not_counted(others: list[str]) -> None:
    """Whatever they are, and wherever they are in the list: without learning, activities are those alone."""
    found = []
    for before, after in (([], []), (others, []), ([], others)):
        torch.manual_seed(0)
        model = Net(rectified(), lambda p: torch.optim.SGD(p, lr=0.0))
        rule = ContinualBackprop(0.0)
        silent = ReDo(threshold=0.0)  # looks for units too
        fit_tasks(model, *map(make, before), rule, *map(make, after), silent, shuffle=False)
        found.append(rule.unit_state)
    assert same(found[0]["age"], found[1]["age"]) and same(found[0]["age"], found[2]["age"])
    if "mesu" not in others:  # which draws weights
        assert same(found[0], found[1]) and same(found[0], found[2])


@pytest.mark.parametrize("rule", ["cbp", "redo", "snr"])
def test_a_batch_that_is_not_finite_is_not_remembered(rule: str) -> None:
    class Guarded(Net):
        def on_after_backward(self) -> None:
            for p in self.parameters():
                if p.grad is not None and not p.grad.isfinite().all():
                    p.grad.zero_()

    x, y = task(0)
    x[9] = torch.nan
    model, memory = Guarded(rectified(), lambda p: torch.optim.SGD(p, lr=0.1)), make(rule)
    make_trainer(memory, EpochBoundaries(1), max_epochs=2).fit(model, loader(x, y))
    assert weights(model).isfinite().all()
    assert all(t.isfinite().all() for own in memory.unit_state.values() for t in own.values())


def test_a_sample_counts_once_for_however_many_readers() -> None:
    net = nn.ModuleDict({"body": nn.Linear(3, 4), "one": nn.Linear(4, 2), "other": nn.Linear(4, 2)})

    def run() -> Tensor:
        body = net["body"](torch.ones(5, 3)).relu()
        return net["one"](body).sum() + net["other"](body).sum()

    found, _ = find_units(net, run)
    activity = Activity(net, found, ["active"])
    activity.listening = True
    run()
    run()
    assert activity.samples == 10


def test_a_reader_to_which_no_sample_comes_is_not_counted() -> None:
    module = rectified()
    units, _ = find_units(module, lambda: module(torch.ones(5, FEATURES)).sum())
    activity = Activity(module, units, ["mean", "magnitude", "active"])
    activity.listening = True
    module(torch.ones(0, FEATURES))
    assert (activity.samples, activity.take()) == (0, {})


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (rectified, (FEATURES,)),
        (lambda: nn.Sequential(nn.Conv1d(2, 4, 1), nn.ReLU(), nn.Conv1d(4, CLASSES, 3)), (2, 3)),
    ],
)
def test_a_sample_without_a_dimension_for_samples(
    net: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    found = []
    for of_samples in ((), (1,)):
        torch.manual_seed(0)
        module = net()
        units, _ = find_units(module, lambda: module(torch.ones(*of_samples, *shape)).sum())  # noqa: B023
        activity = Activity(module, units, ["mean", "magnitude", "active"])
        activity.listening = True
        module(torch.linspace(-1, 1, math.prod(shape)).view(*of_samples, *shape))
        found.append((activity.samples, activity.take()))
    assert found[0][0] == 1
    torch.testing.assert_close(found[0][1], found[1][1])


class Heads(Net):
    """One for each epoch."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU()))
        self.heads = nn.ModuleList([nn.Linear(8, CLASSES), nn.Linear(8, CLASSES)])

    def forward(self, x: Tensor) -> Tensor:
        return self.heads[min(self.current_epoch, 1)](self.net(x))


class Residuals(Net):
    """Its BatchNorm trains as in evaluation."""

    def __init__(self) -> None:
        super().__init__(Residual(), lambda p: torch.optim.SGD(p, lr=0.0))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.eval()


def test_a_unit_of_a_residual_stream_is_new_in_all_that_write_to_it() -> None:
    """One that is silent there, so that no output changes."""
    torch.manual_seed(0)
    model, x = Residuals().eval(), torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        model.net.stem.bias[2] = model.net.blocks[0].norms[1].bias[2] = -100.0
    before, outputs = {n: t.clone() for n, t in model.state_dict().items()}, model(x).detach().clone()
    rule = ReDo(threshold=0.0, every_n_steps=1)
    make_trainer(rule, EpochBoundaries(1)).fit(model, loader(x, torch.zeros(4, dtype=torch.long)))
    assert rule.renewed == 1
    assert torch.equal(model.eval()(x), outputs)
    layers, norm = ("stem", "blocks.0.second"), "blocks.0.norms.1.bias"
    rows = {f"net.{name}" for name in (*named(*layers), norm)}
    columns = {f"net.blocks.{name}.weight" for name in ("0.first", "1.first", "1.shortcut")}
    for name, now in model.state_dict().items():
        others = torch.tensor([i for i in range(4) if i != 2])
        dim = 1 if name in columns else 0
        if name in rows | columns:
            new, old = now.select(dim, 2), before[name].select(dim, 2)
            assert not torch.equal(new, old) and (not new.any() if name in columns else True)
            now, before[name] = (t.index_select(dim, others) for t in (now, before[name]))
        assert torch.equal(now, before[name]), name


class Ends(Heads):
    """A first and a last layer for each epoch, with a residual stream between them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 8))
        self.stems = nn.ModuleList([nn.Linear(FEATURES, 8), nn.Linear(FEATURES, 8)])

    def forward(self, x: Tensor) -> Tensor:
        task = min(self.current_epoch, 1)
        x = self.stems[task](x)
        return self.heads[task](x + self.net(x))


@pytest.mark.parametrize(("kind", "layer"), [(Heads, "net.0"), (Ends, "net.2")])
def test_heads_of_earlier_tasks_forget_a_unit_too(kind: type[Heads], layer: str) -> None:
    """Also after a resume, in which only the newest head has been run."""
    seed_everything(0, verbose=False)
    model, rule = kind(), ContinualBackprop(0.0)
    make_trainer(rule, EpochBoundaries(1), max_epochs=1).fit(model, loader(*task(0)))
    resumed = ContinualBackprop(0.2, maturity=0)
    resumed.load_state_dict(rule.state_dict())
    trainer = make_trainer(resumed, EpochBoundaries(1), max_epochs=2)
    trainer.fit_loop.epoch_progress.current.processed = 1  # in the second epoch
    trainer.fit_loop.epoch_progress.current.completed = 1
    trainer.fit(model, loader(*task(1)))
    assert set(resumed.readers) >= {f"{layer} heads.0.weight", f"{layer} heads.1.weight"}
    assert resumed.renewed
    assert not model.heads[0].weight.detach().any(0).all()


@pytest.mark.parametrize(
    "make", [lambda: ContinualBackprop(0.0), lambda: ReDo(0.0), lambda: SelfNormalizedResets(1e-30)]
)
def test_what_replaces_nothing_leaves_training_bit_for_bit(make: Callable[[], UnitRule]) -> None:
    found = []
    for callbacks in ([make()], []):
        seed_everything(0, verbose=False)
        model = Net()  # with dropout and BatchNorm
        fit_tasks(model, *callbacks, EpochBoundaries(1))
        found.append((weights(model), [b.clone() for b in model.buffers()]))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_a_network_without_such_units_is_refused_before_the_first_step() -> None:
    model = Net(nn.Linear(FEATURES, CLASSES))
    before = weights(model)
    with pytest.raises(MisconfigurationException, match=r"finds no units .* net \(read by cross_entropy\)"):
        fit_tasks(model, ReDo())
    assert torch.equal(weights(model), before)


def test_it_is_refused_beside_weights_of_certain_values() -> None:
    with pytest.raises(MisconfigurationException, match="Cascade can only have certain values"):
        fit_tasks(Net(rectified()), ReDo(), Cascade(3))


def test_units_that_are_not_trained_are_left_out_with_a_warning() -> None:
    model = Net(rectified())
    model.net[0].requires_grad_(False)
    with pytest.warns(UserWarning, match=r"can replace no units .* not trained"):
        fit_tasks(model, ReDo())


def test_units_that_are_never_silent_are_said() -> None:
    model = Net(nn.Sequential(nn.Linear(FEATURES, 8), nn.GELU(), nn.Linear(8, CLASSES)))
    with pytest.warns(UserWarning, match="never exactly 0"):
        fit_tasks(model, SelfNormalizedResets(every_n_steps=2))
