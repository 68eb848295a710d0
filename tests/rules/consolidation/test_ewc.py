"""EWC on a real Trainer: against a plain training loop, and what it promises."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cl_callbacks import EWC, EpochBoundaries
from tests.references.ewc import train_sequence
from tests.references.fisher import exact_fisher, gaussian_fisher
from tests.small import FEATURES, Net, fit_tasks, loader, make_trainer, plain_net, task, weights


@pytest.mark.parametrize("anchors", ["latest", "each"])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_equals_a_plain_loop_with_the_penalty_in_the_loss(anchors: str, optimizer: Any) -> None:
    torch.manual_seed(0)
    model = Net(plain_net(), lambda p: optimizer(p, lr=0.05)).double()
    slow = copy.deepcopy(model.net)
    tasks = [(x.double(), y) for x, y in map(task, range(4))]
    ewc = EWC(strength=3.0, anchors=anchors, decay=0.9, samples=None, normalize=None)
    trainer = make_trainer(ewc, max_epochs=2)
    for index, (x, y) in enumerate(tasks):
        trainer.fit_loop.max_epochs = 2 * (index + 1)
        trainer.fit(model, loader(x, y))
    reference = train_sequence(
        slow,
        tasks,
        strength=3.0,
        epochs=2,
        batch_size=8,
        make_optimizer=lambda p: optimizer(p, lr=0.05),
        anchors=anchors,
        fisher=lambda m, x, y: exact_fisher(m, x),
        decay=0.9,
    )
    assert ewc.tasks == 4
    torch.testing.assert_close(weights(model), weights(slow), rtol=1e-7, atol=1e-9)
    expected = reference.penalty(dict(slow.named_parameters()), 3.0).detach()
    torch.testing.assert_close(ewc.penalty(ewc.synapses.view), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.slow
def test_each_anchor_equals_two_hundred_stored_tasks() -> None:
    """The closed form of the sum, through the whole callback, to 1e-6; state does not grow."""
    torch.manual_seed(0)
    model = Net(plain_net())
    stored: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []

    class Keeping(EWC):
        def estimate(self, *args: Any) -> Any:
            measured = super().estimate(*args)
            live = [p.detach().double() for p in self.synapses.view.parameters]
            stored.append(([f.double() for f in measured], [p.clone() for p in live]))
            return measured

    ewc = Keeping(strength=2.0, anchors="each", samples=8, normalize=None)
    trainer = make_trainer(ewc, EpochBoundaries(1), max_epochs=200)
    trainer.fit(model, loader(*task(0, samples=16)))
    assert len(stored) == ewc.tasks == 200
    view = ewc.synapses.view
    theta = [p.detach().double() + 0.1 for p in view.parameters]
    slow_pull = [2.0 * sum(f[i] * (t - anchor[i]) for f, anchor in stored) for i, t in enumerate(theta)]
    slow_penalty = sum(
        (f[i] * (t - anchor[i]) ** 2).sum() for f, anchor in stored for i, t in enumerate(theta)
    )
    with torch.no_grad():
        for p in view.parameters:
            p.add_(0.1)
    pull = [torch.zeros_like(p) for p in view.parameters]
    with torch.no_grad():
        ewc.pull(view, pull)
    for fast, slow in zip(pull, slow_pull, strict=True):
        assert (fast - slow).norm() <= 1e-6 * slow.norm()
    torch.testing.assert_close(ewc.penalty(view).double(), slow_penalty, rtol=1e-6, atol=0)
    state = ewc.state_dict()["synapses"]
    assert sum(t.numel() for field in state.values() for t in field.values()) == 2 * len(weights(model))


def test_keeps_what_it_learned() -> None:
    """The point of it all: the first task's loss after the second."""
    losses = {}
    for strength in (0.0, 1000.0):
        torch.manual_seed(0)
        model = Net(plain_net())
        fit_tasks(model, EWC(strength, normalize=None), max_epochs=30)
        x, y = task(0)
        losses[strength] = F.cross_entropy(model(x), y).item()
    assert losses[1000.0] < 0.5 * losses[0.0]


def test_regression() -> None:
    class Regression(Net):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return F.mse_loss(self(batch[0]), batch[1])

    torch.manual_seed(0)
    model = Regression(nn.Linear(FEATURES, 2))
    x = torch.randn(20, FEATURES)
    ewc = EWC(1.0, likelihood="gaussian", samples=None, normalize=None)
    make_trainer(ewc).fit(model, loader(x, torch.randn(20, 2)))
    expected = gaussian_fisher(model.net, x)["weight"]
    torch.testing.assert_close(ewc.synapses.view["importance"][0], expected)


