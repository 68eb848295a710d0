"""State that lives on another device than the parameters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cl_callbacks import EWC, EpochBoundaries, KFACLaplace, SynapticCallback, SynapticIntelligence
from cl_callbacks.synapses.offload import Offload
from cl_callbacks.synapses.state import Synapses
from tests.every_rule import MATRICES_ONLY, PULLING, RULES, WITHOUT_STATE, assert_same, make, state
from tests.rules.test_contract import Told
from tests.small import CLASSES, Net, fit_tasks, loader, make_trainer, plain_net, task, weights

# Some rules keep nothing of weights.
keeping_rule = pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in WITHOUT_STATE])
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

COPIES = {"copy_", "_foreach_copy_", "_to_copy", "clone", "detach", "pin_memory"}


class TwoDevices(TorchDispatchMode):
    """Has operations mix the resting state of a rule with other tensors only where devices could do so."""

    def __init__(self, rule: SynapticCallback) -> None:
        super().__init__()
        self.rule = rule
        self.met = 0

    def resting(self) -> set[int]:
        found = [t for named in self.rule.synapses._state.values() for t in named.values()]
        if isinstance(self.rule, KFACLaplace):
            found += [t for terms in self.rule.memory.factors.values() for term in terms for t in term]
            found += [t for eigen in self.rule.memory._eigen.values() for t in eigen]
        return {t.untyped_storage().data_ptr() for t in found if t.numel()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [t for t in tree_leaves((args, kwargs or {})) if isinstance(t, Tensor) and t.dim()]
        resting = self.resting()
        there = [t for t in tensors if t.untyped_storage().data_ptr() in resting]
        self.met += bool(there)
        if there and len(there) < len(tensors) and func._schema.name.split("::")[1] not in COPIES:
            raise RuntimeError(f"{func}: expected all tensors to be on the same device")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Has state travel to the parameters and back although both are on the CPU."""
    monkeypatch.setattr(Offload, "_everywhere", True)
    yield


class Growing(Net):
    def on_task_start(self, trainer: Any, pl_module: Any, task: int) -> None:
        if task == 1:
            old, self.net[2] = self.net[2], nn.Linear(8, CLASSES + 2)
            with torch.no_grad():
                self.net[2].weight[:CLASSES] = old.weight
            trainer.optimizers[0].add_param_group({"params": list(self.net[2].parameters())})


def growing(rule: Any) -> Net:
    torch.manual_seed(0)
    model = Growing(plain_net())
    make_trainer(rule, EpochBoundaries(2), max_epochs=6).fit(model, loader(*task(0)))
    return model


@keeping_rule
@pytest.mark.parametrize("proximal", [False, True])
def test_training_with_the_state_elsewhere_is_bit_identical(
    rule: str, proximal: bool, elsewhere: None
) -> None:
    """Also across a head that grows; and no operation mixes devices."""
    if proximal and (rule not in PULLING or rule == "kfac list"):
        pytest.skip("has no proximal form")
    options = {"proximal": True} if proximal else {}
    plain, away = make(rule, **options), make(rule, state_device="cpu", **options)
    expected = growing(plain)
    with TwoDevices(away) as devices:
        found = growing(away)
    assert devices.met
    assert torch.equal(weights(expected), weights(found))
    assert_same(state(plain), state(away))
    view, other = plain.synapses.view, away.synapses.view
    with TwoDevices(away):
        assert plain.penalty(view) == away.penalty(other)
        for a, b in zip(
            plain.plasticity(view, [0.1] * len(view)) or [],
            away.plasticity(other, [0.1] * len(view)) or [],
            strict=True,
        ):
            assert torch.equal(a, b)


@pytest.mark.slow
@keeping_rule
@pytest.mark.parametrize("before", [None, "cpu"])
def test_a_checkpoint_does_not_know_where_the_state_lived(
    rule: str, before: str | None, elsewhere: None, tmp_path: Path
) -> None:
    """Resumed in the middle of a task, with the state there or here."""
    after = "cpu" if before is None else None

    def run(epochs: int, device: str | None, resumed: Path | None = None) -> tuple[Net, Any]:
        torch.manual_seed(0)
        model, memory = Net(plain_net()), make(rule, state_device=device)
        saving = ModelCheckpoint(tmp_path / str(epochs), save_last=True, save_top_k=0)
        trainer = make_trainer(
            memory, EpochBoundaries(2), saving, max_epochs=epochs, enable_checkpointing=True
        )
        trainer.fit(model, loader(*task(0)), ckpt_path=resumed, weights_only=True)
        return model, memory

    whole, memory = run(6, before)
    run(3, before)
    again, resumed = run(6, after, tmp_path / "3" / "last.ckpt")
    assert torch.equal(weights(whole), weights(again))
    assert_same(state(memory), state(resumed))


