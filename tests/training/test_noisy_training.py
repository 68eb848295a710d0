"""Who sees drawn weights, and who never does."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import CatMetric, SumMetric

from cl_callbacks import BGD, MESU, Cascade, EpochBoundaries
from tests.small import CLASSES, FEATURES, Net, fit_tasks, loader, make_trainer, plain_net, task, weights

READS_MEANS = [
    "on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_after_backward",
    "on_before_optimizer_step", "on_train_batch_end", "on_train_epoch_end", "on_validation_start",
    "on_validation_batch_start", "on_validation_end", "on_save_checkpoint", "on_train_end", "on_task_start",
    "on_task_end", "on_exception",
]  # fmt: skip


class Seen(Callback):
    """The weights as every hook finds them, and the means as the rule has left them."""

    def __init__(self) -> None:
        self.found: list[tuple[str, Tensor]] = []


def _recording(name: str) -> Any:
    def hook(self: Seen, trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        self.found.append((name, weights(pl_module)))

    return hook


for _name in READS_MEANS:
    setattr(Seen, _name, _recording(_name))


class Watched(Net):
    """Remembers the weights at which it was trained."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.trained_at: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.trained_at.append(weights(self))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("samples", [1, 3])
def test_all_hooks_see_the_means(first: bool, accumulate: int, samples: int, tmp_path: Path) -> None:
    rule, seen, model = BGD(0.1, draws=samples), Seen(), Watched(plain_net())
    callbacks = [rule, seen] if first else [seen, rule]
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    trainer = make_trainer(
        *callbacks, EpochBoundaries(1), saving,
        max_epochs=2, accumulate_grad_batches=accumulate, enable_checkpointing=True, val_check_interval=1,
    )  # fmt: skip
    trainer.fit(model, loader(*task(0)), loader(*task(1)))
    assert {name for name, _ in seen.found} == set(READS_MEANS) - {"on_exception"}
    # The means change in the optimizer's step alone, which is between these two.
    previous = seen.found[0][1]
    for name, found in seen.found:
        if name not in ("on_train_batch_end", "on_save_checkpoint"):
            assert torch.equal(found, previous), name
        previous = found
    assert len(model.trained_at) == 6 * samples
    means = torch.stack([found for _, found in seen.found])
    for drawn in model.trained_at:
        assert (means != drawn).any(1).all()
    saved = torch.load(saving.best_model_path or next(tmp_path.glob("*.ckpt")), weights_only=True)
    flat = torch.cat([t.flatten() for t in saved["state_dict"].values()])
    assert (means == flat).all(1).any()


class Failing(Net):
    fails_in = "training_step"

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.at = weights(self)
        if batch_idx == 2 and self.fails_in == "training_step":
            raise RuntimeError("as planned")
        return loss

    def backward(self, loss: Tensor) -> None:
        super().backward(loss)
        if self.fails_in == "backward" and self.trainer.global_step == 2:
            raise RuntimeError("as planned")

    def on_before_backward(self, loss: Tensor) -> None:
        if self.fails_in == "hook" and self.trainer.global_step == 2:
            raise RuntimeError("as planned")


@pytest.mark.parametrize("where", ["training_step", "backward", "hook"])
@pytest.mark.parametrize("samples", [1, 2])
def test_an_exception_leaves_the_means_bit_for_bit(where: str, samples: int) -> None:
    model, seen = Failing(plain_net()), Seen()
    model.fails_in = where
    rule = MESU(100, 0.3, draws=samples)
    trainer = make_trainer(seen, rule)
    own = dict(vars(model))
    with pytest.raises(RuntimeError, match="as planned"):
        trainer.fit(model, loader(*task(0)))
    (means,) = [w for name, w in seen.found if name == "on_train_batch_end"][-1:]
    assert torch.equal(weights(model), means)
    assert not torch.equal(model.at, means)
    if where != "hook":
        assert torch.equal(seen.found[-1][1], means)  # on_exception of a callback before the rule
    for name in ("training_step", "backward"):
        assert name not in vars(model)
        assert name not in own


def test_a_training_step_that_returns_nothing_leaves_the_means() -> None:
    class Skipping(Watched):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx == 1 else loss

    model, seen = Skipping(plain_net()), Seen()
    make_trainer(seen, BGD(0.1)).fit(model, loader(*task(0)))
    ends = [found for name, found in seen.found if name == "on_train_batch_end"]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[1], ends[2])
    assert len(model.trained_at) == 3


