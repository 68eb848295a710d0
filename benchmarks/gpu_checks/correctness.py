"""Whether a training on the device is what it is on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from cl_callbacks import EWC, DriftBoundaries, FitBoundaries, SynapticIntelligence
from cl_callbacks.drift import CUSUM
from gpu_checks.check import each
from gpu_checks.place import Place
from gpu_checks.rules import DRAWN, PLAIN, RULES
from gpu_checks.training import (
    assert_equal,
    data_for,
    distance,
    fit,
    flat,
    model,
    normalised,
    outcome,
    plain,
    sgd,
    task,
    weights,
)


def tolerance(rule: str) -> float:
    """Of double precision; KFACLaplace solves and decomposes matrices."""
    return 1e-5 if rule.startswith("KFAC") else 1e-8


def as_on_the_cpu(place: Place) -> str:
    """Three tasks in double precision: weights, buffers and state are those of the CPU, to 1e-8.

    Rules without random numbers; KFACLaplace, which solves and decomposes matrices, to 1e-5.
    """

    def compare(name: str, make: Any) -> float:
        found = []
        for where in (place, place.on_cpu):
            rule = make()
            found.append(outcome(fit(where, rule, module=model().double()), rule))
        apart = distance(*found)
        assert apart < tolerance(name), f"differs by {apart:.1e}"
        return apart

    return each(place.of(PLAIN), compare)


def repeatable(place: Place) -> str:
    """All rules, with dropout: two trainings from one seed are the same bit for bit, finite, not inert."""
    without = weights(fit(place, None, module=model(normalised)))

    def twice(name: str, make: Any) -> None:
        found = []
        for _ in range(2):
            rule = make()
            module = fit(place, rule, module=model(normalised))
            found.append(outcome(module, rule))
        assert_equal(*found)
        assert all(t.isfinite().all() for t in found[0].values()), "not finite"
        assert not torch.equal(weights(module), without), "the rule changes nothing"

    return each(place.of(RULES), twice)


def fits_in_a_row(place: Place) -> str:
    """Three fits of one Trainer, the optimizer carried over: as on the CPU; predict_samples in between."""

    def fits(where: Place, make: Any) -> dict[str, torch.Tensor]:
        rule, module = make(), model().double()
        trainer = where.trainer(rule, FitBoundaries(carry_optimizer=True), max_epochs=1)
        for index in range(3):
            trainer.fit(module, data_for(module, *task(index)))
            trainer.fit_loop.max_epochs += 1
            if hasattr(rule, "predict_samples"):
                for device in (where.device, "cpu"):
                    batch = [t[:2].to(device) for t in task()]
                    assert rule.predict_samples(module.to(device), batch, 2).isfinite().all(), "not finite"
        return outcome(module, rule)

    def compare(name: str, make: Any) -> float | None:
        found = fits(place, make)
        if name in DRAWN:
            assert all(t.isfinite().all() for t in found.values()), "not finite"
            return None
        apart = distance(found, fits(place.on_cpu, make))
        assert apart < tolerance(name), f"differs by {apart:.1e}"
        return apart

    return each(place.of(RULES), compare)


class TaskEnds(Callback):
    """Notes the state of the generators of the device and of the CPU at the end of each task."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        self.seen.append((self.place.random_state(), torch.get_rng_state()))


def random_numbers(place: Place) -> str:
    """The end of a task, and what rules draw, leave the random numbers of training as they were."""

    def untouched(name: str, make: Any) -> None:
        before, after = TaskEnds(place), TaskEnds(place)
        fit(place, before, make(), after, module=model(normalised))
        assert len(before.seen) == len(after.seen) == 3, "no task ended"
        for a, b in zip(before.seen, after.seen, strict=True):
            assert all(map(torch.equal, a, b)), "the generators are in another state"

    said = each(place.of(RULES), untouched)
    nothing, without = (fit(place, rule, module=model(normalised)) for rule in (EWC(0.0), None))
    assert_equal(flat(dict(nothing.state_dict())), flat(dict(without.state_dict())))
    return said


def drift(place: Place) -> str:
    """DriftBoundaries finds what it finds on the CPU at the same batches, and the same state follows."""

    def found(where: Place) -> tuple[Any, dict[str, torch.Tensor]]:
        x, y = task(samples=640)
        labels = torch.cat([y[:320], (y[320:] + 1) % 3])
        boundaries = DriftBoundaries(CUSUM(threshold=6.0), min_task_batches=20)
        rules = [SynapticIntelligence(0.1), EWC(0.1, samples=40)]
        module = model(plain, sgd(0.01)).double()
        data = data_for(module, x, labels, batch_size=4)
        fit(where, rules[0], rules[1], module=module, data=data, epochs=1, boundaries=boundaries)
        states = [rule.state_dict() for rule in rules]
        return boundaries.found, flat({"module": dict(module.state_dict()), "states": states})

    (ends, state), (ends_on_cpu, state_on_cpu) = found(place), found(place.on_cpu)
    assert ends == ends_on_cpu, f"{ends} here, {ends_on_cpu} on the CPU"
    assert ends, "no drift was found"
    apart = distance(state, state_on_cpu)
    assert apart < 1e-6, f"differs by {apart:.1e}"
    return f"found {len(ends)} at {[end[1] for end in ends]}, difference {apart:.1e}"
