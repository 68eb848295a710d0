"""State that is kept on the CPU while the network trains on a device, and copied while that computes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cl_callbacks import BennaFusi, CompileRules, EpochBoundaries, SynapticIntelligence
from cl_callbacks.compiled import fused
from cl_callbacks.synapses import offload, step_plan
from cl_callbacks.synapses.state import Synapses
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.synapses.visit import Visit
from tests.every_rule import RULES, WITHOUT_STATE, assert_same, make, state
from tests.pretend_device.device import DEVICE, trainer_on, waits
from tests.processes import train_together
from tests.small import Net, loader, make_trainer, plain_net, task, weights

# Some rules keep nothing of weights.
KEEPING = [rule for rule in RULES if rule not in WITHOUT_STATE]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of matrices a row or two: a step has ten blocks."""
    monkeypatch.setattr(offload, "BLOCK_ELEMENTS", 7)


class Waits(Callback):
    """How often the host waits in each batch."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.before = waits()

    def on_train_batch_end(self, *args: Any) -> None:
        self.found.append(waits() - self.before)


class Reading(Callback):
    """What others see of a rule's state within a step, and after it."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule
        self.found: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, *args: Any) -> None:
        self.found.append(copy.deepcopy(state(self.rule)))

    def on_train_batch_end(self, *args: Any) -> None:
        view = self.rule.synapses.view
        with torch.no_grad():
            measures = self.rule.measures(view, [0.1] * len(view))
        read = {f"{kind}/{i}": t.cpu() for kind, ts in measures.items() for i, t in enumerate(ts)}
        self.found.append(read | copy.deepcopy(state(self.rule)))


def trained(rule: Any, *callbacks: Callback, tasks: int = 2, **options: Any) -> tuple[Net, list[int]]:
    """A network that has learned tasks of two epochs of five batches, and the waits of each batch."""
    torch.manual_seed(0)
    model, counted = Net(plain_net()), Waits()
    trainer = trainer_on(rule, *callbacks, counted, max_epochs=2, log_every_n_steps=1000, **options)
    for index in range(tasks):
        if index:
            trainer.fit_loop.max_epochs += 2
        trainer.fit(model, loader(*task(index, 40)))
    return model, counted.found


def on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: t.cpu() for key, t in tensors.items()}


@pytest.mark.parametrize("rule", KEEPING)
def test_training_is_the_same_bit_for_bit_and_the_host_waits_as_often(rule: str, small_blocks: None) -> None:
    # The mean importance is measured in steps that grow apart, of which these are too early.
    options = {"normalize": None} if rule.startswith("streaming") else {}
    here, there = make(rule, **options), make(rule, state_device="cpu", **options)
    (expected, without), (found, within) = trained(here), trained(there)
    assert torch.equal(weights(found).cpu(), weights(expected).cpu())
    assert_same(on_cpu(state(there)), on_cpu(state(here)))
    kept = [t for field in there.synapses.view.fields.values() for t in field]
    assert kept and all(t.device.type == "cpu" and t.is_pinned() for t in kept)
    for task_begin in (0, 10):
        steps = slice(task_begin + 7, task_begin + 10)
        assert within[steps] == without[steps] == [0, 0, 0]


@pytest.mark.parametrize("rule", ["si", "kfac", "benna-fusi", "mesu"])
def test_parameters_that_are_one_block(rule: str) -> None:
    here, there = make(rule), make(rule, state_device="cpu")
    (expected, _), (found, within) = trained(here), trained(there)
    assert torch.equal(weights(found).cpu(), weights(expected).cpu())
    assert_same(on_cpu(state(there)), on_cpu(state(here)))
    assert within[17:] == [0, 0, 0]


@pytest.mark.parametrize("rule", ["ewc", "si", "rwalk", "streaming path", "benna-fusi", "mesu chain"])
def test_what_is_read_within_a_step_and_after_it_is_up_to_date(rule: str, small_blocks: None) -> None:
    here, there = make(rule), make(rule, state_device="cpu")
    expected, found = Reading(here), Reading(there)
    trained(here, expected)
    trained(there, found)
    assert len(found.found) == len(expected.found) == 40
    for one, other in zip(found.found, expected.found, strict=True):
        assert_same(on_cpu(one), on_cpu(other))


