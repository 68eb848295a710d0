"""State kept in the memory of the CPU: the same training, read at any time, and really off the device."""

from __future__ import annotations

import gc
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cl_callbacks import SynapseStatistics, SynapticIntelligence
from gpu_checks.check import each, needs_cuda
from gpu_checks.place import Place
from gpu_checks.rules import RULES, STATELESS
from gpu_checks.training import assert_equal, fit, large, model, outcome, sgd

WITH_STATE = {name: make for name, make in RULES.items() if name not in STATELESS}


def kept(rule: Any) -> list[Tensor]:
    """The tensors of state where they are stored."""
    return [t for field in rule.synapses.view.fields.values() for t in field]


def state_on_the_cpu(place: Place) -> str:
    """``state_device="cpu"``: weights and state as beside the parameters, bit for bit, and really pinned."""

    def compare(name: str, make: Any) -> None:
        beside, away = make(), make(state_device="cpu")
        assert_equal(outcome(fit(place, away), away), outcome(fit(place, beside), beside))
        assert kept(away), "there is no state"
        assert all(t.device.type == "cpu" for t in kept(away)), "the state is on the device"
        assert place.device == "cpu" or all(t.is_pinned() for t in kept(away)), "not pinned"

    return each(place.of(WITH_STATE), compare)


class ReadAtOnce(Callback):
    """Reads the state right after a step, and again after waiting for the device."""

    def __init__(self, place: Place, rule: SynapticIntelligence) -> None:
        self.place, self.rule = place, rule
        self.read, self.late = 0, 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        early = self.rule.synapses.copies(["path"])["path"]
        self.place.synchronize()
        now = self.rule.synapses.copies(["path"])["path"]
        self.read += len(now)
        self.late += sum(not torch.equal(early[name], t) for name, t in now.items())


def read_right_after_a_step(place: Place) -> str:
    """State on the CPU that is read right after a step is what is there after waiting for the device."""
    rule = SynapticIntelligence(1.0, state_device="cpu")
    reading = ReadAtOnce(place, rule)
    width = 4096 if place.device == "cuda" else 256
    fit(place, rule, reading, module=model(lambda: large(width), sgd(1e-4)))
    assert not reading.late, f"{reading.late} of {reading.read} tensors were not there yet"
    return f"{reading.read} tensors of a network of width {width}"


def statistics_of_offloaded_state(place: Place) -> str:
    """SynapseStatistics every second step says the same with the state on the CPU, and changes nothing."""

    def compare(name: str, make: Any) -> None:
        found = []
        for device in (None, "cpu"):
            rule, statistics = make(state_device=device), SynapseStatistics(2)
            module = fit(place, rule, statistics)
            found.append((outcome(module, rule), statistics.latest))
        (beside, said), (away, said_away) = found
        assert_equal(away, beside)
        assert said == said_away, "other statistics"

    return each(place.of(WITH_STATE), compare)


class Allocated(Callback):
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.bytes = torch.cuda.memory_allocated()


def state_takes_no_memory_of_the_device(place: Place) -> str:
    """With ``state_device="cpu"`` at least 95 % of the bytes of the state are off the device."""
    needs_cuda(place)
    held: dict[str | None, int] = {}
    for device in (None, "cpu"):
        gc.collect()
        torch.cuda.empty_cache()
        rule, allocated = SynapticIntelligence(1.0, state_device=device), Allocated()
        fit(place, rule, allocated, module=model(lambda: large(4096), sgd(1e-4)), epochs=1)
        held[device], state = allocated.bytes, sum(t.nbytes for t in kept(rule))
        del rule
    saved = held[None] - held["cpu"]
    said = f"{saved / 2**20:.0f} MiB less, of {state / 2**20:.0f} MiB of state"
    assert saved >= 0.95 * state, said
    return said
