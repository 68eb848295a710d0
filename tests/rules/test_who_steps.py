"""Steps that Lightning does not hear of: rules act on them as on its own, or the first one raises."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import optimizer as torch_optimizer

from cl_callbacks import EWC, EpochBoundaries, SynapticIntelligence
from tests.every_rule import assert_same, state
from tests.odd_optimizers import (
    Delegating,
    Evaluating,
    Lookahead,
    Plain,
    Projecting,
    Sam,
    Sealed,
    WithoutSuper,
    parameters,
)
from tests.settings.training import sgd
from tests.small import Net, fit_tasks, loader, make_trainer, plain_net, task, weights


class ByHand(Net):
    """Manual optimization; ``take`` is given the module, the batch and the function that leaves gradients."""

    automatic_optimization = False

    def __init__(self, take: Callable[..., None], optimizer: Any = sgd) -> None:
        torch.manual_seed(0)
        super().__init__(plain_net(), optimizer)
        self.take = take

    def loss(self, batch: Any) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        def gradients() -> Tensor:
            self.zero_grad()
            loss = self.loss(batch)
            self.manual_backward(loss)
            return loss

        self.take(self, batch, gradients)


def trained(model: Net, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Weights, and the state of two rules, of which the second observes every step."""
    rules = EWC(2.0), SynapticIntelligence(2.0, damping=1e-3)
    fit_tasks(model, *rules, shuffle=False, max_epochs=2, **options)
    return weights(model), {
        f"{name}/{key}": t for name, r in zip("ab", rules, strict=True) for key, t in state(r).items()
    }


def assert_equal(found: Any, expected: Any) -> None:
    assert torch.equal(found[0], expected[0])
    assert_same(found[1], expected[1])
    assert all(key in found[1] for key in ("a//synapses/importance/net.0.weight",))


def wrapped(module: Any, batch: Any, gradients: Any) -> None:
    gradients()
    module.optimizers().step()


def raw(module: Any, batch: Any, gradients: Any) -> None:
    gradients()
    module.optimizers(use_pl_optimizer=False).step()


def unwrapped(module: Any, batch: Any, gradients: Any) -> None:
    gradients()
    module.optimizers().optimizer.step()


def raw_with_closure(module: Any, batch: Any, gradients: Any) -> None:
    module.optimizers(use_pl_optimizer=False).step(gradients)


def raw_with_named_closure(module: Any, batch: Any, gradients: Any) -> None:
    module.optimizers(use_pl_optimizer=False).step(closure=gradients)


def own_optimizer(module: Any, batch: Any, gradients: Any) -> None:
    """One that the Trainer has never seen."""
    if getattr(module, "owner", None) is not module.trainer.optimizers[0]:
        module.owner, module.own = module.trainer.optimizers[0], sgd(module.parameters())
    gradients()
    module.own.step()


def own_wrapper(module: Any, batch: Any, gradients: Any) -> None:
    gradients()
    Delegating(module.optimizers(use_pl_optimizer=False)).step()


def projecting(module: Any, batch: Any, gradients: Any) -> None:
    surgery = Projecting(module.optimizers(use_pl_optimizer=False))
    surgery.backward([0.5 * module.loss(batch), 0.5 * module.loss(batch)])
    surgery.step()


def compiled(module: Any, batch: Any, gradients: Any) -> None:
    optimizer = module.optimizers(use_pl_optimizer=False)
    if getattr(module, "compiled_for", None) is not optimizer:
        module.compiled_for = optimizer
        module.step = torch.compile(lambda: optimizer.step(), backend="eager")
    gradients()
    module.step()


@pytest.fixture(scope="module")
def usual() -> Any:
    return trained(ByHand(wrapped))


@pytest.mark.parametrize(
    "step",
    [
        raw, unwrapped, raw_with_closure, raw_with_named_closure,
        own_optimizer, own_wrapper, projecting, compiled,
    ],
)  # fmt: skip
def test_whoever_calls_step_the_rules_act_alike(step: Callable[..., None], usual: Any) -> None:
    assert_equal(trained(ByHand(step)), usual)


def test_a_step_for_each_parameter_within_backward(usual: Any) -> None:
    """Before the gradients of other layers are there."""

    def each(weights: Any) -> list[torch.optim.Optimizer]:
        return [sgd([p]) for p in weights]

    class WithinBackward(ByHand):
        def on_train_start(self) -> None:
            by_weight = {parameters(o)[0]: o for o in self.optimizers(use_pl_optimizer=False)}

            def step(weight: Any) -> None:
                by_weight[weight].step()
                weight.grad = None

            self.hooks = [p.register_post_accumulate_grad_hook(step) for p in self.parameters()]

        def on_train_end(self) -> None:
            for hook in self.hooks:
                hook.remove()

    assert_equal(trained(WithinBackward(lambda module, batch, gradients: gradients(), each)), usual)


