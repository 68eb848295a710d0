"""KFAC-Laplace on a real Trainer: against a plain loop with dense matrices, and odd models."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_callbacks import KFACLaplace
from cl_callbacks.functional import fisher_cotangents
from tests.gradients.networks import TransformerBlock
from tests.references.fisher import exact_fisher
from tests.references.kronecker import linear_factors, nearest_kronecker_sum, quadratic
from tests.small import CLASSES, FEATURES, Net, fit_tasks, loader, make_trainer, plain_net, task, weights


@pytest.mark.parametrize("accumulate", ["list", "nearest"])
@pytest.mark.parametrize("optimizer", [partial(torch.optim.SGD, lr=0.05), partial(torch.optim.Adam, lr=0.02)])
def test_equals_a_plain_loop_with_the_penalty_in_the_loss(accumulate: Any, optimizer: Any) -> None:
    torch.manual_seed(0)
    model = Net(plain_net(), optimizer).double()
    slow = copy.deepcopy(model.net)
    tasks = [(x.double(), y) for x, y in map(task, range(3))]
    rule = KFACLaplace(5.0, accumulate=accumulate, estimator="exact", samples=None, decay=0.8, normalize=None)
    trainer = make_trainer(rule, max_epochs=2)
    for index, data in enumerate(tasks):
        trainer.fit_loop.max_epochs = 2 * (index + 1)
        trainer.fit(model, loader(*data))

    names = ("0", "2")
    memory: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
    anchor: dict[str, Tensor] = {}

    def penalty() -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for name in names:
            layer = slow.get_submodule(name)
            for pair in memory[name]:
                change = layer.weight - anchor[f"{name}.weight"], layer.bias - anchor[f"{name}.bias"]
                total = total + 2.5 * quadratic(*pair, *change)
        return total

    for x, y in tasks:
        stepping = optimizer(slow.parameters())
        for _ in range(2):
            for start in range(0, len(x), 8):
                loss = F.cross_entropy(slow(x[start : start + 8]), y[start : start + 8]) + penalty()
                stepping.zero_grad()
                loss.backward()
                stepping.step()
        anchor = {name: p.detach().clone() for name, p in slow.named_parameters()}
        cotangents = list(fisher_cotangents(slow(x)))
        for name in names:
            older = [(a, 0.8 * g) for a, g in memory[name]]
            memory[name] = [*older, linear_factors(slow, name, x, cotangents)]
            if accumulate == "nearest":
                memory[name] = [nearest_kronecker_sum(memory[name])]
    torch.testing.assert_close(weights(model), weights(slow), rtol=1e-7, atol=1e-9)
    with torch.no_grad():
        for p in [*model.parameters(), *slow.parameters()]:
            p.add_(0.1)
    torch.testing.assert_close(rule.penalty(rule.synapses.view), penalty().detach(), rtol=1e-6, atol=1e-10)


def test_what_has_no_factors_gets_the_diagonal(caplog: pytest.LogCaptureFixture) -> None:
    class Block(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self(batch[0]), batch[1])

    torch.manual_seed(0)
    net, x = TransformerBlock(), torch.randn(8, 3, 8)
    model = Block(net, partial(torch.optim.SGD, lr=0.0))
    rule = KFACLaplace(1.0, estimator="exact", samples=None, normalize=None)
    with caplog.at_level("INFO"):
        make_trainer(rule).fit(model, loader(x, torch.randint(4, (8,))))
    # The packed projections in front of attention are no Linear.
    inner = ("self_attn.out_proj", "linear1", "linear2")
    factored = {"net.head.weight", *(f"net.block.{name}.weight" for name in inner)}
    assert set(rule.memory.factors) == factored
    expected = exact_fisher(net.eval(), x)
    for name, found in zip(rule.synapses.view.names, rule.synapses.view["importance"], strict=True):
        covered = name in factored or name.replace("bias", "weight") in factored
        value = expected[name.removeprefix("net.")]
        torch.testing.assert_close(found, torch.zeros_like(value) if covered else value)
    assert "4 layers in factors" in caplog.text
    assert "self_attn.in_proj_weight" in caplog.text


def test_a_convolution_and_norms() -> None:
    net = nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Flatten(), nn.Linear(48, CLASSES),
    )  # fmt: skip
    model, rule = Net(net), KFACLaplace(10.0, normalize=None)
    fit_tasks(model, rule, tasks=3)
    assert set(rule.memory.factors) == {"net.1.weight", "net.5.weight"}
    assert rule.memory.factors["net.1.weight"][0].inputs.shape == (5, 5)
    assert rule.synapses.view["importance"][2].sum() > 0  # the norm's
    assert weights(model).isfinite().all()


def test_a_bias_that_is_left_out_rests() -> None:
    """Its column takes part in the curvature, and nothing pulls the bias itself."""
    model, rule = Net(plain_net()), KFACLaplace(100.0, exclude="bias", normalize=None)
    fit_tasks(model, rule, tasks=1, max_epochs=5)
    view = rule.synapses.view
    assert view.names == ["net.0.weight", "net.2.weight"]
    with torch.no_grad():
        model.net[0].bias.add_(1.0)
    assert rule.penalty(view) == 0
    assert rule.memory.factors["net.0.weight"][0].inputs.shape == (FEATURES + 1, FEATURES + 1)


def test_one_bias_alone_is_a_diagonal() -> None:
    model, rule = Net(plain_net()), KFACLaplace(1.0, parameters="bias", normalize=None)
    fit_tasks(model, rule, tasks=2)
    assert not rule.memory.factors
    assert all(t.sum() > 0 for t in rule.synapses.view["importance"])


def test_weights_of_two_modules_are_a_diagonal() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, CLASSES)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.b(torch.tanh(self.a(x)))))

    rule = KFACLaplace(1.0, normalize=None)
    fit_tasks(Net(Tied()), rule)
    assert set(rule.memory.factors) == {"net.head.weight"}


def test_weight_and_bias_in_two_optimizers() -> None:
    """Each is pulled by the whole penalty of their layer."""

    class Split(Net):
        automatic_optimization = False

        def configure_optimizers(self) -> Any:
            weight, bias = ([p for n, p in self.named_parameters() if k in n] for k in ("weight", "bias"))
            return [torch.optim.SGD(weight, lr=0.1), torch.optim.SGD(bias, lr=0.1)]

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
            for optimizer in self.optimizers():
                optimizer.step()

    model, rule = Split(plain_net()), KFACLaplace(5.0, normalize=None)
    fit_tasks(model, rule, tasks=1)
    view = rule.synapses.view
    with torch.no_grad():
        for p in view.parameters:
            p.add_(0.1 * torch.randn_like(p))  # one number for all would be nothing to a softmax
    whole = [torch.zeros_like(p) for p in view.parameters]
    rule.pull(view, whole)
    for half in (view.parameters[::2], view.parameters[1::2]):
        part = view.restrict_to(half)
        pull = [torch.zeros_like(p) for p in part.parameters]
        rule.pull(part, pull)
        for name, found in zip(part.names, pull, strict=True):
            torch.testing.assert_close(found, whole[view.names.index(name)])


def test_a_bias_is_held_also_when_its_weight_is_frozen() -> None:
    model, rule = Net(plain_net()), KFACLaplace(5.0, normalize=None)
    fit_tasks(model, rule, tasks=1)
    view = rule.synapses.view
    with torch.no_grad():
        for p in view.parameters[1::2]:
            p.add_(0.1 * torch.randn_like(p))
    whole = [torch.zeros_like(p) for p in view.parameters]
    rule.pull(view, whole)
    model.net[0].weight.requires_grad_(False)
    model.net[2].weight.requires_grad_(False)
    rule._place(model)
    view = rule.synapses.view
    assert view.names == ["net.0.bias", "net.2.bias"]
    pull = [torch.zeros_like(p) for p in view.parameters]
    rule.pull(view, pull)
    assert all(map(torch.equal, pull, whole[1::2]))
    assert all(g.abs().sum() > 0 for g in pull)


def test_layers_that_a_task_does_not_use_decay_too() -> None:
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head, self.through = nn.Linear(6, 6), nn.Linear(6, CLASSES), True

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.a(x) if self.through else F.linear(x, self.a.weight, self.a.bias))

    model, rule = Net(Skipping()), KFACLaplace(1.0, decay=0.5, normalize=None)
    fit_tasks(model, rule, tasks=1)
    before = rule.memory.factors["net.a.weight"][0]
    model.net.through = False
    fit_tasks(model, rule, tasks=1)
    ((inputs, outputs),) = rule.memory.factors["net.a.weight"]
    assert torch.equal(inputs, before.inputs)
    torch.testing.assert_close(outputs, 0.5 * before.outputs)
    assert rule.synapses.view["importance"][0].sum() > 0


def test_layers_that_are_gone_are_forgotten_and_new_biases_start_free() -> None:
    class Two(nn.Module):
        def __init__(self, **layers: nn.Module) -> None:
            super().__init__()
            for name, layer in layers.items():
                self.add_module(name, layer)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.children():
                x = layer(x)
            return x

    rule = KFACLaplace(10.0, strict=False, normalize=None)
    first = nn.Linear(FEATURES, 8, bias=False)
    fit_tasks(Net(Two(first=first, head=nn.Linear(8, CLASSES))), rule, tasks=1)
    assert rule.memory.factors["net.first.weight"][0].inputs.shape == (6, 6)
    with_bias = nn.Linear(FEATURES, 8)
    with_bias.weight = first.weight
    fit_tasks(Net(Two(first=with_bias, other=nn.Linear(8, CLASSES))), rule, tasks=1)
    assert set(rule.memory.factors) == {"net.first.weight", "net.other.weight"}
    assert rule.memory.factors["net.first.weight"][0].inputs.shape == (7, 7)


def test_the_proximal_step_is_that_of_the_present_curvature() -> None:
    """After several tasks, and instead of a pull."""
    model, rule = Net(plain_net()), KFACLaplace(5.0, proximal=True, normalize=None)
    fit_tasks(model, rule, tasks=3)
    view = rule.synapses.view
    with torch.no_grad():
        for p in view.parameters:
            p.add_(0.1 * torch.randn_like(p))  # one number for all would be nothing to a softmax
    pull = [torch.zeros_like(p) for p in view.parameters]
    rule.pull(view, pull)
    assert all(g.abs().sum() == 0 for g in pull)
    (pair,) = rule.memory.factors["net.2.weight"]
    before = [(p - a).detach() for p, a in zip(view.parameters[2:], view["anchor"][2:], strict=True)]
    change = torch.cat([before[0], before[1].unsqueeze(1)], 1)
    matrix = torch.eye(change.numel()) + 50.0 * torch.kron(pair.outputs, pair.inputs)
    expected = torch.linalg.solve(matrix, change.flatten()).view_as(change)
    with torch.no_grad():
        rule.memory.relax(view, view.names, [50.0] * 4)
    torch.testing.assert_close(view.parameters[2] - view["anchor"][2], expected[:, :-1], rtol=1e-4, atol=1e-6)


def test_the_diagonal_decays_too() -> None:
    found = []
    for decay in (0.0, 1.0):
        torch.manual_seed(0)
        rule = KFACLaplace(0.0, parameters="bias", decay=decay, normalize=None)
        fit_tasks(Net(plain_net()), rule, tasks=2)
        found.append(rule.synapses.view["importance"][0])
    assert (found[1] > found[0]).all()


def test_a_proximal_step_needs_one_rate_for_a_layer() -> None:
    def optimizer(parameters: Any) -> Any:
        first, *rest = parameters
        return torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": rest}], lr=0.2)

    with pytest.raises(ValueError, match="one learning rate"):
        fit_tasks(Net(plain_net(), optimizer), KFACLaplace(1.0, proximal=True, normalize=None))


def test_the_list_grows_and_the_nearest_does_not() -> None:
    for accumulate, length in (("list", 4), ("nearest", 1)):
        rule = KFACLaplace(1.0, accumulate=accumulate, normalize=None)
        fit_tasks(Net(plain_net()), rule, tasks=4)
        assert {len(terms) for terms in rule.memory.factors.values()} == {length}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"accumulate": "sum"}, "'list' or 'nearest'"),
        ({"accumulate": "list", "proximal": True}, "no cheap proximal step"),
        ({"decay": 2.0}, "0 to 1"),
        ({"decay": "mean"}, "0 to 1"),
        ({"estimator": "batched"}, "estimator must be"),
        ({"samples": 0}, "at least 1"),
    ],
)
def test_arguments_that_cannot_work(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        KFACLaplace(1.0, **arguments, normalize=None)
