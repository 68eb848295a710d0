"""Arguments that are not what they should be, of every public class and function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback
from torch import Tensor

import cl_callbacks
from cl_callbacks import EWC, BennaFusi, EpochBoundaries, SampleMemory, SynapticCallback
from cl_callbacks.drift import CUSUM, Plateau
from cl_callbacks.fine_tuning import SequentialFineTuner
from cl_callbacks.guards.arguments import checked, fitted
from cl_callbacks.guards.bounds import AT_LEAST_ONE, Bounds
from tests.guards.invalid_calls import HUGE, Argument, arguments, count, needed, parameters_of, public


def test_every_invalid_call_is_refused_by_the_name_of_the_argument() -> None:
    calls, missed = count()
    assert not missed, f"{len(missed)} of {calls} are not refused: {missed[:20]}"
    assert calls > 5000
    assert {argument.call for argument in arguments()} >= {cl_callbacks.TextTasks, CUSUM, EWC, SampleMemory}


# Those that are built from arguments alone, without files.
BUILT = [
    call
    for call in public()
    if isinstance(call, type) and issubclass(call, Callback | SampleMemory | CUSUM | Plateau)
]
OF_BUILT = [argument for argument in arguments() if argument.call in BUILT]
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3)
    | st.complex_numbers() | st.sampled_from([HUGE, -HUGE, Fraction(1, 3), np.float16(2), torch.ones(())]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


@settings(max_examples=1000, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(OF_BUILT), anything)
def test_any_value_is_taken_or_refused_by_name(argument: Argument, value: Any) -> None:
    try:
        argument.call(**{**needed(argument.call), argument.name: value})
    except (ValueError, TypeError) as error:
        assert argument.name in str(error)


NUMERIC = [
    (argument, parameter.default)
    for argument in OF_BUILT
    for parameter in [parameters_of(argument.call)[argument.name]]
    if type(parameter.default) in (int, float, bool)
]


@pytest.mark.parametrize("wrap", [np.array, torch.tensor, lambda v: np.array(v)[()]])
def test_numbers_of_numpy_and_tensors_become_pythons(wrap: Callable[[Any], Any]) -> None:
    assert len(NUMERIC) > 80
    for argument, default in NUMERIC:
        made = argument.call(**{**needed(argument.call), argument.name: wrap(default)})
        kept = getattr(made, argument.name, default)
        assert type(kept) is type(default), argument
        left = [value for value in vars(made).values() if isinstance(value, np.generic)]
        assert not left, argument


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: EWC(samples=2.5), "samples must be a whole number, at least 1, or None; got 2.5"),
        (lambda: EpochBoundaries(float("nan")), "every_n_epochs must be a whole number, at least 1; got nan"),
        (lambda: EWC(proximal="False"), "proximal must be True or False; got 'False'"),
        (lambda: EWC(parameters=[]), "got []: leave parameters out, or give None"),
        (lambda: BennaFusi(beakers=HUGE), "beakers must be a whole number from 1 to 64; got a whole number"),
        (lambda: EWC(normalize="max"), "normalize must be 'mean' or None; got 'max'"),
        (lambda: EWC(strength=HUGE), "strength must be a finite number, at least 0; got"),
        (lambda: EWC(parameters="("), "parameters: '(' is not a regular expression"),
        (lambda: EWC(decay=1.5), "decay must be a finite number from 0 to 1, or 'mean'; got 1.5"),
    ],
)  # fmt: skip
def test_sentences(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ValueError) as refused:
        call()
    assert sentence in str(refused.value)


def test_python_says_what_is_missing_or_unknown() -> None:
    with pytest.raises(TypeError, match="every_n_epochs"):
        EpochBoundaries()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="'epochs'"):
        EpochBoundaries(epochs=3)  # type: ignore[call-arg]


def test_a_rule_of_ones_own_is_checked_in_what_it_hands_on() -> None:
    class Mine(EWC):
        def __init__(self, mine: str, **options: Any) -> None:
            super().__init__(**options)
            self.mine = mine

    assert Mine(3, samples=np.int64(7)).samples == 7  # its own arguments are its own matter
    with pytest.raises(ValueError, match="samples"):
        Mine("x", samples=0)


def test_options_are_checked_before_a_constructor_does_anything() -> None:
    for kind in (cl_callbacks.TextTasks, cl_callbacks.VisionTasks, cl_callbacks.ImageTasks):
        with pytest.raises(ValueError, match=r"batch_size must be a whole number, at least 1; got 2\.5"):
            kind(**needed(kind), batch_size=2.5)


def test_no_argument_of_a_public_class_escapes_the_check() -> None:
    """A class with a constructor of its own decorates it."""
    kinds = [call for call in public() if isinstance(call, type) and call is not SequentialFineTuner]
    for kind in kinds:
        init = vars(kind).get("__init__")
        if init is not None and len(inspect.signature(init).parameters) > 1:
            assert hasattr(init, "__wrapped__"), kind


def test_hyperparameters_of_a_subclass_are_saved_too() -> None:
    class Mine(SequentialFineTuner):
        def __init__(self, model: str, extra: int, **options: Any) -> None:
            super().__init__(model, **options)

    made = Mine("folder", extra=3, lr=np.float64(1e-3), warmup_steps=torch.tensor(4))
    assert made.hparams["extra"] == 3
    assert type(made.hparams["lr"]) is type(made.lr) is float
    assert type(made.hparams["warmup_steps"]) is int


@pytest.mark.parametrize(
    ("value", "hint", "found"),
    [
        (np.arange(3), Sequence[int], [0, 1, 2]),
        ((np.int64(1), 2), Sequence[int], (1, 2)),
        (torch.tensor([0.5]), Sequence[float], [0.5]),
        (Fraction(1, 4), float, 0.25),
        (np.str_("max"), Literal["max", "min"], "max"),
        ({"a": np.float32(1)}, Mapping[str, float], {"a": 1.0}),
        (np.bool_(True), bool, True),
        (3, int | Sequence[int], 3),
        (len, Callable[..., Any], len),
        (torch.tensor([1.0]), Tensor, torch.tensor([1.0])),
    ],
)
def test_what_fits_is_converted(value: Any, hint: Any, found: Any) -> None:
    given = fitted("it", value, hint)
    assert given == found
    assert type(given) is type(found)


def test_bounds_of_an_argument_that_is_not_there_are_refused_where_they_are_declared() -> None:
    with pytest.raises(TypeError, match="sample"):

        @checked(sample=AT_LEAST_ONE)
        def measure(samples: int) -> None: ...


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        (Bounds(), ""),
        (Bounds(least=1), ", at least 1"),
        (Bounds(most=3), ", at most 3"),
        (Bounds(above=0), " above 0"),
        (Bounds(above=0, most=1), " above 0 and at most 1"),
        (Bounds(above=0, below=1), " above 0 and below 1"),
        (Bounds(least=0, most=1), " from 0 to 1"),
        (Bounds(least=0, below=1), " from 0 to below 1"),
        (Bounds(below=2), " below 2"),
    ],
)
def test_bounds_in_words(bounds: Bounds, words: str) -> None:
    assert str(bounds) == words


def test_a_rule_without_arguments_of_its_own_is_checked_too() -> None:
    class Plain(SynapticCallback):
        pass

    with pytest.raises(ValueError, match="strict must be True or False; got 1"):
        Plain(strict=1)  # type: ignore[arg-type]