def test_a_gate_whose_state_is_elsewhere_too(small_blocks: None) -> None:
    found = []
    for device in (None, "cpu"):
        ewc = make("ewc", state_device=device)
        rule = BennaFusi(3, 0.2, gated_by="ewc", state_device=device)
        found.append(weights(trained(ewc, rule)[0]).cpu())
    assert torch.equal(*found)


@pytest.mark.parametrize("rule", ["ewc", "si"])
def test_a_checkpoint_of_mid_task_goes_on_on_the_cpu(rule: str, small_blocks: None, tmp_path: Path) -> None:
    class Saving(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 15:  # after the first of two epochs of the second task
                trainer.save_checkpoint(tmp_path / "mid.ckpt")

    there = make(rule, state_device="cpu")
    model, _ = trained(there, Saving())
    again, resumed = Net(plain_net()), make(rule)
    trainer = make_trainer(resumed, max_epochs=4)
    trainer.fit(again, loader(*task(1, 40)), ckpt_path=tmp_path / "mid.ckpt", weights_only=True)
    assert torch.equal(weights(again), weights(model).cpu())
    assert_same(state(resumed), on_cpu(state(there)))


def test_rules_whose_operations_are_deferred(small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run on the stream that computes, before copies of what they change. Nothing compiles here."""
    monkeypatch.setattr(fused, "run", lambda calls: [call.do(range(call.length)) for call in calls])
    monkeypatch.setattr(step_plan, "ELEMENTS_IF_COMPILED", 7)
    found = []
    for device in (None, "cpu"):
        rules = (
            make("ewc"),
            make("streaming path", state_device=device),
            make("benna-fusi", state_device=device),
        )
        model, _ = trained(rules[0], *rules[1:], CompileRules())
        found.append((weights(model).cpu(), on_cpu(state(rules[2]))))
    assert torch.equal(found[0][0], found[1][0])
    assert_same(found[0][1], found[1][1])


# -- one rule's work on blocks, by hand ------------------------------------------------------------


def layers(*shapes: tuple[int, ...], devices: tuple[str, ...] = (DEVICE,)) -> tuple[Synapses, SynapseView]:
    """Synapses with one field of zeros, stored on the CPU; the weights are ones."""
    weights = {str(i): torch.ones(shape, device=devices[i % len(devices)]) for i, shape in enumerate(shapes)}
    synapses = Synapses({"path": "zeros"}, device=torch.device("cpu"))
    return synapses, synapses.place(weights, list(weights))


def work(synapses: Synapses, blocks: Sequence[tuple[SynapseView, Visit | None]], steps: int = 3) -> None:
    """Adds 1 to the state in each step, and 2 to what it was before."""
    assert synapses.offload is not None
    for _ in range(steps):
        synapses.offload.begin_step()
        for block, visit in blocks:
            with synapses.on_device(visit=visit):
                torch._foreach_mul_(block["path"], 2.0)
                torch._foreach_add_(block["path"], block.parameters)


def paths(synapses: Synapses) -> set[float]:
    """The values in the stored state."""
    return {value for t in synapses.state_dict()["path"].values() for value in t.unique().tolist()}


def test_layers_on_two_devices_and_on_the_cpu(small_blocks: None) -> None:
    devices = f"{DEVICE}:0", f"{DEVICE}:1", "cpu"
    synapses, view = layers((5, 2), (3,), (2, 2), (4, 3), (2, 3), devices=devices)
    blocks = [(block, Visit()) for block in view.blocks()]
    assert len(blocks) > 3
    streams = [torch.accelerator.current_stream(device) for device in (None, 0, 1)]
    work(synapses, blocks)
    assert [torch.accelerator.current_stream(device) for device in (None, 0, 1)] == streams
    assert paths(synapses) == {7.0}
    assert {t.is_pinned() for t in view.fields["path"]} == {True, False}


def test_a_stream_of_the_users_own(small_blocks: None) -> None:
    synapses, view = layers((8, 3))
    stream = torch.Stream(DEVICE)
    stream.wait_stream(torch.accelerator.current_stream())
    with stream:
        work(synapses, [(block, Visit()) for block in view.blocks()])
    torch.accelerator.current_stream().wait_stream(stream)
    assert paths(synapses) == {7.0}


def test_two_blocks_are_on_the_device_while_one_is_worked_on_and_none_between_the_steps() -> None:
    rows, size = 64, 4 * 64 * 1024
    synapses, view = layers((8 * rows, 1024))
    weight = view.sources[0]
    parts = [view.restrict_to({weight: slice(i, i + rows)}) for i in range(0, 8 * rows, rows)]
    before = torch.get_device_module(DEVICE).memory_allocated(0)

    def held() -> float:
        return (torch.get_device_module(DEVICE).memory_allocated(0) - before) / size

    most = []
    blocks = [(block, Visit()) for block in parts]
    work(synapses, blocks, steps=2)
    assert held() == pytest.approx(0.0, abs=0.1)
    assert synapses.offload is not None
    synapses.offload.begin_step()
    for block, visit in blocks:
        with synapses.on_device(visit=visit):
            torch._foreach_add_(block["path"], block.parameters)
            most.append(held())
    assert most == pytest.approx([2.0] * 7 + [1.0], abs=0.1)  # the second is the next one, copied ahead


def test_the_host_waits_for_copies_only_where_it_reads_them() -> None:
    synapses, view = layers((8, 3))
    before = waits()
    work(synapses, [(view, Visit())])
    assert waits() == before
    assert view.fields["path"][0].isnan().all()  # not there yet
    assert paths(synapses) == {7.0}
    assert waits() > before


def test_state_that_is_read_in_mid_work_and_changed_again() -> None:
    for visit in (None, Visit()):
        synapses, view = layers((8, 3))
        for _ in range(2):
            with synapses.on_device(visit=visit):
                view["path"][0].add_(1)
                first = paths(synapses)
                view["path"][0].add_(1)
            assert first == {next(iter(paths(synapses))) - 1}
        assert paths(synapses) == {4.0}


def test_an_exception_leaves_the_state_of_its_block_as_it_was(small_blocks: None) -> None:
    synapses, view = layers((6, 7))
    blocks = [(block, Visit()) for block in view.blocks()]
    work(synapses, blocks, steps=2)
    with pytest.raises(KeyError):
        for i, (block, visit) in enumerate(blocks):
            with synapses.on_device(visit=visit):
                block["path"][0].add_(10)
                if i == 2:
                    raise KeyError
    assert synapses.state_dict()["path"]["0"][:, 0].tolist() == [13.0, 13.0, 3.0, 3.0, 3.0, 3.0]
    work(synapses, blocks, steps=1)
    assert synapses.state_dict()["path"]["0"][:, 0].tolist() == [27.0, 27.0, 7.0, 7.0, 7.0, 7.0]


def test_other_changes_between_two_blocks_are_not_missed(small_blocks: None) -> None:
    """What was copied ahead for the next block is copied again."""
    synapses, view = layers((6, 7))
    blocks = [(block, Visit()) for block in view.blocks()]
    work(synapses, blocks, steps=2)
    for i, (block, visit) in enumerate(blocks):
        if i == 2:
            with synapses.on_device():
                view["path"][0].fill_(20)
        with synapses.on_device(visit=visit):
            block["path"][0].add_(1)
    assert synapses.state_dict()["path"]["0"][:, 0].tolist() == [20.0, 20.0, 21.0, 21.0, 21.0, 21.0]
    with synapses.rewound({"path": {"0": torch.full((6, 7), 5.0)}}):
        work(synapses, blocks, steps=1)
        assert paths(synapses) == {11.0}
    assert paths(synapses) == {26.0, 27.0}  # 11 - 5 more


def test_a_rule_that_asks_for_more_than_in_the_step_before() -> None:
    """It changes what was copied ahead for another of its methods."""
    synapses = Synapses({"path": "zeros", "other": "zeros"}, device=torch.device("cpu"))
    view = synapses.place({"weight": torch.ones(8, 3, device=DEVICE)}, ["weight"])
    rewriting, observing = Visit(), Visit()
    assert synapses.offload is not None
    for step in range(4):
        synapses.offload.begin_step()
        with synapses.on_device(visit=rewriting):
            for field in ("path", "other") if step == 3 else ("other",):
                view[field][0].add_(1)
        with synapses.on_device(visit=observing):
            view["path"][0].mul_(3).add_(1)
    found = synapses.state_dict()
    assert found["other"]["weight"].unique().tolist() == [4.0]
    assert found["path"]["weight"].unique().tolist() == [43.0]  # 1, 4, 13, (13 + 1) 3 + 1


def test_work_at_other_places_than_in_the_step_before(small_blocks: None) -> None:
    """Plans that alternate cut one weight into other blocks, and a rule may ask for more than it did."""
    found = []
    for ahead in (False, True):
        synapses, view = layers((6, 7), (5,))
        halves = [view.restrict_to({view.sources[0]: rows}) for rows in (slice(0, 3), slice(3, 6))]
        blocks = [(block, Visit() if ahead else None) for block in [*halves, *view.blocks()]]
        for order in ([0, 1, 2, 3, 4, 0], [2, 3, 4, 3, 2, 1, 1, 0, 3], [0, 4, 1]):
            work(synapses, [blocks[i] for i in order], steps=2)
        found.append(synapses.state_dict()["path"])
    for name, expected in found[0].items():
        assert torch.equal(found[1][name], expected)


def test_a_rule_that_is_copied_while_it_trains(small_blocks: None) -> None:
    class Copying(Callback):
        def __init__(self, rule: SynapticIntelligence) -> None:
            self.rule = rule

        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            if trainer.global_step == 8:
                self.found = copy.deepcopy(self.rule.synapses)
                self.expected = copy.deepcopy(self.rule.synapses.state_dict())

    rule = make("si", state_device="cpu")
    copying = Copying(rule)
    trained(rule, copying)
    for field, tensors in copying.found.state_dict().items():
        for name, t in tensors.items():
            assert torch.equal(t, copying.expected[field][name])


def test_two_processes_on_two_devices(tmp_path: Path) -> None:
    train_together(2, train, str(tmp_path))
    for rule in TOGETHER:
        first, second = (torch.load(tmp_path / f"{rule}-{rank}.pt", weights_only=True) for rank in range(2))
        assert torch.equal(first["there"], first["here"])
        assert torch.equal(second["there"], first["here"])
        assert first["waits there"] == first["waits here"] and second["waits there"] == first["waits here"]


TOGETHER = ["si", "ewc", "benna-fusi", "mesu"]


def train(rank: int, folder: str) -> None:
    from tests.pretend_device.collectives import PretendDDP
    from tests.pretend_device.device import load, races

    load()
    offload.BLOCK_ELEMENTS = 7
    for rule in TOGETHER:
        found: dict[str, Any] = {}
        for name, where in (("here", None), ("there", "cpu")):
            torch.manual_seed(0)
            model, counted = Net(plain_net()), Waits()
            trainer = make_trainer(
                make(rule, state_device=where),
                EpochBoundaries(2),
                counted,
                accelerator="auto",
                devices=2,
                strategy=PretendDDP(),
                max_epochs=4,
                log_every_n_steps=1000,
            )
            trainer.fit(model, loader(*task(0, 64)))
            found[name] = weights(model).cpu()
            found[f"waits {name}"] = counted.found[-2:]
        torch.save(found, Path(folder) / f"{rule}-{rank}.pt")
    torch.distributed.destroy_process_group()
    assert not races()
