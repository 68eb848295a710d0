"""Trainings in two threads, which are to be those that they would be one after the other."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from cl_callbacks import CompileRules, TaskEvaluation
from cl_callbacks.compiled import fused, kernels
from tests.compiled.test_fused import needs_compiler
from tests.every_rule import RULES, make, same
from tests.small import Net, loader, make_trainer, plain_net, task, weights

Trained = tuple[Tensor, dict[str, Any]]


class Scored(Net):
    """With validation, and a layer that its user has compiled."""

    def __init__(self, seed: int, backend: Any = None) -> None:
        super().__init__(plain_net())
        values = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=values))
        if backend is not None:
            self.net[0] = torch.compile(self.net[0], backend=backend)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())


def train(rule: str, seed: int, *others: Callback, backend: Any = None) -> Trained:
    """Weights and the rule's state after two tasks."""
    model, learner = Scored(seed, backend), make(rule)
    trainer = make_trainer(learner, TaskEvaluation("val_acc", table=False), *others)
    tasks = [loader(*task(10 * seed + index)) for index in range(2)]
    for index, each in enumerate(tasks):
        trainer.fit_loop.max_epochs = index + 1
        trainer.fit(model, each, tasks)
    return weights(model), learner.state_dict()


def together(calls: list[Any]) -> list[Trained]:
    """The results of calls in a thread each."""
    found: dict[int, Any] = {}
    beginning = threading.Barrier(len(calls))

    def run(index: int) -> None:
        beginning.wait()
        try:
            found[index] = calls[index]()
        except BaseException as error:
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in found.values():
        if isinstance(result, BaseException):
            raise result
    return [found[index] for index in range(len(calls))]


def assert_equal_to_one_after_the_other(rules: tuple[str, str], seed: int, *others: type[Callback]) -> None:
    calls = [
        lambda rule=rule, seed=seed + index: train(rule, seed, *(other() for other in others))
        for index, rule in enumerate(rules)
    ]
    torch.manual_seed(seed)
    found = together(calls)
    torch.manual_seed(seed)
    expected = [call() for call in calls]
    assert same(found, expected), rules


def compiles_a_new_function() -> bool:
    graphs: list[Any] = []
    torch.compile(lambda x: 2 * x, backend=lambda graph, _: graphs.append(graph) or graph)(torch.ones(1))
    return bool(graphs)


DRAWING_LABELS = {"ewc each", "kfac", "kfac list"}
"""From the generator of the process, which the other training draws from, too."""


@pytest.mark.slow
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in DRAWING_LABELS])
def test_each_rule_beside_another_training(rule: str) -> None:
    assert_equal_to_one_after_the_other((rule, "ewc"), 3)


def test_passes_in_two_threads_run_a_compiled_layer_eagerly_and_trainings_do_not() -> None:
    modes: dict[int, list[bool]] = {}

    def backend(graph: Any, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            modes.setdefault(threading.get_ident(), []).append(torch.is_grad_enabled())
            return graph.forward(*args)

        return run

    together([lambda: train("ewc", 1, backend=backend), lambda: train("lwf", 2, backend=backend)])
    assert len(modes) == 2
    assert compiles_a_new_function()


@needs_compiler
@pytest.mark.parametrize("pairs", [2, pytest.param(20, marks=pytest.mark.sweep)])
def test_rules_are_compiled_in_two_threads(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SMALLEST", 1)
    monkeypatch.setattr("cl_callbacks.rules.compile_rules.SMALLEST", 1)
    torch._dynamo.utils.counters.clear()
    names = ["ewc", "si", "mesu", "streaming fisher", "rwalk", "benna-fusi", "lwf"]
    for pair in range(pairs):
        monkeypatch.setattr(kernels, "_compiled", {})  # both have to compile
        monkeypatch.setattr(kernels, "_routes", {})
        rules = names[2 * pair % len(names)], names[(2 * pair + 1) % len(names)]
        assert_equal_to_one_after_the_other(rules, pair, CompileRules)
        assert kernels._compiled
    assert not torch._dynamo.utils.counters["graph_break"]
    assert not fused.is_compiling()
    assert compiles_a_new_function()
