"""Every rule on batches that cannot be counted or cut, in a real Trainer, against a loop over rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, TensorDataset

from cl_callbacks import (
    BGD,
    EWC,
    MAS,
    MESU,
    BatchBoundaries,
    DriftBoundaries,
    KFACLaplace,
    PlateauBoundaries,
    SynapticIntelligence,
)
from cl_callbacks.training.sample_count import SampleCount
from tests.every_rule import CONSOLIDATING, RECYCLING, REHEARSING, RULES, make
from tests.odd.batches import OWN, WITHOUT_ROWS, Centred, Odd, loader_of, odd, reading
from tests.odd.table import WITHOUT_UNITS
from tests.references.rows import exact_scores, labelled_scores, mean_over_rows, norm_scores, reversed_scores
from tests.small import Net, loader, make_trainer, task

ONLINE = [r for r in RULES if not r.startswith(("ewc", "mas", "kfac", "bgd", "mesu", "lwf", "er", "der"))]
odd_batch = pytest.mark.parametrize("name", OWN)


def expected(model: Odd, batches: list[Any], scores: Any, magnitude: Any = torch.square) -> dict[str, Tensor]:
    """Mean over the rows of all batches."""
    model.eval()
    parameters, total, rows = dict(model.named_parameters()), {}, 0
    for batch in batches:
        outputs, labels = model(batch)
        of_batch = mean_over_rows(outputs, parameters, scores(labels), magnitude)
        total = {name: total.get(name, 0) + len(outputs) * value for name, value in of_batch.items()}
        rows += len(outputs)
    return {name: value / rows for name, value in total.items()}


def assert_importance(rule: Any, wanted: dict[str, Tensor]) -> None:
    found = dict(zip(rule.synapses.view.names, rule.synapses.view["importance"], strict=True))
    assert found.keys() == wanted.keys()
    largest = float(max(value.max() for value in wanted.values()))
    assert largest > 0
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-5 * largest, msg=key)


MEASURES = {
    "exact": (lambda **o: reading(EWC)(1.0, **o), lambda y: exact_scores, torch.square),
    "empirical": (lambda **o: reading(EWC)(1.0, estimator="empirical", **o), labelled_scores, torch.square),
    "reversal": (
        lambda **o: reading(EWC)(1.0, estimator="logits_reversal", **o), reversed_scores, torch.square,
    ),
    "mas": (lambda **o: reading(MAS)(1.0, **o), lambda y: norm_scores, torch.abs),
}  # fmt: skip


@odd_batch
@pytest.mark.parametrize("measure", MEASURES)
def test_importance_is_that_of_the_rows(name: str, measure: str) -> None:
    build, scores, magnitude = MEASURES[measure]
    model, batches = odd(name, batches=2)
    rule = build(samples=None, normalize=None)
    make_trainer(rule).fit(model, loader_of(batches))
    assert rule.tasks == 1
    assert_importance(rule, expected(model, batches, scores, magnitude))


KEPT = ["packed", "time major", "graphs", "images", "task and memory", "batch norm"]


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (rule, name)
        for rule in RULES
        for name in KEPT
        if not (rule in REHEARSING and name in WITHOUT_ROWS)
        and not (rule in RECYCLING and name in WITHOUT_UNITS)
    ],
)
def test_a_boundary_that_keeps_recent_batches_serves_every_rule(rule: str, name: str) -> None:
    model, batches = odd(name, batches=4)
    built = make(rule)
    built.__class__ = reading(type(built))
    make_trainer(built, BatchBoundariesOnce(), max_epochs=1).fit(model, loader_of(batches))
    assert all(p.isfinite().all() for p in model.parameters())
    if rule in CONSOLIDATING:
        assert built.tasks == 1


class BatchBoundariesOnce(BatchBoundaries):
    """A stream of one task, whose recent batches are kept until the end of the fit."""

    def __init__(self) -> None:
        super().__init__(key=0)

    def _task_of(self, batch: Any) -> int:
        return 0


class Untouchable:
    """A batch into which nobody may look: any access but that of the module raises."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        object.__setattr__(self, "_hidden", (x, y))

    def __getattribute__(self, name: str) -> Any:
        if name in ("__class__", "to"):  # Lightning moves batches
            return object.__getattribute__(self, name)
        raise AssertionError(f"somebody looked for {name}")

    def to(self, *args: Any, **kwargs: Any) -> Untouchable:
        return self

    def __deepcopy__(self, memo: Any) -> Untouchable:
        raise AssertionError("somebody copied it")