def test_other_wrappers_of_the_module_stay() -> None:
    model = Net(plain_net())
    calls = []
    original = model.training_step

    def own(batch: Any, batch_idx: int) -> Any:
        calls.append(batch_idx)
        return original(batch, batch_idx)

    model.training_step = own  # type: ignore[method-assign]
    fit_tasks(model, BGD(0.1), tasks=1)
    assert calls == [0, 1, 2]
    assert vars(model)["training_step"] is own


def test_under_manual_optimization_only_the_optimizers_step_from_the_means() -> None:
    class Manual(Watched):
        automatic_optimization = False

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (self.net[0], self.net[2])]

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer in self.optimizers():
                for _ in range(2):  # accumulates by hand
                    self.trained_at.append(weights(self))
                    self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]) / 2)
                optimizer.step()
                self.zero_grad()

    model, seen, rule = Manual(plain_net()), Seen(), BGD(0.1)
    make_trainer(seen, rule).fit(model, loader(*task(0)))
    means = [w for name, w in seen.found if name in ("on_train_batch_start", "on_train_batch_end")]
    assert len(model.trained_at) == 3 * 2 * 2
    for drawn in model.trained_at:
        assert all((drawn != mean).any() for mean in means)
    noise = torch.cat([s.flatten() for s in rule.synapses.view["std"]])
    assert (noise != 0.1).all()  # both optimizers' synapses have learned
    with pytest.raises(MisconfigurationException, match="draws=1"):
        make_trainer(BGD(0.1, draws=2)).fit(Manual(plain_net()), loader(*task(0)))


def test_adversaries_in_the_usual_order() -> None:
    """The discriminator steps while the generator's forward waits for its backward; both are drawn."""

    class Adversaries(Net):
        automatic_optimization = False

        def __init__(self) -> None:
            super().__init__()
            self.g = nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, FEATURES))
            self.d = nn.Linear(FEATURES, 1)
            del self.net
            self.drawn: list[tuple[Tensor, Tensor]] = []

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(m.parameters(), lr=0.1) for m in (self.g, self.d)]

        def training_step(self, batch: Any, batch_idx: int) -> None:
            opt_g, opt_d = self.optimizers()
            fake = self.g(batch[0])
            opt_d.zero_grad()
            self.manual_backward((self.d(fake.detach()) - self.d(batch[0])).mean())
            opt_d.step()
            stepped = self.d.weight.detach().clone()
            with torch.no_grad():
                self.d.weight.clamp_(-0.3, 0.3)  # after its step: of the means
            opt_g.zero_grad()
            loss = -self.d(fake).mean()
            self.drawn.append((stepped, self.d.weight.detach().clone()))
            self.manual_backward(loss)
            self.g_seen = self.g[0].weight.detach().clone(), self.g[0].weight.grad.clone()
            opt_g.step()

    class Checked(BGD):
        checks = 0

        def replace_update(self, step: Any, scale: Any) -> None:
            if "g.0.weight" in step.synapses.names:
                drawn, gradient = model.g_seen
                epsilon = (drawn - step.before[0]) / step.synapses["std"][0]
                found = scale * step.noise_gradients[0]
                torch.testing.assert_close(found, 8 * gradient * epsilon, rtol=1e-3, atol=1e-4)
                self.checks += 1
            super().replace_update(step, scale)

    for rule in (Checked(0.1), Checked(0.1, parameters="^g")):
        model = Adversaries()
        fit_tasks(model, rule, tasks=1)
        assert rule.checks == 3
        assert not any(module._forward_pre_hooks for module in model.modules())
        assert model.d.weight.abs().max() <= 0.3
        clamped = all((d - means.clamp(-0.3, 0.3)).abs().max() == 0 for means, d in model.drawn)
        assert clamped == bool(rule.parameters)  # without noise of its own it is seen at its means
        for name, std in zip(rule.synapses.view.names, rule.synapses.view["std"], strict=True):
            assert (std != 0.1).all() or name == "d.bias"  # whose gradients cancel


