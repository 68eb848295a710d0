"""What every rule inherits: hooks that meet the real optimizer step, selection, checkpoints, logs."""

from __future__ import annotations

import csv
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from cl_callbacks import EWC, EpochBoundaries, FitBoundaries, SynapticCallback
from cl_callbacks.synapses.step import Step
from cl_callbacks.synapses.view import SynapseView
from tests.small import CLASSES, FEATURES, Net, fit_tasks, loader, make_trainer, plain_net, task, weights


class Recorder(SynapticCallback):
    """Writes down every step; pulls every weight by a constant."""

    needs = frozenset({"gradients", "updates"})

    def __init__(self, amount: float = 0.0, **selection: Any) -> None:
        super().__init__(**selection)
        self.amount = amount
        self.gradients: list[Tensor] = []
        self.updates: list[Tensor] = []

    def pull(self, synapses: SynapseView, gradients: list[Tensor]) -> None:
        torch._foreach_add_(gradients, self.amount)

    def observe(self, step: Step) -> None:
        self.gradients.append(torch.cat([g.flatten() for g in step.gradients]))
        self.updates.append(torch.cat([u.flatten() for u in step.updates]))


def record(model: Net, *rules: Any, data: Any = None, **options: Any) -> Recorder:
    make_trainer(*rules, **options).fit(model, data or loader(*task(0)))
    return rules[0]


def test_accumulated_batches_are_one_step() -> None:
    """Three micro-batches of 8 in windows of 2: a whole window, and an incomplete one."""
    torch.manual_seed(0)
    model = Net(plain_net())
    whole = torch.nn.functional.cross_entropy(model(task(0)[0][:16]), task(0)[1][:16])
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(whole, list(model.parameters()))])
    rule = record(model, Recorder(), accumulate_grad_batches=2)
    assert len(rule.gradients) == 2
    torch.testing.assert_close(rule.gradients[0], expected)


@pytest.mark.parametrize("pull", [0.0, 1.0])
def test_clipping_and_pulls_do_not_reach_the_observed_gradient(pull: float) -> None:
    seen = {}
    for clip in (None, 1e-3):
        torch.manual_seed(0)
        model = Net(plain_net(), lambda p: torch.optim.SGD(p, lr=0.1))
        puller = Recorder(pull, name="puller")
        rule = record(model, Recorder(), puller, gradient_clip_val=clip)
        seen[clip] = rule
        assert len(rule.gradients) == 3
        torch.testing.assert_close(torch.stack(rule.updates), torch.stack(puller.updates))
    assert torch.equal(seen[None].gradients[0], seen[1e-3].gradients[0])
    assert seen[1e-3].updates[0].norm() < 1.01e-4


def test_a_step_skipped_on_overflow_leaves_no_trace() -> None:
    class Overflowing(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * torch.inf if batch_idx == 1 else loss

    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    rule = record(Overflowing(plain_net()), Recorder(1.0), plugins=[plugin])
    assert len(rule.gradients) == 2
    assert torch.stack(rule.gradients + rule.updates).isfinite().all()
    # Unscaled: of the size of a gradient, not of the scaler's 65536 times it.
    assert rule.gradients[0].norm() < 10


def test_manual_optimization_with_two_optimizers() -> None:
    class Manual(Net):
        automatic_optimization = False

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (self.net[0], self.net[2])]

        def training_step(self, batch: Any, batch_idx: int) -> None:
            first, second = self.optimizers()
            first.zero_grad(), second.zero_grad()
            self.manual_backward(torch.nn.functional.cross_entropy(self(batch[0]), batch[1]))
            first.step()
            if batch_idx % 2:
                second.step()

    model = Manual(plain_net())
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in (model.net[0], model.net[2])]
    rule = record(model, Recorder())
    assert [len(u) for u in rule.updates] == [sizes[0], sizes[0], sizes[1], sizes[0]]
    for gradient, update in zip(rule.gradients, rule.updates, strict=True):
        torch.testing.assert_close(update, -0.1 * gradient, rtol=1e-4, atol=1e-7)


def test_a_step_whose_error_the_module_survives_is_none() -> None:
    class Surviving(Net):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()

            def closure() -> None:
                if batch_idx == 1:
                    raise KeyError("as planned")
                optimizer.zero_grad()
                self.manual_backward(torch.nn.functional.cross_entropy(self(batch[0]), batch[1]))

            with suppress(KeyError):
                optimizer.step(closure)

    rule = record(Surviving(plain_net()), Recorder())
    assert len(rule.gradients) == 2