@pytest.mark.slow
@keeping_rule
def test_a_change_that_is_found_late_with_the_state_elsewhere(rule: str, elsewhere: None) -> None:
    found = []
    for device in (None, "cpu"):
        torch.manual_seed(0)
        memory = make(rule, 0.0, state_device=device) if rule in PULLING else make(rule, state_device=device)
        model, (x, y) = Net(), task(0, samples=8 * 32)
        make_trainer(memory, Told(late=3)).fit(model, loader(x, y))
        found.append((state(memory), weights(model)))
    assert_same(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_another_rule_may_slow_the_beakers_from_elsewhere(elsewhere: None) -> None:
    found = []
    for device in (None, "cpu"):
        torch.manual_seed(0)
        model = Net(plain_net())
        other = EWC(20.0, state_device=device)
        fit_tasks(model, other, make("benna-fusi", gated_by="ewc", state_device=device))
        found.append(weights(model))
    assert torch.equal(*found)


def test_only_what_a_rule_asks_for_travels_and_comes_back(elsewhere: None) -> None:
    synapses = Synapses({"read": "zeros", "changed": "zeros", "other": "zeros"}, device=torch.device("cpu"))
    view = synapses.place({"weight": torch.ones(2)}, ["weight"])
    versions = {field: kept._version for field, (kept,) in view.fields.items()}
    with synapses.on_device(changing=False):
        assert view["read"][0] is view["read"][0]
    with synapses.on_device():
        view["changed"][0].add_(1)
        assert view["changed"][0] is view["changed"][0]
        assert [kept for opened in synapses.offload._open for kept in opened.asked] == view.fields["changed"]
        assert view.fields["changed"][0].sum() == 0
    assert not synapses.offload._open
    assert view.fields["changed"][0].tolist() == [1.0, 1.0]
    moved = {field for field, (kept,) in view.fields.items() if kept._version != versions[field]}
    assert moved == {"changed"}


def test_a_verb_that_raises_leaves_the_state_as_it_was(elsewhere: None) -> None:
    synapses = Synapses({"path": "zeros"}, device=torch.device("cpu"))
    view = synapses.place({"weight": torch.ones(2)}, ["weight"])
    with pytest.raises(KeyError), synapses.on_device():
        view["path"][0].add_(1)
        raise KeyError
    assert synapses.state_dict()["path"]["weight"].sum() == 0


def test_state_that_is_saved_while_a_rule_works_on_it_has_its_changes(elsewhere: None) -> None:
    synapses = Synapses({"path": "zeros"}, device=torch.device("cpu"))
    view = synapses.place({"weight": torch.ones(2)}, ["weight"])
    with synapses.on_device():
        view["path"][0].add_(1)
        assert synapses.state_dict()["path"]["weight"].tolist() == [1.0, 1.0]
        view["path"][0].add_(1)
    assert synapses.state_dict()["path"]["weight"].tolist() == [2.0, 2.0]


def test_beside_the_parameters_nothing_travels() -> None:
    for device in (None, torch.device("cpu")):
        synapses = Synapses({"path": "zeros"}, device=device)
        view = synapses.place({"weight": torch.ones(2)}, ["weight"])
        with synapses.on_device():
            assert view["path"][0] is view.fields["path"][0]


@pytest.mark.parametrize("device", ["nowhere", "meta", "cpu:x", 3.5])
def test_devices_that_cannot_be(device: Any) -> None:
    with pytest.raises(ValueError, match="state_device"):
        EWC(1.0, state_device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused_before_the_first_step() -> None:
    model, before = Net(), []
    before = weights(model)
    with pytest.raises(MisconfigurationException, match="no state_device='cuda' on this machine"):
        fit_tasks(model, EWC(1.0, state_device="cuda"))
    assert torch.equal(weights(model), before)


@keeping_rule
def test_where_the_state_is_kept_can_be_read_from_the_rule(rule: str) -> None:
    options = {} if rule in MATRICES_ONLY else {"state_dtype": "float64"}
    memory = make(rule, state_device="cpu", strict=False, **options)
    assert (memory.state_device, memory.strict) == ("cpu", False)
    assert memory.state_dtype == options.get("state_dtype")


class Watching(Callback):
    """Where the state is and how much the device holds, after each batch."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule
        self.allocated = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.allocated = torch.cuda.memory_allocated()


def on_cuda(rule: Any, net: nn.Module | None = None) -> tuple[Net, Watching]:
    torch.manual_seed(0)
    model, watching = Net(net or plain_net()), Watching(rule)
    fit_tasks(model, rule, watching, accelerator="cuda", max_epochs=2)
    return model, watching


@needs_cuda
@keeping_rule
def test_on_cuda_training_with_the_state_on_the_cpu_is_bit_identical(rule: str) -> None:
    plain, away = make(rule), make(rule, state_device="cpu")
    expected, found = on_cuda(plain)[0], on_cuda(away)[0]
    assert torch.equal(weights(expected).cpu(), weights(found).cpu())
    there, here = state(plain), state(away)
    assert_same({k: t.cpu() for k, t in there.items()}, {k: t.cpu() for k, t in here.items()})
    kept = [t for field in away.synapses.view.fields.values() for t in field]
    assert kept and all(t.device.type == "cpu" and t.is_pinned() for t in kept)


@needs_cuda
def test_on_cuda_the_state_takes_no_memory_of_the_device() -> None:
    held = {}
    for device in (None, "cpu"):
        net = nn.Sequential(nn.Linear(6, 4096), nn.Tanh(), nn.Linear(4096, 512), nn.Linear(512, CLASSES))
        rule = SynapticIntelligence(1.0, state_device=device)
        held[device] = on_cuda(rule, net)[1].allocated
        kept = sum(t.nbytes for field in rule.synapses.view.fields.values() for t in field)
    assert held[None] - held["cpu"] >= 0.95 * kept