def test_a_forward_after_another_optimizers_step_is_drawn() -> None:
    class Alternating(Watched):
        automatic_optimization = False

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (self.net[0], self.net[2])]

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer in reversed(self.optimizers()):
                optimizer.zero_grad()
                loss = F.cross_entropy(self(batch[0]), batch[1])
                self.trained_at.append(self.net[0].weight.detach().clone())
                self.manual_backward(loss)
                optimizer.step()

    class Means(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            self.weight = pl_module.net[0].weight.detach().clone()

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            assert all((drawn != self.weight).all() for drawn in pl_module.trained_at[-2:])

    model = Alternating(plain_net())
    fit_tasks(model, BGD(0.1, parameters=r"net\.0"), Means(), tasks=1)
    assert len(model.trained_at) == 6


def test_changes_to_drawn_weights_are_refused_before_they_are_lost() -> None:
    class Editing(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            with torch.no_grad():
                self.net[0].weight.clamp_(-0.2, 0.2)
            return super().training_step(batch, batch_idx)

    model = Editing(plain_net())
    before = weights(model)
    with pytest.raises(RuntimeError, match="the change would be lost"):
        fit_tasks(model, BGD(0.1))
    assert torch.equal(weights(model), before)


def test_weights_that_no_optimizer_steps_are_not_drawn() -> None:
    """A frozen trunk that still requires gradients; a target network that follows by copies."""

    class Following(Watched):
        def __init__(self) -> None:
            super().__init__(plain_net())
            self.target = plain_net()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.net[2].parameters(), lr=0.1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.target.load_state_dict(self.net.state_dict())
            return super().training_step(batch, batch_idx)

    for rule in (BGD(0.1), Cascade(3)):
        model = Following()
        trunk = model.net[0].weight.detach().clone()
        fit_tasks(model, rule, tasks=1)
        assert {name[:6] for name in rule.synapses.view.names} == {"net.2."}
        assert torch.equal(model.net[0].weight, trunk)
        drawn = model.target[2].weight.detach().clone()  # a copy of what the last step was taken at
        assert (drawn != model.net[2].weight).all() or isinstance(rule, Cascade)


def test_a_loader_in_the_users_own_hands_is_refused() -> None:
    class Fetching(Net):
        def training_step(self, dataloader_iter: Any) -> Any:
            return super().training_step(next(dataloader_iter)[0], 0)

    with pytest.raises(MisconfigurationException, match="dataloader_iter"):
        fit_tasks(Fetching(), BGD(0.1))


def test_a_step_that_was_interrupted_leaves_nothing_to_the_next_fit() -> None:
    class Interrupted(Net):
        interrupts = True

        def on_train_batch_end(self, *args: Any) -> None:
            if self.interrupts:
                raise ValueError("in the middle of a window")

    class First(BGD):
        def replace_update(self, step: Any, scale: Any) -> None:
            self.first = [scale * t for t in step.noise_gradients]

    found = []
    for interrupted in (True, False):
        torch.manual_seed(0)
        model, rule = Interrupted(plain_net()), First(0.1, draws=2)
        options = {"accumulate_grad_batches": 3, "limit_train_batches": 3}
        if interrupted:
            with pytest.raises(ValueError, match="in the middle"):
                make_trainer(rule, **options).fit(model, loader(*task(0)))
        else:
            rule.weight_noise.draws = 2  # so many the interrupted one has used
        model.interrupts = False
        make_trainer(rule, **options).fit(model, loader(*task(0)))
        found.append(torch.cat([t.flatten() for t in rule.first]))
    torch.testing.assert_close(*found)


def test_metrics_count_the_first_pass_alone() -> None:
    class Counting(Net):
        def __init__(self) -> None:
            super().__init__()
            self.seen, self.all = SumMetric(), CatMetric()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.seen.update(len(batch[0]))
            self.all.update(batch[1])
            return super().training_step(batch, batch_idx)

    model = Counting()
    fit_tasks(model, BGD(0.1, draws=3), tasks=1)
    assert model.seen.compute() == 24
    assert len(model.all.compute()) == 24


def test_a_copy_of_the_module_is_its_own() -> None:
    class Copying(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.copied = [copy.deepcopy(self)]

    model = Copying(plain_net())
    seen = Seen()
    make_trainer(BGD(0.1), seen, limit_train_batches=1).fit(model, loader(*task(0)))
    other = model.copied[0]
    before = weights(model)
    with torch.no_grad():
        for p in other.parameters():
            p.fill_(torch.nan)
    other.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    assert other.training_step(task(0), 0).isnan()
    assert torch.equal(weights(model), before)


@pytest.mark.parametrize("samples", [2, 4])
def test_extra_passes_are_seen_by_nobody(samples: int) -> None:
    """One hook call, one log entry and one update of BatchNorm's statistics per step; gradients are means."""

    class Logging(Net):
        def __init__(self) -> None:
            super().__init__(nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES)))
            self.passes = self.backwards = 0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.passes += 1
            self.log("passes", float(self.passes), on_step=True, on_epoch=False)
            self.log_dict({"too": 1.0})
            return super().training_step(batch, batch_idx)

        def on_after_backward(self) -> None:
            self.backwards += 1

    model = Logging()
    trainer = make_trainer(BGD(0.05, draws=samples), limit_train_batches=3)
    trainer.fit(model, loader(*task(0)))
    assert model.passes == 3 * samples
    assert model.backwards == 3
    assert trainer.callback_metrics["passes"] == 2 * samples + 1  # of the first pass of the last step
    assert model.net[1].num_batches_tracked == 3


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("samples", [1, 2, 3])
def test_a_step_equals_a_plain_loop_over_its_draws(samples: int, accumulate: int) -> None:
    """Also with micro-batches, and an incomplete last window of them."""

    class Recording(BGD):
        def replace_update(self, step: Any, scale: Any) -> None:
            lists = step.pulled, step.noise_gradients
            self.taken.append([torch.cat([scale * t.flatten() for t in ts]) for ts in lists])
            super().replace_update(step, scale)

    torch.manual_seed(0)
    model, rule = Watched(plain_net()).double(), Recording(0.1, draws=samples)
    rule.taken, data = [], (task(0)[0].double(), task(0)[1])
    means: list[Tensor] = []

    class Means(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            means.append(weights(pl_module))

    trainer = make_trainer(Means(), rule, accumulate_grad_batches=accumulate, limit_train_batches=4)
    trainer.fit(model, loader(*data, batch_size=6))
    windows = [range(4)[i : i + accumulate] for i in range(0, 4, accumulate)]
    assert len(rule.taken) == len(windows)
    net, std = plain_net().double(), torch.full_like(means[0], 0.1)
    if samples > 1:  # every pass at a draw of its own
        first = torch.stack(model.trained_at[: samples * len(windows[0])])
        assert len(first.unique(dim=0)) == len(first)
    for window, (found, found_noise) in zip(windows, rule.taken, strict=True):
        gradient, noise_gradient = torch.zeros_like(std), torch.zeros_like(std)
        for k in window:
            x, y = (t[6 * k : 6 * k + 6] for t in data)
            for drawn in model.trained_at[samples * k : samples * k + samples]:
                nn.utils.vector_to_parameters(drawn, net.parameters())
                loss = F.cross_entropy(net(x), y, reduction="sum") / samples
                g = torch.cat([t.flatten() for t in torch.autograd.grad(loss, list(net.parameters()))])
                gradient += g
                noise_gradient += g * (drawn - means[k]) / std
        torch.testing.assert_close(found, gradient, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(found_noise, noise_gradient, rtol=1e-6, atol=1e-8)
        if window[-1] + 1 < 4:
            a = 0.5 * std * found_noise
            std = std * ((1 + a**2).sqrt() - a).clamp(0.8, 1.2)


@pytest.mark.parametrize("samples", [1, 3])
def test_scaled_gradients_are_those_of_full_precision(samples: int) -> None:
    """Mixed precision multiplies the loss, also of extra passes, and divides the gradients by as much."""
    found = []
    for scaled in (False, True):
        torch.manual_seed(0)
        model = Net(plain_net(), lambda p: torch.optim.SGD(p, lr=0.1))
        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))
        plugin.precision = "bf16-mixed"  # which the CPU can compute in
        plain = MixedPrecision("bf16-mixed", "cpu")
        trainer = make_trainer(MESU(50, 0.2, draws=samples), plugins=[plugin if scaled else plain])
        trainer.fit(model, loader(*task(0)))
        found.append(weights(model))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)


class Impatient(torch.amp.GradScaler):
    """A scaler that nobody may ask for its scale, for which the host would wait for the device."""

    def get_scale(self) -> float:
        raise AssertionError("waits for the device")


@pytest.mark.parametrize("samples", [1, 3])
def test_the_loss_scale_is_taken_out_without_asking_for_it(samples: int) -> None:
    found = []
    for scaler in (torch.amp.GradScaler("cpu", init_scale=2.0**8), Impatient("cpu", init_scale=2.0**12)):
        torch.manual_seed(0)
        model = Net(plain_net(), lambda p: torch.optim.SGD(p, lr=0.1))
        plugin = MixedPrecision("16-mixed", "cpu", scaler)
        make_trainer(MESU(50, 0.2, draws=samples), plugins=[plugin]).fit(model, loader(*task(0)))
        found.append(weights(model))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)