class Overriding(Net):
    """Automatic optimization, with an ``optimizer_step`` of its own."""

    def __init__(self, step: Callable[..., None], optimizer: Any = sgd) -> None:
        torch.manual_seed(0)
        super().__init__(plain_net(), optimizer)
        self.step = step

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
        self.step(optimizer, optimizer_closure)


def usual_step(optimizer: Any, closure: Any) -> None:
    optimizer.step(closure)


@pytest.mark.parametrize("with_closure", [True, False])
def test_an_optimizer_step_that_calls_torch_s_optimizer(with_closure: bool) -> None:
    def step(optimizer: Any, closure: Any) -> None:
        if with_closure:
            optimizer.optimizer.step(closure)
        else:
            closure()
            optimizer.optimizer.step()

    assert_equal(trained(Overriding(step)), trained(Overriding(usual_step)))


# -- optimizers that wrap others, or that torch's hooks do not reach ---------------------------------------


def compiled_in_place(weights: Any) -> torch.optim.Optimizer:
    optimizer = sgd(weights)
    optimizer.step = torch.compile(optimizer.step, backend="eager")  # type: ignore[method-assign]
    return optimizer


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda weights: Delegating(sgd(weights)),
        lambda weights: Delegating(Delegating(sgd(weights))),
        lambda weights: Evaluating(sgd(weights)),
        Plain,
        WithoutSuper,
        compiled_in_place,
    ],
)
def test_optimizers_that_torch_s_hooks_do_not_reach(optimizer: Any) -> None:
    assert_equal(trained(Overriding(usual_step, optimizer)), trained(Overriding(usual_step)))


def test_a_schedule_of_an_optimizer_whose_step_is_replaced(recwarn: Any) -> None:
    def scheduled(weights: Any) -> Any:
        optimizer = Lookahead(sgd(weights))
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    module = Overriding(usual_step, scheduled)
    trainer = fit_tasks(module, EWC(), tasks=1, max_epochs=3)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.1 * 0.5**3
    assert not [w for w in recwarn if "lr_scheduler.step" in str(w.message)]


def test_clipping_includes_the_pull_where_the_closure_is_handed_down() -> None:
    expected = trained(Overriding(usual_step), gradient_clip_val=0.05)
    assert_equal(
        trained(Overriding(usual_step, lambda w: Delegating(sgd(w))), gradient_clip_val=0.05), expected
    )


def test_all_that_a_wrapper_does_to_the_weights_is_one_step() -> None:
    """From the very first: the weights that Lookahead sets are those that path integrals see."""

    class Observed(SynapticIntelligence):
        def observe(self, step: Any) -> None:
            super().observe(step)
            self.ends = [*getattr(self, "ends", []), weights(module).clone()]
            self.sums = getattr(self, "sums", 0.0) + torch.cat([u.flatten() for u in step.updates])

    module = Overriding(usual_step, lambda w: Lookahead(sgd(w)))
    before, rule = weights(module).clone(), Observed(2.0)
    fit_tasks(module, rule, tasks=1, max_epochs=3)
    assert len(rule.ends) == 9
    torch.testing.assert_close(before + rule.sums, weights(module))
    assert torch.equal(rule.ends[-1], weights(module))


# -- sharpness-aware minimisation --------------------------------------------------------------------------

RHO = 0.05
sam = partial(Sam, base=torch.optim.SGD, rho=RHO, lr=0.1, momentum=0.9)


def without_moving(module: Any, batch: Any, gradients: Any) -> None:
    """The same gradients, with the weights where they are."""
    gradients()
    named = dict(module.net.named_parameters())
    norm = torch.stack([p.grad.norm() for p in named.values()]).norm()
    above = {name: (p + p.grad * (RHO / norm)).detach().requires_grad_() for name, p in named.items()}
    loss = cross_entropy(torch.func.functional_call(module.net, above, (batch[0],)), batch[1])
    for p, gradient in zip(named.values(), torch.autograd.grad(loss, list(above.values())), strict=True):
        p.grad = gradient
    module.optimizers().step()