def test_regression_with_one_number_per_sample() -> None:
    class Regression(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x).squeeze(-1)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return F.mse_loss(self(batch[0]), batch[1])

    x = torch.randn(20, FEATURES)
    for estimator in ("exact", "sampled", "empirical"):
        model, ewc = (
            Regression(nn.Linear(FEATURES, 1)),
            EWC(1.0, estimator=estimator, likelihood="gaussian", normalize=None),
        )
        make_trainer(ewc).fit(model, loader(x, torch.randn(20)))
        if estimator == "exact":
            found = ewc.synapses.view["importance"][0]
            torch.testing.assert_close(found, gaussian_fisher(model.net, x)["weight"])


def test_a_sample_of_the_task_is_drawn_without_replacement() -> None:
    seen: list[float] = []

    class Looking(EWC):
        def outputs(self, pl_module: Any, batch: Any) -> Any:
            seen.extend(batch[0][:, 0].tolist())
            return super().outputs(pl_module, batch)

        def estimate(self, *args: Any) -> Any:
            seen.clear()  # what was tried on the first batch
            return super().estimate(*args)

    x, y = task(0, samples=40)
    ewc = Looking(1.0, samples=20)
    make_trainer(ewc).fit(Net(), loader(x, y, shuffle=True))
    assert len(set(seen)) == 20
    assert set(seen) < set(x[:, 0].tolist())


def test_importance_travels_as_a_file(tmp_path: Path) -> None:
    model = Net()
    source = EWC(10.0, anchors="each", normalize=None)
    fit_tasks(model, source)
    source.save_importance(tmp_path / "fisher.safetensors")
    target = EWC(10.0, anchors="each", importance_file=tmp_path / "fisher.safetensors", normalize=None)
    assert target.tasks == 2
    make_trainer(target, max_steps=1).fit(model, loader(*task(5)))
    # One task more by now: with its Fisher taken off, the file's content is left.
    fresh = EWC(10.0, anchors="each", importance_file=tmp_path / "fisher.safetensors", normalize=None)
    fresh._place(model)
    for old, new in zip(source.synapses.view["anchor"], fresh.synapses.view["anchor"], strict=True):
        assert torch.equal(old, new)
    torch.testing.assert_close(source.penalty(fresh.synapses.view), fresh.penalty(fresh.synapses.view))