class Blind(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = object.__getattribute__(batch, "_hidden")
        return F.cross_entropy(self(x), y)


@pytest.mark.parametrize("boundaries", [DriftBoundaries, PlateauBoundaries])
@pytest.mark.parametrize("rule", ONLINE)
def test_boundaries_and_online_rules_do_not_look_into_a_batch(boundaries: Any, rule: str) -> None:
    make_trainer(make(rule), boundaries()).fit(Blind(), loader_of([Untouchable(*task(0))] * 3))


def test_a_batch_that_cannot_be_copied_is_refused_for_those_who_read_it() -> None:
    class Streaming:
        def __init__(self, x: Tensor, y: Tensor) -> None:
            self.x, self.y, self.source = x, y, (i for i in range(3))

    class Model(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step((batch.x, batch.y), batch_idx)

    class Own(EWC):
        def outputs(self, pl_module: Any, batch: Any) -> Any:
            return pl_module(batch.x), batch.y

    class Listening(Callback):
        def on_task_end(self, trainer: Any, pl_module: Any, task: int) -> None:
            """May read the batches, for all that is known."""

    class Diary(Listening):
        reads_task_data = False

    def batches() -> Iterator[Any]:
        yield from [Streaming(*task(0))] * 3

    for callback in (Own(1.0), Listening()):
        trainer = make_trainer(callback, DriftBoundaries())
        with pytest.raises(TypeError, match=r"kept for callbacks that read data .* a Streaming cannot"):
            trainer.fit(Model(), Batches(batches))
        assert trainer.global_step == 0
    make_trainer(Diary(), SynapticIntelligence(), DriftBoundaries()).fit(Model(), Batches(batches))


def test_batches_that_were_not_kept_are_not_read_as_none() -> None:
    class Reading(SynapticIntelligence):
        def on_task_end(self, trainer: Any, pl_module: Any, task: int) -> None:
            list(boundaries.recent_batches)

    boundaries = BatchBoundariesOnce()
    with pytest.raises(RuntimeError, match="set `reads_task_data = True`"):
        make_trainer(Reading(), boundaries).fit(Net(), loader(*task(0)))


class Batches:
    """Batches that are made anew each time."""

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        return self.make()


@odd_batch
def test_kfac_measures_what_ewc_does_where_rows_cannot_be_told_apart(name: str) -> None:
    """And factors of the head, which sees one vector for each row."""
    model, batches = odd(name, batches=2)
    rule = reading(KFACLaplace)(1.0, estimator="empirical", samples=None, normalize=None)
    make_trainer(rule).fit(model, loader_of(batches))
    assert rule.tasks == 1
    wanted = expected(model, batches, labelled_scores)
    diagonal = dict(zip(rule.synapses.view.names, rule.synapses.view["importance"], strict=True))
    left = [key for key, value in diagonal.items() if value.any()]
    for key in left:
        torch.testing.assert_close(diagonal[key], wanted[key], rtol=1e-3, atol=1e-6)
    assert "net.0.weight" not in left
    if name in ("packed", "time major", "square"):
        assert {key for key in left if key.startswith("rnn")} == {k for k in diagonal if k.startswith("rnn")}
    if name in ("batch norm", "centred", "time major linear", "graphs"):
        assert "first.weight" in left


@odd_batch
@pytest.mark.parametrize("rule", [BGD, MESU])
def test_observations_are_the_rows(name: str, rule: Any) -> None:
    counts: list[int] = []

    class Noting(reading(rule)):  # type: ignore[misc]
        def observations(self, batch: Any) -> int:
            counts.append(super().observations(batch))
            return counts[-1]

    torch.manual_seed(0)
    model, batches = odd(name, 6, 3)
    batches += odd(name, 4, 2)[1] + odd(name, 9, 1)[1]
    make_trainer(Noting()).fit(model, loader_of(batches))
    assert counts == [len(model(batch)[0]) for batch in batches]


def test_sizes_that_agree_spare_a_run_of_the_network() -> None:
    runs = 0

    def rows(batch: Any) -> int:
        nonlocal runs
        runs += 1
        return len(batch["y"])

    def batch(n: int, features: int = 3) -> Any:
        return {"x": torch.zeros(5, n, features), "y": torch.zeros(n), "names": ["a"] * n}

    count = SampleCount(rows)
    assert [count(batch(n)) for n in (7, 7, 7, 7, 2, 2, 2)] == [7, 7, 7, 7, 2, 2, 2]
    assert runs == 3  # the first batch, the fourth, and the first of another size
    # A size that happened to be that of the samples, and contradicts it later.
    count, runs = SampleCount(rows), 0
    assert [count(batch(n)) for n in (3, 2, 4, 4, 5)] == [3, 2, 4, 4, 5]
    assert runs == 3
    # A length of time that is that of the samples, in a batch that has no other size to tell them.
    packed = [pack_sequence([torch.zeros(n, 2) for n in of]) for of in ((3, 2, 1), (5, 2, 1), (3, 2), (4, 3))]
    count = SampleCount(lambda batch: int(batch.batch_sizes[0]))
    assert [count(batch) for batch in packed] == [3, 3, 2, 2]
    count = SampleCount(lambda text: len(text.split()))
    assert [count(text) for text in ("a b", "a b c", "a")] == [2, 3, 1]


def test_observations_that_nothing_tells_are_refused_before_the_first_step() -> None:
    class Triples(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y, _ = batch
            return super().training_step((x, y), batch_idx)

    x, y = task(0)
    trainer = make_trainer(BGD())
    with pytest.raises(ValueError, match=r"nor do all of its tensors.*Override `outputs.*or `observations"):
        trainer.fit(Triples(), loader_of([(x, y, torch.zeros(7))] * 2))
    assert trainer.global_step == 0
    make_trainer(BGD()).fit(Triples(), loader_of([(x, y, torch.zeros(len(x)))] * 2))


def test_several_loaders_of_different_sizes() -> None:
    class Replaying(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return sum(F.cross_entropy(self(x), y) for x, y in batch.values())  # type: ignore[return-value]

    class OfTask(EWC):
        def outputs(self, pl_module: Any, batch: Any) -> Any:
            return pl_module(batch["task"][0]), batch["task"][1]

    class OfBoth(EWC):
        def outputs(self, pl_module: Any, batch: Any) -> Any:
            x, y = zip(*batch.values(), strict=True)
            return pl_module(torch.cat(x)), torch.cat(y)

    for kind, samples in ((OfTask, None), (OfBoth, None), (OfBoth, 7)):
        data = {
            "task": loader(*task(0), batch_size=8),
            "memory": DataLoader(TensorDataset(*task(1, 12)), 4),
        }
        model = Replaying(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)))
        rule = kind(1.0, samples=samples, normalize=None)
        make_trainer(rule).fit(model, CombinedLoader(data, "max_size_cycle"))
        assert rule.tasks == 1
        if samples is None:
            parts = [task(0)] if kind is OfTask else [task(0), task(1, 12)]
            x = torch.cat([x for x, _ in parts])
            wanted = mean_over_rows(model(x), dict(model.named_parameters()), exact_scores)
            assert_importance(rule, wanted)


class Lengths(torch.utils.data.Sampler):
    """Groups samples of one length into a batch."""

    def __init__(self, lengths: list[int]) -> None:
        self.groups = [[i for i, n in enumerate(lengths) if n == length] for length in sorted({*lengths})]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)


def test_batches_that_only_their_sampler_can_make_stay_as_they_are() -> None:
    class Sequences(Net):
        def __init__(self) -> None:
            super().__init__(nn.Linear(6, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.mean(1))

    lengths = [2, 5, 2, 3, 5, 5, 3]
    data = [(torch.randn(n, 6), torch.tensor(n % 3)) for n in lengths]
    for samples in (None, 2):
        rule, model = EWC(1.0, samples=samples, normalize=None), Sequences()
        make_trainer(rule).fit(model, DataLoader(data, batch_sampler=Lengths(lengths)))
        assert rule.tasks == 1
        if samples is None:
            outputs = torch.cat([model(x[None]) for x, _ in data])
            assert_importance(rule, mean_over_rows(outputs, dict(model.named_parameters()), exact_scores))


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("rule", [EWC, MAS, KFACLaplace])
def test_no_batch_of_one_sample_is_left_for_batch_statistics(rule: Any, drop_last: bool) -> None:
    """Of 17 samples in batches of 8, one is left over: the training drops it, or is given fewer here."""
    x, y = task(0, 17)
    act = nn.BatchNorm1d(8, track_running_stats=False)
    model = Net(nn.Sequential(nn.Linear(6, 8), act, nn.ReLU(), nn.Linear(8, 3)))
    built = rule(1.0, samples=None)
    trainer = make_trainer(built, limit_train_batches=2)
    trainer.fit(model, DataLoader(TensorDataset(x, y), 8, shuffle=True, drop_last=drop_last))
    assert built.tasks == 1


@pytest.mark.parametrize("rule", [EWC, MAS, KFACLaplace])
def test_noise_in_the_forward_is_said_before_the_first_step(rule: Any) -> None:
    class Noisy(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(F.dropout(x))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise KeyboardInterrupt if batch_idx else RuntimeError("the first step")

    with (
        pytest.raises(RuntimeError, match="the first step"),
        pytest.warns(UserWarning, match="forward of Noisy is random in evaluation mode"),
    ):
        make_trainer(rule(1.0)).fit(Noisy(), loader(*task(0)))


def test_what_is_wrong_with_outputs_that_were_overridden() -> None:
    """Not that they should be."""

    class Failing(EWC):
        def outputs(self, pl_module: Any, batch: Any) -> Any:
            return pl_module(batch["image"]), batch["label"]

    class Scalar(EWC):
        def outputs(self, pl_module: Any, batch: Any) -> Any:
            return F.cross_entropy(pl_module(batch[0]), batch[1])

    class Flat(MAS):
        def outputs(self, pl_module: Any, batch: Any) -> Any:
            return pl_module(batch[0]).flatten(), batch[1]

    class Nothing(MAS):
        def outputs(self, pl_module: Any, batch: Any) -> Any:
            return pl_module(batch[0]).detach().numpy(), batch[1]

    class Detached(EWC):
        def outputs(self, pl_module: Any, batch: Any) -> Any:
            return pl_module(batch[0]).detach(), batch[1]

    for rule, said in (
        (Detached(1.0), "outputs of Net carry no gradient"),
        (Failing(1.0), r"`Failing.outputs` failed on a list, a training batch of Net \(TypeError"),
        (Scalar(1.0), r"`Scalar.outputs` returned outputs of shape \(\): let it return one row per sample"),
        (Flat(1.0), r"`Flat.outputs` returned outputs of shape \(24,\) for labels of shape \(8,\)"),
        (Nothing(1.0), "`Nothing.outputs` returned outputs of ndarray: let it return one row per sample"),
    ):
        trainer = make_trainer(rule)
        with pytest.raises((RuntimeError, ValueError), match=said) as caught:
            trainer.fit(Net(), loader(*task(0)))
        assert "override" not in str(caught.value)
        assert trainer.global_step == 0


def test_a_gradient_that_no_row_has_fails_before_the_first_step() -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            raise ArithmeticError("no backward")

    class Failing(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x if self.training else Broken.apply(self.net[0](x)).repeat(1, 1)[:, :6])

    trainer = make_trainer(EWC(1.0))
    with pytest.raises(RuntimeError, match=r"could not compute the per-sample gradients of Failing.*exclude"):
        trainer.fit(Failing(), loader(*task(0)))
    assert trainer.global_step == 0


def test_data_that_can_be_read_only_once_are_refused_before_the_first_step() -> None:
    def stream() -> Iterator[Any]:
        yield from loader(*task(0))

    trainer = make_trainer(EWC(1.0))
    with pytest.raises(TypeError, match="can be read only once"):
        trainer.fit(Net(), stream())
    assert trainer.global_step == 0
    make_trainer(SynapticIntelligence()).fit(Net(), stream())


def test_hard_samples_need_batches_that_can_be_cut() -> None:
    model, batches = odd("packed", batches=3)
    trainer = make_trainer(reading(PlateauBoundaries)(hard_samples=3))
    with pytest.raises(ValueError, match="hard_samples=3 keeps single samples of batches"):
        trainer.fit(model, loader_of(batches))
    assert trainer.global_step == 0
    model, batches = odd("dataclass", batches=3)
    make_trainer(reading(PlateauBoundaries)(hard_samples=3)).fit(model, loader_of(batches))


def test_centred_samples_are_not_measured_alone() -> None:
    """Alone, a centred sample is 0, and so would be its importance for the first layer."""
    model = Net(nn.Sequential(nn.Linear(6, 8), Centred(), nn.Tanh(), nn.Linear(8, 3)))
    rule = EWC(1.0, normalize=None)
    make_trainer(rule).fit(model, loader(*task(0)))
    assert rule.synapses.view["importance"][0].sum() > 0