def both_steps(module: Any, batch: Any, gradients: Any) -> None:
    optimizer = module.optimizers()
    gradients()
    optimizer.first_step()
    gradients()
    optimizer.second_step()


def both_steps_raw(module: Any, batch: Any, gradients: Any) -> None:
    optimizer = module.optimizers(use_pl_optimizer=False)
    gradients()
    optimizer.first_step()
    gradients()
    optimizer.second_step()


def second_closure(module: Any, batch: Any, gradients: Any) -> None:
    gradients()
    module.optimizers().step(gradients)


def second_closure_raw(module: Any, batch: Any, gradients: Any) -> None:
    gradients()
    module.optimizers(use_pl_optimizer=False).step(gradients)


@pytest.fixture(scope="module")
def sharp() -> Any:
    return trained(ByHand(without_moving))


@pytest.mark.parametrize("step", [both_steps, both_steps_raw, second_closure, second_closure_raw])
def test_sam_is_pulled_once_at_the_second_gradient(step: Callable[..., None], sharp: Any) -> None:
    assert_equal(trained(ByHand(step, sam)), sharp)


def test_sam_under_automatic_optimization(sharp: Any) -> None:
    assert_equal(trained(Overriding(usual_step, sam)), sharp)


def test_sam_in_an_optimizer_step(sharp: Any) -> None:
    def step(optimizer: Any, closure: Any) -> None:
        closure()
        optimizer.first_step()
        closure()
        optimizer.second_step()

    assert_equal(trained(Overriding(step, sam)), sharp)


@pytest.mark.parametrize("optimizer", [sgd, Plain])
def test_optimizers_that_replace_others_within_a_fit(optimizer: Any) -> None:
    """As some do for each task."""

    class Replacing(Overriding):
        def on_train_epoch_start(self) -> None:
            if self.trainer.current_epoch == 1:
                self.trainer.optimizers = [self.optimizer(self.parameters())]

    def trained_in_one_fit(made: Any) -> Tensor:
        rule = SynapticIntelligence(2.0, damping=1e-3)
        trainer = make_trainer(rule, EpochBoundaries(1), max_epochs=3)
        module = Replacing(usual_step, made)
        trainer.fit(module, loader(*task(0)))
        assert "step" not in vars(trainer.optimizers[0])
        return torch.cat([weights(module), state(rule)["/synapses/importance/net.0.weight"].flatten()])

    assert torch.equal(trained_in_one_fit(optimizer), trained_in_one_fit(sgd))


# -- refused -----------------------------------------------------------------------------------------------


def by_hand(module: Any, batch: Any, gradients: Any) -> None:
    gradients()
    with torch.no_grad():
        for p in module.parameters():
            p -= 0.1 * p.grad
            p.grad = None


def by_hand_past_autograd(module: Any, batch: Any, gradients: Any) -> None:
    found = torch.autograd.grad(module.loss(batch), list(module.parameters()))
    for p, gradient in zip(module.parameters(), found, strict=True):
        p.data.sub_(0.1 * gradient)


def own_without_hooks(module: Any, batch: Any, gradients: Any) -> None:
    gradients()
    Plain(module.parameters()).step()


@pytest.mark.parametrize("step", [by_hand, by_hand_past_autograd, own_without_hooks])
@pytest.mark.parametrize("rule", [EWC, SynapticIntelligence])
def test_the_first_step_that_cannot_be_heard_raises(step: Callable[..., None], rule: Any) -> None:
    trainer, module = make_trainer(rule()), ByHand(step)
    with pytest.raises(MisconfigurationException, match=r"net\.0\.weight.*changed.*configure_optimizers"):
        trainer.fit(module, loader(*task(0)))
    assert trainer.fit_loop.total_batch_idx == 0


def test_some_weights_whose_steps_are_not_heard() -> None:
    def step(module: Any, batch: Any, gradients: Any) -> None:
        gradients()
        module.optimizers().step()
        Plain(module.net[2].parameters()).step()

    model = ByHand(step, lambda weights: sgd(list(weights)[:2]))
    with pytest.raises(MisconfigurationException, match=r"net\.2\.weight.*changed"):
        make_trainer(EWC()).fit(model, loader(*task(0)))


def test_weights_that_are_changed_on_purpose_are_let_be() -> None:
    """A teacher that follows by averaging, and accumulated batches in which nobody steps."""

    class Teaching(Net):
        def __init__(self) -> None:
            super().__init__(plain_net(), lambda weights: sgd(self.net.parameters()))
            self.teacher = nn.Linear(2, 2)

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.teacher.weight.data.mul_(0.9)

    rule = EWC()
    fit_tasks(Teaching(), rule, accumulate_grad_batches=3, shuffle=False)
    assert rule.tasks == 2


