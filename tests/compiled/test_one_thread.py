"""What is compiled runs eagerly in one thread, and goes on being compiled in all others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo import eval_frame

from cl_callbacks.compiled.one_thread import eagerly, unnoticed_by_others


class Backend:
    """Counts what it compiles, and how often that runs."""

    def __init__(self) -> None:
        self.compiled = self.ran = 0

    def __call__(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        self.compiled += 1

        def run(*args: Any) -> Any:
            self.ran += 1
            return graph.forward(*args)

        return run


@pytest.fixture
def double() -> Iterator[tuple[Callable[[Tensor], Tensor], Backend]]:
    backend, before = Backend(), eval_frame._stance

    def twice(x: Tensor) -> Tensor:
        return 2 * x

    yield torch.compile(twice, backend=backend), backend
    assert eval_frame._stance is before


def in_another_thread(work: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_this_thread_is_eager_and_another_one_is_not(double: Any) -> None:
    function, backend = double
    with eagerly():
        function(torch.ones(1))
        with eagerly():
            function(torch.ones(1))
        function(torch.ones(1))
        assert backend.compiled == backend.ran == 0
        in_another_thread(lambda: function(torch.ones(1)))
        assert backend.compiled == backend.ran == 1
    function(torch.ones(1))
    assert backend.ran == 2


def test_two_threads_whose_passes_overlap_leave_it_as_it_was(double: Any) -> None:
    function, backend = double
    entered, left = threading.Event(), threading.Event()
    of_other = []

    def other() -> None:
        with eagerly():
            entered.set()
            assert left.wait(10)
            function(torch.ones(1))
            of_other.append(backend.ran)

    thread = threading.Thread(target=other)
    with eagerly():
        thread.start()
        assert entered.wait(10)
    function(torch.ones(1))
    assert backend.ran == 1
    left.set()
    thread.join()
    assert of_other == [1]
    function(torch.ones(1))
    assert backend.ran == 2


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_an_exception_leaves_it_as_it_was(double: Any, error: type[BaseException]) -> None:
    function, backend = double
    with pytest.raises(error), eagerly():
        raise error
    function(torch.ones(1))
    assert backend.ran == 1


def test_a_stance_of_the_user_s_is_there_again(double: Any) -> None:
    function, backend = double
    with torch.compiler.set_stance("force_eager"):
        with eagerly():
            pass
        function(torch.ones(1))
        assert in_another_thread(lambda: eval_frame._stance.stance) == "force_eager"
    assert backend.ran == 0
    with eagerly(), torch.compiler.set_stance("default"):
        function(torch.ones(1))
    assert backend.ran == 1


def test_other_threads_do_not_notice_a_compilation() -> None:
    """Torch's optimizers round differently while anything is compiled."""
    seen: list[tuple[bool, bool]] = []

    def look(graph: Any, inputs: Any) -> Callable[..., Any]:
        here = torch.compiler.is_compiling()
        seen.append((here, in_another_thread(torch.compiler.is_compiling)))
        return graph.forward

    def compile_and_run() -> None:
        torch._dynamo.reset()
        torch.compile(lambda x: 2 * x, backend=look)(torch.ones(1))

    compile_and_run()
    usual = seen[0][0]  # depends on torch's version
    with unnoticed_by_others():
        compile_and_run()
        in_another_thread(compile_and_run)
    compile_and_run()
    assert seen == [(usual, usual), (False, False), (usual, usual), (usual, usual)]