def test_training_steps_that_return_nothing_are_no_steps() -> None:
    class Skipping(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    rule = record(Skipping(), Recorder())
    assert len([g for g in rule.gradients if len(g)]) == 2


def test_selection() -> None:
    model = Net()
    for arguments, expected in [
        ({}, ["net.0.weight", "net.0.bias", "net.1.weight", "net.1.bias", "net.4.weight", "net.4.bias"]),
        ({"parameters": "weight"}, ["net.0.weight", "net.1.weight", "net.4.weight"]),
        ({"parameters": [r"net\.0", r"net\.4"], "exclude": "bias"}, ["net.0.weight", "net.4.weight"]),
        ({"exclude": ["net.1", "4"]}, ["net.0.weight", "net.0.bias"]),
    ]:
        assert record(model, Recorder(**arguments)).synapses.view.names == expected


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"parameters": "conv"}, "'conv' matches no parameter of Net; its parameters are net.0.weight"),
        ({"exclude": "^weight"}, "'.weight' matches no parameter"),
        ({"parameters": "net.0", "exclude": "net"}, "leave nothing"),
    ],
)
def test_selections_that_leave_nothing(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(MisconfigurationException, match=said):
        record(Net(), Recorder(**arguments))


def test_a_module_with_nothing_to_train_is_refused() -> None:
    class Frozen(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([torch.zeros(1, requires_grad=True)])

    model = Frozen().requires_grad_(False)
    with pytest.raises(MisconfigurationException, match=r"no parameter of Frozen requires a gradient"):
        record(model, Recorder())


def test_two_rules_of_a_kind_on_the_same_parameters_need_names() -> None:
    with pytest.raises(MisconfigurationException, match="another name, such as EWC"):
        make_trainer(EWC(1.0), EWC(2.0))
    make_trainer(EWC(1.0), EWC(2.0, name="second"), EWC(3.0, parameters="head"))


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match="first-order optimizer"):
        record(Net(optimizer=torch.optim.LBFGS), Recorder())
    with pytest.raises(MisconfigurationException, match="maximize=True climbs"):
        record(Net(optimizer=partial(torch.optim.SGD, lr=0.1, maximize=True)), Recorder())
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(MisconfigurationException, match="fused=False"):
        record(Net(optimizer=partial(torch.optim.SGD, lr=0.1, fused=True)), Recorder(), plugins=[plugin])


def test_a_head_that_grows_between_tasks() -> None:
    """Class-incremental: the new classes start free, the old ones keep their importance."""

    class Growing(Net):
        def on_task_start(self, trainer: Any, pl_module: Any, task: int) -> None:
            if task == 1:
                old, self.net[2] = self.net[2], nn.Linear(8, CLASSES + 2)
                with torch.no_grad():
                    self.net[2].weight[:CLASSES] = old.weight
                (optimizer,) = trainer.optimizers
                optimizer.add_param_group({"params": list(self.net[2].parameters())})

    model, ewc = Growing(plain_net()), EWC(1000.0)
    make_trainer(ewc, EpochBoundaries(2), max_epochs=4).fit(model, loader(*task(0)))
    assert ewc.tasks == 2
    assert ewc.synapses.view["importance"][2].shape == (CLASSES + 2, 8)
    assert ewc.synapses.view.parameters[2] is model.net[2].weight


def test_parameters_unfrozen_later_join_at_the_next_task() -> None:
    class Thawing(Net):
        def on_task_start(self, trainer: Any, pl_module: Any, task: int) -> None:
            self.net[0].requires_grad_(task == 2)  # the count goes on in the second Trainer

    model, ewc = Thawing(plain_net()), EWC(1.0)
    fit_tasks(model, ewc, tasks=1)
    assert ewc.synapses.view.names == ["net.2.weight", "net.2.bias"]
    trained = fit_tasks(model, ewc, EpochBoundaries(1), tasks=1, max_epochs=2)
    assert trained is not None
    assert ewc.synapses.view.names == ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"]
    assert ewc.synapses.view["importance"][0].sum() > 0


def test_what_thaws_in_the_middle_of_a_task_is_pulled_again() -> None:
    """As finetuning callbacks do: frozen at the start of each fit, trained from some epoch on."""

    class Thawing(Net):
        def on_fit_start(self) -> None:
            self.net[0].requires_grad_(False)

        def on_train_epoch_start(self) -> None:
            self.net[0].requires_grad_(self.current_epoch % 20 >= 2)

    moved = {}
    for strength in (0.0, 1000.0):
        torch.manual_seed(0)
        model = Thawing(plain_net())
        fit_tasks(model, ewc := EWC(strength), tasks=1, max_epochs=20)
        before = model.net[0].weight.detach().clone()
        trainer = make_trainer(ewc, FitBoundaries(), max_epochs=20)
        trainer.fit(model, loader(*task(1)))
        moved[strength] = (model.net[0].weight - before).norm().item()
    assert moved[1000.0] < 0.5 * moved[0.0]


def test_what_a_task_unfreezes_is_observed_from_its_first_step() -> None:
    class Thawing(Net):
        def on_task_start(self, trainer: Any, pl_module: Any, task: int) -> None:
            self.net[0].requires_grad_(task == 1)

    rules = [Recorder(), Recorder(name="second")]
    model = Thawing(plain_net())
    record(model, *rules, EpochBoundaries(1), max_epochs=2)
    head, whole = sum(p.numel() for p in model.net[2].parameters()), weights(model).numel()
    for rule in rules:
        assert [len(g) for g in rule.gradients] == [head] * 3 + [whole] * 3


def test_checkpoints_hold_tensors_and_numbers_only(tmp_path: Path) -> None:
    ewc = EWC(1.0)
    saving = ModelCheckpoint(tmp_path, save_last=True)
    make_trainer(ewc, saving, enable_checkpointing=True).fit(Net(), loader(*task(0)))
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["callbacks"][ewc.state_key]["tasks"] == 1


def test_state_of_another_architecture_is_refused(tmp_path: Path) -> None:
    ewc, other = EWC(1.0), Net(nn.Linear(FEATURES, CLASSES))
    make_trainer(ewc).fit(Net(), loader(*task(0)))
    ewc.save_importance(tmp_path / "fisher")
    by_hand = EWC(1.0)
    by_hand.load_state_dict(ewc.state_dict())
    for foreign in (by_hand, EWC(1.0, importance_file=tmp_path / "fisher")):
        with pytest.raises(ValueError, match="does not fit this model") as error:
            make_trainer(foreign).fit(other, loader(*task(0)))
        assert "not in the model: ['net.0." in str(error.value)
        assert "without state: ['net.weight', 'net.bias']" in str(error.value)


def test_an_error_in_training_lets_go_of_the_optimizer() -> None:
    class Failing(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 1:
                raise KeyError("as planned")
            return super().training_step(batch, batch_idx)

    rule, model = Recorder(), Failing()
    trainer = make_trainer(rule)
    with pytest.raises(KeyError):
        trainer.fit(model, loader(*task(0)))
    (optimizer,) = trainer.optimizers
    assert rule._step is None
    assert not optimizer._optimizer_step_post_hooks


def test_the_penalty_is_logged_on_steps_that_log(tmp_path: Path) -> None:
    ewc = EWC(7.0, name="memory")
    logger = CSVLogger(tmp_path)
    model = Net(plain_net())
    trainer = make_trainer(ewc, EpochBoundaries(1), logger=logger, log_every_n_steps=2, max_epochs=4)
    trainer.fit(model, loader(*task(0)))
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["cl/penalty/memory"]]
    assert [int(row["step"]) for row in rows] == [1, 3, 5, 7, 9, 11]
    values = [float(row["cl/penalty/memory"]) for row in rows]
    assert values[0] == 0.0
    assert min(values[2:]) > 0.0


def test_a_compiled_submodule_keeps_its_plain_names() -> None:
    model = Net(plain_net())
    model.net = torch.compile(model.net, backend="eager")
    ewc = EWC(1.0)
    fit_tasks(model, ewc)
    assert ewc.synapses.view.names[0] == "net.0.weight"
    assert ewc.synapses.view["importance"][0].sum() > 0


def test_two_trainers_one_after_the_other_share_the_memory() -> None:
    model, ewc = Net(plain_net()), EWC(5.0)
    for index in range(3):
        make_trainer(ewc).fit(model, loader(*task(index)))
    assert ewc.tasks == 3
    assert weights(model).isfinite().all()