def test_a_file_of_which_nothing_fits_is_said_and_counts_no_task(tmp_path: Path) -> None:
    source = EWC(10.0, samples=None, anchors="each")
    fit_tasks(Net(plain_net()), source, tasks=2)
    source.save_importance(tmp_path / "file")

    class Other(Net):
        def __init__(self) -> None:
            super().__init__()
            self.model = plain_net()
            del self.net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x)

    fresh = EWC(10.0, samples=None, anchors="each", importance_file=tmp_path / "file", strict=False)
    assert fresh.tasks == 2
    with pytest.warns(match=r"strict=False\): none of the parameters .*net.0.bias.* in this model \(model.0"):
        fit_tasks(Other(), fresh, tasks=1)
    assert fresh.tasks == 1  # its own
    plain = EWC(10.0, samples=None, anchors="each")
    fit_tasks(Other(), plain, tasks=1)
    assert fresh.offset == plain.offset
    restored = EWC(10.0, strict=False)
    restored.load_state_dict(source.state_dict())
    with pytest.warns(match="no task is counted"):
        fit_tasks(Other(), restored, tasks=1)
    assert restored.tasks == 1
    with pytest.raises(ValueError, match="does not fit this model"):
        fit_tasks(Other(), EWC(10.0, anchors="each", importance_file=tmp_path / "file"), tasks=1)
    half = EWC(10.0, samples=None, anchors="each", importance_file=tmp_path / "file", strict=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*none of the parameters.*")
        fit_tasks(Net(nn.Sequential(nn.Linear(FEATURES, 8))), half, tasks=1)
    assert half.tasks == 3


def test_importance_file_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="before the first task"):
        EWC(1.0, normalize=None).save_importance(tmp_path / "x")
    with pytest.raises(ValueError, match="not a file"):
        EWC(1.0, importance_file=tmp_path / "none", normalize=None)
    from safetensors.torch import save_file

    save_file({"importance/w": torch.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(ValueError, match=r"holds the importance {.rule.: .none."):
        EWC(1.0, importance_file=tmp_path / "foreign", normalize=None)
    source = EWC(1.0, normalize=None)
    make_trainer(source).fit(Net(), loader(*task(0)))
    source.save_importance(tmp_path / "exact")
    with pytest.raises(ValueError, match=r"'estimator': 'exact'.* this rule measures .*'empirical'"):
        EWC(1.0, estimator="empirical", importance_file=tmp_path / "exact", normalize=None)
    mine = type("MyEWC", (EWC,), {})
    assert mine(1.0, importance_file=tmp_path / "exact", normalize=None).tasks == 1
    save_file({"w": torch.zeros(1)}, tmp_path / "other", EWC(1.0, normalize=None).kind)
    with pytest.raises(ValueError, match="holds 'w'"):
        EWC(1.0, importance_file=tmp_path / "other", normalize=None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"estimator": "batched"}, "'exact', 'sampled', 'empirical' or 'logits_reversal'"),
        ({"likelihood": "poisson"}, "likelihood must be 'categorical'"),
        ({"likelihood": "gaussian", "estimator": "logits_reversal"}, "only"),
        ({"anchors": "all"}, "anchors must be 'latest' or 'each'"),
        ({"decay": 1.5}, "0 to 1"),
        ({"samples": 0}, "at least 1"),
    ],
)
def test_arguments_that_cannot_work(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EWC(**({"strength": 1.0} | arguments), normalize=None)


def test_batches_without_labels_are_refused_before_the_first_step() -> None:
    class Unlabelled(Net):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            raise AssertionError("trained")

    x, _ = task(0)
    for batch, said in [(x, "without labels"), ((x, x, x), "override `outputs")]:
        data = torch.utils.data.DataLoader(
            list(zip(*batch, strict=True)) if isinstance(batch, tuple) else x, batch_size=4
        )
        with pytest.raises((ValueError, TypeError), match=said):
            make_trainer(EWC(1.0, estimator="empirical", normalize=None)).fit(Unlabelled(), data)


def test_outputs_without_a_gradient_are_refused() -> None:
    class Detached(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x).detach()

    with pytest.raises(ValueError, match="outputs of Detached carry no gradient"):
        make_trainer(EWC(1.0, normalize=None)).fit(Detached(), loader(*task(0)))


def test_a_task_that_ends_with_broken_weights_is_not_remembered() -> None:
    class Exploding(Net):
        def on_train_batch_end(self, *args: Any) -> None:
            if self.current_epoch == 1:
                self.net[0].weight.data.fill_(torch.nan)

    ewc = EWC(1.0, normalize=None)
    model = Exploding()
    with pytest.warns(UserWarning, match="not finite at the end of task 1"):
        make_trainer(ewc, EpochBoundaries(1), max_epochs=2).fit(model, loader(*task(0)))
    assert ewc.tasks == 1
    assert all(t.isfinite().all() for t in ewc.synapses.view["importance"] + ewc.synapses.view["anchor"])


def test_samples_that_are_not_finite_never_enter_the_state() -> None:
    x, y = task(0)
    x[3] = torch.inf

    class Careful(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            keep = batch[0].isfinite().all(1)
            return super().training_step((batch[0][keep], batch[1][keep]), batch_idx)

    ewc = EWC(1.0, samples=None, normalize=None)
    with pytest.warns(UserWarning, match="1 of 24 samples"):
        make_trainer(ewc).fit(Careful(plain_net()), loader(x, y))
    assert all(t.isfinite().all() for t in ewc.synapses.view["importance"])
    broken = EWC(1.0, samples=None, normalize=None)
    with pytest.warns(UserWarning, match="no sample of task 0"):
        make_trainer(broken).fit(
            type("Skipping", (Net,), {"training_step": lambda self, b, i: None})(plain_net()),
            loader(torch.full_like(x, torch.nan), y),
        )
    assert broken.tasks == 0


def test_a_batch_with_gradients_that_are_not_finite_never_enters_the_state() -> None:
    x, y = task(0)
    x[3] = 0.0

    class Root(nn.Module):
        """At 0 its outputs are finite and its slope is not."""

        def __init__(self) -> None:
            super().__init__()
            self.scale, self.head = nn.Parameter(torch.ones(FEATURES)), nn.Linear(FEATURES, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head((x.abs() * self.scale).sqrt())

    class Careful(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            keep = batch[0].ne(0).all(1)
            return super().training_step((batch[0][keep], batch[1][keep]), batch_idx)

    ewc = EWC(1.0, samples=None, normalize=None)
    with pytest.warns(UserWarning, match="8 of 24 samples"):
        make_trainer(ewc).fit(Careful(Root()), loader(x, y))
    assert ewc.tasks == 1
    for t in ewc.synapses.view["importance"]:
        assert t.isfinite().all() and t.sum() > 0


def test_a_lstm_in_a_trainer() -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.rnn(x.unsqueeze(2))[0][:, -1])

    ewc = EWC(1.0, normalize=None)
    fit_tasks(Net(Sequence()), ewc)
    assert ewc.tasks == 2
    assert all(t.sum() > 0 for t in ewc.synapses.view["importance"])
