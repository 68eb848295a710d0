"""BGD and MESU in a Trainer: against plain loops, and what goes into a step."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader, IterableDataset

from cl_callbacks import BGD, EWC, MESU, MetaplasticGate, SynapticCallback
from cl_callbacks.functional import mesu_
from cl_callbacks.synapses.weight_noise import WeightNoise
from tests.references.uncertainty import bgd_step, chain_step, mesu_step
from tests.small import FEATURES, Net, fit_tasks, loader, make_trainer, plain_net, task, weights

RULES: dict[str, Any] = {
    "bgd": (lambda **o: BGD(0.1, lr_scale=2.0, trust_region=None, **o), {}),
    "mesu": (
        lambda **o: MESU(30.0, 0.5, 0.1, trust_region=0.2, lr_scale=1.5, std_lr_scale=2.0, **o),
        {"memory_steps": 30.0, "prior_std": 0.5, "trust_region": 0.2, "lr_scale": 1.5, "std_lr_scale": 2.0},
    ),
    "chain": (
        lambda **o: MESU(30.0, 0.5, 0.1, prior="chain", beakers=4, coupling=0.3, **o),
        {"memory_steps": 30.0, "prior_std": 0.5, "trust_region": 0.2, "coupling": 0.3, "ratio": 2.0},
    ),
}


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("optimizer", [partial(SGD, lr=0.5, momentum=0.9, weight_decay=0.1), Adam])
@pytest.mark.parametrize("samples", [1, 2])
def test_equals_a_plain_loop(kind: str, optimizer: Any, samples: int) -> None:
    """Whatever the optimizer."""
    build, options = RULES[kind]
    torch.manual_seed(0)
    model = Net(plain_net(), optimizer).double()
    slow = plain_net().double()
    slow.load_state_dict(model.net.state_dict())
    x, y = task(0)[0].double(), task(0)[1]
    rule = build(draws=samples, seed=5)
    make_trainer(rule, max_epochs=4).fit(model, loader(x, y))

    parameters = list(slow.parameters())
    stds = [torch.full_like(p, 0.1) for p in parameters]
    past = [[p.detach().clone() for _ in range(3)] for p in parameters]
    noise = WeightNoise(seed=5)
    for _ in range(4):
        for start in range(0, len(x), 8):
            means = [p.detach().clone() for p in parameters]
            gradients = [torch.zeros_like(p) for p in parameters]
            noise_gradients = [torch.zeros_like(p) for p in parameters]
            for _ in range(samples):
                noise.place(parameters, stds)  # which are new tensors in each step
                noise.begin()
                drawn = [p.detach().clone() for p in parameters]
                loss = F.cross_entropy(slow(x[start : start + 8]), y[start : start + 8], reduction="sum")
                found = torch.autograd.grad(loss / samples, parameters)
                noise.end()
                noise.draws += 1
                for i, g in enumerate(found):
                    gradients[i] += g
                    noise_gradients[i] += g * (drawn[i] - means[i]) / stds[i]
            for i, (m, s, g, q) in enumerate(zip(means, stds, gradients, noise_gradients, strict=True)):
                if kind == "bgd":
                    mean, stds[i] = bgd_step(m, s, g, q, 2.0)
                elif kind == "mesu":
                    mean, stds[i] = mesu_step(m, s, g, q, **options)
                else:
                    mean, stds[i], past[i] = chain_step(m, s, past[i], g, q, **options)
                parameters[i].detach().copy_(mean)
    torch.testing.assert_close(weights(model), weights(slow), rtol=1e-7, atol=1e-9)
    view = rule.synapses.view
    for found_std, expected in zip(view["std"], stds, strict=True):
        torch.testing.assert_close(found_std, expected, rtol=1e-7, atol=1e-9)
    if kind == "chain":
        for i in range(len(parameters)):
            for k in range(3):
                torch.testing.assert_close(view[f"beaker_{k + 2}"][i], past[i][k], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rule", ["bgd", "mesu"])
def test_the_sum_and_the_mean_of_a_loss_give_the_same_training(rule: str) -> None:
    """And accumulated micro-batches the same as whole batches, while the noise is small."""

    class Summing(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self(batch[0]), batch[1], reduction="sum")

    found = []
    for make, reduction, batch_size, accumulate in (
        (Net, "mean", 12, 1),
        (Summing, "sum", 12, 1),
        (Net, "mean", 4, 3),
        (Summing, "sum", 4, 3),
    ):
        torch.manual_seed(0)
        model = make(plain_net()).double()
        memory = BGD(0.1, reduction=reduction) if rule == "bgd" else MESU(50, 0.1, reduction=reduction)
        data = loader(task(0)[0].double(), task(0)[1], batch_size=batch_size)
        make_trainer(memory, max_epochs=3, accumulate_grad_batches=accumulate).fit(model, data)
        found.append(weights(model))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-6, atol=1e-9)


def test_all_micro_batches_of_a_step_count_and_no_other() -> None:
    class Noting(BGD):
        def replace_update(self, step: Any, scale: Any) -> None:
            scales.append(scale)
            super().replace_update(step, scale)

    class Interrupted(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if not scales:
                raise RuntimeError("stop")
            return super().training_step(batch, batch_idx)

    scales: list[float] = []
    rule, model, data = Noting(0.1), Interrupted(), loader(*task(0, samples=12))
    with pytest.raises(RuntimeError, match="stop"):
        make_trainer(rule, accumulate_grad_batches=2).fit(model, data)
    scales.append(0)
    make_trainer(rule, accumulate_grad_batches=2, max_epochs=2).fit(model, data)
    assert scales == [0, 12, 12]


def test_observations_may_be_counted_by_the_user() -> None:
    class Twice(BGD):
        def observations(self, batch: Any) -> int:
            return 2 * super().observations(batch)

    class Nothing(BGD):
        def observations(self, batch: Any) -> int:
            return 0

    found = []
    for rule in (BGD(0.01, lr_scale=2.0), Twice(0.01)):
        torch.manual_seed(0)
        model = Net(plain_net())
        make_trainer(rule, limit_train_batches=1).fit(model, loader(*task(0)))
        found.append(weights(model))
    torch.testing.assert_close(found[0], found[1])
    with pytest.raises(ValueError, match="override `observations"):
        make_trainer(Nothing(0.1)).fit(Net(), loader(*task(0)))


def test_the_optimizer_trains_what_is_left_out() -> None:
    torch.manual_seed(0)
    model, plain = Net(plain_net()), Net(plain_net())
    plain.load_state_dict(model.state_dict())
    rule = BGD(1e-6, parameters=r"net\.0")  # too sure to move, or to make noise
    fit_tasks(model, rule, tasks=1)
    fit_tasks(plain, tasks=1)
    assert (model.net[2].weight - plain.net[2].weight).abs().max() < 1e-2
    torch.manual_seed(0)
    still = Net(plain_net())
    torch.testing.assert_close(model.net[0].weight, still.net[0].weight, rtol=0, atol=1e-4)
    assert (model.net[2].weight - still.net[2].weight).abs().max() > 1e-2


def test_gradients_that_are_not_finite_do_no_harm() -> None:
    class Broken(Net):
        def on_after_backward(self) -> None:
            if self.trainer.global_step == 1:
                self.net[0].weight.grad[0, 0] = math.nan
                self.net[0].weight.grad[0, 1] = math.inf

    for rule in (BGD(0.1, trust_region=None), MESU(50, 0.1, trust_region=None)):
        model = Broken(plain_net())
        fit_tasks(model, rule, tasks=2, max_epochs=2)
        assert weights(model).isfinite().all()
        assert all(s.isfinite().all() and (s > 0).all() for s in rule.synapses.view["std"])


def test_two_owners_are_refused_and_a_pull_beside_one_is_warned_of() -> None:
    with pytest.raises(MisconfigurationException, match="MESU and BGD each replace"):
        fit_tasks(Net(), MESU(10), BGD())
    with pytest.warns(UserWarning, match="MESU already remembers .* and EWC pulls"):
        fit_tasks(Net(), MESU(10), EWC(1.0), tasks=1)


def test_a_pull_reaches_the_update() -> None:
    found = []
    for strength in (0.0, 1e4):
        torch.manual_seed(0)
        model = Net(plain_net())
        with pytest.warns(UserWarning, match="counts twice"):
            fit_tasks(model, EWC(strength), BGD(0.05), tasks=2, max_epochs=3)
        found.append(weights(model))
    assert not torch.equal(*found)


@pytest.mark.parametrize("order", [1, -1])
def test_a_gate_shapes_the_update_of_an_owner(order: int) -> None:
    found = []
    for steepness in (0.0, 1e3):
        torch.manual_seed(0)
        model = Net(plain_net())
        before = model.net[0].weight.detach().clone()
        fit_tasks(model, *[MetaplasticGate(steepness), BGD(0.1)][::order], tasks=1)
        shrunk = model.net[0].weight.detach().abs() < before.abs() - 1e-4
        found.append(shrunk.sum().item())
    assert found[0] > 10
    assert found[1] < found[0] / 4


def test_predictions_of_several_draws() -> None:
    model, rule = Net(), MESU(100, 0.3)
    fit_tasks(model, rule, tasks=1)
    x = task(0)[0]
    model.train()
    before = weights(model)
    found = rule.predict_samples(model, (x, task(0)[1]), draws=400)
    assert found.shape == (400, 24, 3)
    assert model.training
    assert not found.requires_grad
    assert torch.equal(weights(model), before)
    assert torch.equal(found, rule.predict_samples(model, x, draws=400))
    model.eval()
    assert not torch.allclose(found[0], model(x))
    # Draws are in pairs around the means, with the standard deviations that the rule has learned.
    with torch.no_grad():
        bias = rule.synapses.view.names.index("net.4.bias")
        spread = rule.synapses.view["std"][bias]
    for std in rule.synapses.view["std"][:bias]:
        std.fill_(0.0)
    biased = rule.predict_samples(model, x, draws=4000)
    torch.testing.assert_close(biased.mean(0), model(x).detach(), rtol=0, atol=1e-4)
    torch.testing.assert_close(biased.std(0)[0], spread, rtol=0.1, atol=0)
    assert model.training is False
    rule.synapses.view["std"][0].fill_(0.3)

    class Wrong(nn.Module):
        pass

    with pytest.raises(TypeError, match="override `outputs"):
        rule.predict_samples(model, (x, x, x))
    assert torch.equal(weights(model), before)


def test_predictions_need_a_trained_rule() -> None:
    with pytest.raises(ValueError, match="train with it first"):
        BGD().predict_samples(Net(), task(0)[0])
    rule = BGD(0.3)
    fit_tasks(Net(), rule, tasks=1)
    with pytest.raises(ValueError, match="draws must be"):
        rule.predict_samples(Net(), task(0)[0], draws=0)


def test_predictions_of_frozen_weights_and_in_a_fresh_process(tmp_path: Any) -> None:
    class Predicting(Net):
        def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.rule.predict_samples(self, batch[0], 3)

    torch.manual_seed(0)
    model, rule = Predicting(plain_net()), MESU(100, 0.3)
    trainer = make_trainer(rule, enable_checkpointing=True, default_root_dir=tmp_path, max_epochs=2)
    trainer.fit(model, loader(*task(0)))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    expected = rule.predict_samples(model, task(0)[0], 3)
    again, fresh = Predicting(plain_net()), MESU(100, 0.3)
    again.rule, again.freeze = fresh, model.freeze
    again.requires_grad_(False)
    found = make_trainer(fresh).predict(again, loader(*task(0)), ckpt_path=tmp_path / "last.ckpt")
    torch.testing.assert_close(torch.cat(found, 1), expected)  # type: ignore[arg-type]
    # What was learned since a checkpoint is not rolled back by a look at it.
    again.requires_grad_(True)
    make_trainer(fresh).fit(again, loader(*task(1)))
    stds = {name: std.clone() for name, std in fresh.synapses.state_dict()["std"].items()}
    make_trainer(fresh).predict(again, loader(*task(0)), ckpt_path=tmp_path / "last.ckpt")
    assert all(torch.equal(stds[name], std) for name, std in fresh.synapses.state_dict()["std"].items())


def test_predictions_within_a_training_step() -> None:
    class Curious(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            drawn = weights(self)
            self.found.append(self.rule.predict_samples(self, batch[0], 2))
            assert torch.equal(weights(self), drawn)
            return super().training_step(batch, batch_idx)

    model = Curious(plain_net())
    model.rule, model.found = BGD(0.1), []
    fit_tasks(model, model.rule, tasks=1)
    assert len(model.found) == 3


def test_under_manual_optimization_the_present_batch_counts() -> None:
    """Not those whose gradients were thrown away; who accumulates says so."""

    class Seldom(Net):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
            if batch_idx == 2:
                optimizer.step()

    class Noting(BGD):
        def replace_update(self, step: Any, scale: Any) -> None:
            self.scale = scale
            super().replace_update(step, scale)

    class Twice(Noting):
        def observations(self, batch: Any) -> int:
            return 2 * super().observations(batch)

    for rule, expected in ((Noting(0.1), 8), (Twice(0.1), 16), (Noting(0.1, reduction="sum"), 1)):
        fit_tasks(Seldom(), rule, tasks=1)
        assert rule.scale == expected


def test_a_step_before_the_first_batch_is_refused() -> None:
    """Nobody knows of how many observations its gradient is."""

    class Early(Net):
        def on_train_epoch_start(self) -> None:
            self.net(torch.randn(2, FEATURES)).sum().backward()
            self.optimizers().optimizer.step()

    with pytest.raises(MisconfigurationException, match="stepped before the first one"):
        fit_tasks(Early(plain_net()), BGD(0.1), tasks=1)


@pytest.mark.parametrize("prior", ["zero", "chain"])
def test_no_rule_changes_what_the_step_began_with(prior: Any) -> None:
    """A gate behind the owner scales the move from there."""

    class Looking(SynapticCallback):
        needs = frozenset({"before"})

        def rewrite(self, step: Any) -> None:
            assert torch.equal(torch.cat([b.flatten() for b in step.before]), before)

    class Noting(MESU):
        def rewrite(self, step: Any) -> None:
            nonlocal before
            before = torch.cat([b.flatten() for b in step.before])
            super().rewrite(step)

    before = torch.empty(0)
    fit_tasks(Net(plain_net()), Noting(50, prior=prior, coupling=0.1), Looking(), tasks=1)
    assert len(before)


def test_other_rules_see_the_step_as_it_was() -> None:
    class Looking(SynapticCallback):
        needs = frozenset({"gradients", "pulled", "noise_gradients"})

        def observe(self, step: Any) -> None:
            self.seen = step

    class Noting(BGD):
        def replace_update(self, step: Any, scale: Any) -> None:
            assert scale == 8
            self.noise_gradients = step.noise_gradients
            super().replace_update(step, scale)

    rule, looking = Noting(0.1, parameters="weight"), Looking()
    fit_tasks(Net(plain_net()), rule, looking, tasks=1)
    step = looking.seen
    assert all(map(torch.equal, step.pulled, step.gradients))
    for name, noise_gradient in zip(step.synapses.names, step.noise_gradients, strict=True):
        if "weight" in name:
            mine = rule.noise_gradients[rule.synapses.view.names.index(name)]
            torch.testing.assert_close(mine, noise_gradient)
        else:
            assert (noise_gradient == 0).all()
    alone = Looking()
    fit_tasks(Net(plain_net()), alone, tasks=1)
    assert all((noise_gradient == 0).all() for noise_gradient in alone.seen.noise_gradients)


def test_a_rule_restored_by_hand_predicts() -> None:
    model, rule = Net(), MESU(100, 0.3)
    fit_tasks(model, rule, tasks=1)
    again = MESU(100, 0.3)
    again.load_state_dict(rule.state_dict())
    x = task(0)[0]
    assert torch.equal(again.predict_samples(model, x, 3), rule.predict_samples(model, x, 3))


def test_plasticity_is_the_relative_variance() -> None:
    for rule in (MESU(100, 0.3), BGD(0.3)):
        fit_tasks(Net(), rule, tasks=1)
        view = rule.synapses.view
        found = rule.plasticity(view, [0.1] * len(view))
        for gate, std in zip(found, view["std"], strict=True):
            torch.testing.assert_close(gate, (std**2 / 0.09).clamp(max=1))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"initial_std": 0.0}, "initial_std must be a finite number above 0"),
        ({"initial_std": float("inf")}, "initial_std must be"),
        ({"draws": 0}, "draws must be a whole number, at least 1"),
        ({"draws": 1.5}, "draws must be a whole number"),
        ({"seed": "a"}, "seed must be a whole number"),
        ({"reduction": "none"}, "reduction must be 'mean' or 'sum'"),
        ({"trust_region": 1.0}, "trust_region must be"),
        ({"lr_scale": 0.0}, "lr_scale must be a finite number above 0"),
        ({"lr_scale": float("inf")}, "lr_scale must be a finite number above 0"),
        ({"std_lr_scale": float("nan")}, "std_lr_scale must be"),
        ({"memory_steps": 0.0}, "memory_steps must be a number above 0"),
        ({"prior_std": -1.0, "initial_std": 1.0}, "prior_std must be a finite number above 0"),
        ({"prior": "one"}, "prior must be 'zero' or 'chain'"),
        ({"beakers": 1}, "beakers must be a whole number from 2 to 64"),
        ({"coupling": 0.6}, "from 0 to 0.5"),
    ],
)
def test_arguments_that_cannot_work(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MESU(**({"memory_steps": 10.0} | arguments))
    if arguments.keys() <= {"initial_std", "draws", "reduction", "trust_region", "lr_scale", "seed"}:
        with pytest.raises(ValueError, match=said):
            BGD(**arguments)


def assert_same_state(a: SynapticCallback, b: SynapticCallback) -> None:
    for one, other in zip(a.synapses.view["std"], b.synapses.view["std"], strict=True):
        assert torch.equal(one, other)


def epochs_trained(rule: MESU, **options: Any) -> MESU:
    """45 batches in an epoch, two epochs."""
    torch.manual_seed(0)
    make_trainer(rule, max_epochs=2, **options).fit(Net(plain_net()), loader(*task(0, 45), batch_size=1))
    return rule


def test_a_window_in_epochs_is_one_in_steps() -> None:
    in_epochs, in_steps = epochs_trained(MESU(memory_epochs=2)), epochs_trained(MESU(memory_steps=90))
    other = epochs_trained(MESU(memory_steps=45))
    assert_same_state(in_epochs, in_steps)
    with pytest.raises(AssertionError):
        assert_same_state(in_epochs, other)


def test_steps_of_several_batches_make_the_window_shorter() -> None:
    in_epochs = epochs_trained(MESU(memory_epochs=2), accumulate_grad_batches=4)
    assert_same_state(in_epochs, epochs_trained(MESU(memory_steps=24), accumulate_grad_batches=4))


def test_each_task_has_epochs_of_its_own_length() -> None:
    found = []
    for rule in (MESU(memory_epochs=10), MESU(memory_epochs=10)):
        model, trainer = Net(plain_net()), make_trainer(rule)
        for samples in (24, 48):
            trainer.fit(model, loader(*task(0, samples)))
            trainer.fit_loop.max_epochs += 1
            found.append(rule._window)
    assert found == [30, 60] * 2


def test_data_without_a_length_need_a_window_in_steps() -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter(zip(*task(0), strict=True))

    def data() -> DataLoader:
        return DataLoader(Stream(), batch_size=8)

    for rule in (MESU(), MESU(memory_epochs=3)):
        with pytest.raises(MisconfigurationException, match=r"MESU\(memory_steps=\.\.\.\)"):
            make_trainer(rule).fit(Net(plain_net()), data())
    for rule in (MESU(memory_steps=100), BGD()):
        make_trainer(rule).fit(Net(plain_net()), data())
    make_trainer(MESU(), limit_train_batches=3).fit(Net(plain_net()), data())


@pytest.mark.parametrize(
    ("build", "both"),
    [
        (lambda: MESU(10, memory_epochs=1), "memory_steps and memory_epochs"),
        (lambda: MESU(prior_std=0.1, relative_std=1.0), "prior_std and relative_std"),
        (lambda: BGD(0.1, relative_std=1.0), "initial_std and relative_std"),
    ],
)
def test_two_arguments_for_one_thing_are_refused(build: Any, both: str) -> None:
    with pytest.raises(ValueError, match=f"{both} set the same thing: give one of them"):
        build()


@pytest.mark.parametrize("kind", [BGD, MESU])
def test_widths_are_in_units_of_each_layer(kind: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 100), nn.LayerNorm(100), nn.Linear(100, 3))
    rule = kind(relative_std=2.0)
    make_trainer(rule, limit_train_batches=0).fit(Net(net), loader(*task(0)))
    rule._place(Net(net))
    view = rule.synapses.view
    expected = [2 / 6**0.5] * 2 + [0.2] * 4
    for std, value, plasticity in zip(view["std"], expected, rule.plasticity(view, []), strict=True):
        torch.testing.assert_close(std, torch.full_like(std, value))
        torch.testing.assert_close(plasticity, torch.ones_like(std))


def test_one_prior_for_each_tensor_equals_each_alone() -> None:
    torch.manual_seed(0)
    shapes = [(3, 2), (5,)]
    state = [[torch.rand(s, dtype=torch.float64) for s in shapes] for _ in range(4)]
    for slow in (None, [torch.rand(s, dtype=torch.float64) for s in shapes]):
        options: dict[str, Any] = {"memory_steps": 7.0, "coupling": 0.2}
        together = [[t.clone() for t in some] for some in state]
        mesu_(*together, prior_std=[0.3, 2.0], slow=slow, **options)  # type: ignore[misc]
        for i, prior_std in enumerate((0.3, 2.0)):
            alone = [[some[i].clone()] for some in state]
            mesu_(*alone, prior_std=prior_std, slow=slow and [slow[i]], **options)  # type: ignore[misc]
            for found, expected in zip(together, alone, strict=True):
                torch.testing.assert_close(found[i], expected[0], rtol=1e-14, atol=0)


def test_absolute_widths_are_bayes_rule_as_ever() -> None:
    for rule in (MESU(10, 0.2), MESU(10, initial_std=0.2), BGD(0.2)):
        assert rule._lr_scales == {"lr_scale": 1.0, "std_lr_scale": 1.0}
    for rule in (MESU(), BGD(), MESU(relative_std=1.0)):
        assert rule._lr_scales == {"lr_scale": 8.0, "std_lr_scale": 80.0}
    assert BGD(std_lr_scale=2.0)._lr_scales == {"lr_scale": 8.0, "std_lr_scale": 2.0}


@pytest.mark.parametrize(("rule", "capped"), [(BGD(), True), (BGD(0.1), False)], ids=["relative", "absolute"])
def test_bgd_widens_beyond_its_start_only_with_an_absolute_width(rule: BGD, capped: bool) -> None:
    torch.manual_seed(0)
    model = Net(plain_net())
    fit_tasks(model, rule, tasks=1)
    view = rule.synapses.view
    start = rule.std_of(view, rule.initial_std)
    starts = start if isinstance(start, list) else [start] * len(view.names)
    widened = [(std > one * (1 + 1e-6)).any().item() for std, one in zip(view["std"], starts, strict=True)]
    assert not any(widened) if capped else all(widened)
    assert any((std < one).any() for std, one in zip(view["std"], starts, strict=True))


def test_a_saved_absolute_width_is_kept_by_a_rule_with_relative_ones() -> None:
    torch.manual_seed(0)
    model, old = Net(plain_net()), BGD(0.3)
    fit_tasks(model, old, tasks=1)
    saved = {name: std.clone() for name, std in old.state_dict()["synapses"]["std"].items()}
    new = BGD()
    new.load_state_dict(old.state_dict())
    new._place(model)
    assert {name: std.tolist() for name, std in new.state_dict()["synapses"]["std"].items()} == {
        name: std.tolist() for name, std in saved.items()
    }