def test_an_optimizer_whose_step_cannot_be_replaced_is_refused_before_the_first() -> None:
    with pytest.raises(MisconfigurationException, match=r"Sealed cannot be heard.*super\(\)\.__init__"):
        make_trainer(EWC()).fit(Overriding(usual_step, Sealed), loader(*task(0)))


def test_losses_in_place_of_a_closure_are_refused() -> None:
    class Surgery(torch.optim.SGD):
        def step(self, losses: Any) -> None:  # type: ignore[override]
            sum(losses).backward()
            super().step()

    def step(module: Any, batch: Any, gradients: Any) -> None:
        module.optimizers(use_pl_optimizer=False).step([module.loss(batch)])

    with pytest.raises(MisconfigurationException, match="was given a list in place of a closure"):
        make_trainer(EWC()).fit(ByHand(step, lambda w: Surgery(w, lr=0.1)), loader(*task(0)))


def test_an_inner_optimizer_that_is_hidden_is_refused() -> None:
    class Hiding(Delegating):
        inner = property(lambda self: self.find(), lambda self, inner: None)

        def __init__(self, inner: torch.optim.Optimizer) -> None:
            super().__init__(inner)
            self.find = lambda: inner

        def step(self, closure: Any = None) -> Any:
            loss = closure()
            self.find().step()
            return loss

    with pytest.raises(MisconfigurationException, match="Hiding steps SGD within its own step"):
        make_trainer(EWC()).fit(Overriding(usual_step, lambda w: Hiding(sgd(w))), loader(*task(0)))


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, partial(torch.optim.SGD, maximize=True)])
def test_an_unsuitable_optimizer_that_the_trainer_does_not_know_is_refused(kind: Any) -> None:
    def step(module: Any, batch: Any, gradients: Any) -> None:
        kind(module.parameters(), lr=0.1).step(gradients)

    with pytest.raises(MisconfigurationException, match=r"first-order optimizer|maximize=True"):
        make_trainer(EWC()).fit(ByHand(step), loader(*task(0)))


# -- the loss scale of mixed precision ---------------------------------------------------------------------


def half() -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**12))


def test_gradients_that_are_still_scaled_are_refused() -> None:
    with pytest.raises(MisconfigurationException, match=r"multiplied by the loss scale.*unscale_"):
        make_trainer(EWC(), plugins=[half()]).fit(ByHand(raw), loader(*task(0)))


def test_gradients_that_the_module_unscales_are_like_any_other() -> None:
    def step(module: Any, batch: Any, gradients: Any) -> None:
        scaler = module.trainer.precision_plugin.scaler
        gradients()
        optimizer = module.optimizers(use_pl_optimizer=False)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()

    assert_equal(trained(ByHand(step), plugins=[half()]), trained(ByHand(wrapped), plugins=[half()]))


@pytest.mark.parametrize("optimizer", [lambda w: Delegating(sgd(w)), lambda w: Lookahead(sgd(w))])
def test_an_overflow_under_a_wrapper_leaves_no_trace(optimizer: Any) -> None:
    class Overflowing(Overriding):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * torch.inf if batch_idx == 1 else loss

    rule = EWC()
    fit_tasks(Overflowing(usual_step, optimizer), rule, plugins=[half()])
    assert all(t.isfinite().all() for t in state(rule).values())


# -- when it is over ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [sgd, lambda w: Lookahead(sgd(w)), Plain])
def test_after_a_fit_the_optimizers_are_on_their_own_again(optimizer: Any) -> None:
    module, rule = Overriding(usual_step, optimizer), EWC(100.0)
    trainer = fit_tasks(module, rule)
    (own,) = trainer.optimizers
    assert "step" not in vars(own)
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    before = [p.grad.clone() for p in module.parameters()]
    own.step()
    assert all(torch.equal(p.grad, b) for p, b in zip(module.parameters(), before, strict=True))


def test_a_fit_that_was_refused_leaves_no_hook() -> None:
    module, rule = Overriding(usual_step, lambda w: [torch.optim.LBFGS(w)]), EWC()
    trainer = make_trainer(rule)
    before = len(torch_optimizer._global_optimizer_pre_hooks)
    with pytest.raises(MisconfigurationException, match="LBFGS"):
        trainer.fit(module, loader(*task(0)))
    assert len(torch_optimizer._global_optimizer_pre_hooks) <= before
