"""Steps are heard whoever calls them, and nothing is left behind."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import optimizer as torch_optimizer

from cl_callbacks.synapses.step_hooks import StepHooks
from tests.odd_optimizers import Delegating, Lookahead, Plain, Sealed, WithoutSuper


class Listening:
    """Writes down the types of the optimizers, with a sign for before and after."""

    def __init__(self, *optimizers: Any) -> None:
        self.heard: list[str] = []
        self.hooks = StepHooks(self.before, self.after)
        self.hooks.attach(optimizers)

    def before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        assert args[0] is optimizer
        self.heard.append(f"+{type(optimizer).__name__}")

    def after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self.heard.append(f"-{type(optimizer).__name__}")


@pytest.fixture
def weight() -> nn.Parameter:
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    return weight


def sgd(weight: nn.Parameter) -> torch.optim.SGD:
    return torch.optim.SGD([weight], lr=0.1)


def test_steps_are_heard_from_without_to_within(weight: nn.Parameter) -> None:
    optimizer = Delegating(Lookahead(sgd(weight)))
    listening = Listening(optimizer)
    optimizer.step()
    assert listening.heard == ["+Delegating", "+Lookahead", "+SGD", "-SGD", "-Lookahead", "-Delegating"]
    listening.hooks.detach()
    optimizer.step()
    assert len(listening.heard) == 6
    assert "step" not in {**vars(optimizer), **vars(optimizer.inner)}


@pytest.mark.parametrize("kind", [Plain, WithoutSuper])
def test_objects_without_hooks_are_heard_as_often_as_they_step(kind: Any, weight: nn.Parameter) -> None:
    optimizer = kind([weight])
    listening = Listening(optimizer)
    for _ in range(2):
        optimizer.step()
    assert listening.heard == [f"+{kind.__name__}", f"-{kind.__name__}"] * 2


def test_optimizers_that_nobody_attached_are_heard_by_torch_s_hooks(weight: nn.Parameter) -> None:
    listening = Listening()
    sgd(weight).step()
    assert listening.heard == ["+SGD", "-SGD"]
    listening.hooks.detach()


def test_a_step_that_somebody_wraps_later_stays_as_it_is_and_is_not_heard_any_more(
    weight: nn.Parameter,
) -> None:
    optimizer: Any = Plain([weight])
    listening = Listening(optimizer)
    own = optimizer.step
    optimizer.step = lambda closure=None: own(closure)
    listening.hooks.detach()
    optimizer.step()
    assert listening.heard == []
    assert weight[0] < 1
    assert "step" in vars(optimizer)


def test_a_step_that_was_replaced_before_is_given_back(weight: nn.Parameter) -> None:
    optimizer: Any = sgd(weight)
    optimizer.step = mine = lambda closure=None: None
    listening = Listening(optimizer)
    optimizer.step()
    assert listening.heard == ["+SGD", "-SGD"]
    listening.hooks.detach()
    assert optimizer.step is mine


def test_a_copy_of_an_optimizer_steps_its_own_weights_and_is_not_heard(weight: nn.Parameter) -> None:
    optimizer = Plain([weight])
    listening = Listening(optimizer)
    other = copy.deepcopy(optimizer)
    (copied,) = other.param_groups[0]["params"]
    copied.grad = torch.ones(2)
    other.step()
    assert listening.heard == []
    assert copied[0] < 1 == weight[0]


def global_hooks() -> int:
    return len(torch_optimizer._global_optimizer_pre_hooks) + len(
        torch_optimizer._global_optimizer_post_hooks
    )


def test_hooks_of_listeners_that_are_gone_do_nothing_and_are_removed_by_the_next(
    weight: nn.Parameter,
) -> None:
    gc.collect()
    Listening().hooks.detach()  # removes what other tests have left
    before = global_hooks()
    for _ in range(3):
        listening = Listening(sgd(weight))
        heard = listening.heard
        del listening
        gc.collect()  # within a step of torch it must not remove anything
        assert global_hooks() == before + 2
        sgd(weight).step()
        assert heard == []


def test_a_step_that_cannot_be_replaced_is_refused(weight: nn.Parameter) -> None:
    with pytest.raises(MisconfigurationException, match="Steps of Sealed cannot be heard"):
        Listening(Sealed([weight]))


# -- several threads -------------------------------------------------------------------------------------


def in_another_thread(work: Callable[[], Any]) -> None:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failed


def test_steps_in_another_thread_are_not_heard_but_those_of_attached_optimizers(weight: nn.Parameter) -> None:
    own, plain, other = sgd(weight), Plain([weight]), torch.optim.Adam([weight])
    listening = Listening(own, plain)
    in_another_thread(other.step)
    assert listening.heard == []
    in_another_thread(own.step)
    in_another_thread(plain.step)
    assert listening.heard == ["+SGD", "-SGD", "+Plain", "-Plain"]
    listening.hooks.detach()


@pytest.mark.parametrize("when", ["before", "after"])
def test_others_may_begin_and_end_to_listen_while_an_optimizer_steps(weight: nn.Parameter, when: str) -> None:
    """Torch goes through its hooks meanwhile, and fails if there are others."""
    optimizer, done = sgd(weight), []

    def begin_and_end() -> None:
        listening = Listening(sgd(nn.Parameter(torch.ones(1))))
        listening.hooks.detach()

    def hear(*_: Any) -> None:
        in_another_thread(begin_and_end)
        done.append(True)

    def ignore(*_: Any) -> None: ...

    hooks = StepHooks(*((hear, ignore) if when == "before" else (ignore, hear)))
    first = Listening()
    hooks.attach([optimizer])
    optimizer.step()
    hooks.detach()
    assert done == [True]
    assert first.heard == ["+SGD", "-SGD"]
    first.hooks.detach()


def test_there_is_one_pair_of_torch_s_hooks_for_all_listeners() -> None:
    gc.collect()
    Listening().hooks.detach()
    before = global_hooks()
    several = [Listening() for _ in range(3)]
    assert global_hooks() == before + 2
    for each in several:
        each.hooks.detach()
    assert global_hooks() == before


def test_what_one_listener_changes_the_next_one_gets(weight: nn.Parameter) -> None:
    def add(to: str) -> Callable[..., Any]:
        return lambda optimizer, args, kwargs: (args, {**kwargs, "closure": kwargs.get("closure", "") + to})

    class Taking(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return closure

    first, second = (StepHooks(add(to), lambda *_: None) for to in "ab")
    optimizer = Taking([weight], lr=0.1)
    first.attach([]), second.attach([])
    assert optimizer.step() == "ab"
    second.detach(), first.detach()
