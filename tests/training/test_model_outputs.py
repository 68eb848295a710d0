"""Batches and outputs of every common shape, and sentences about the others."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from cl_callbacks import EWC
from cl_callbacks.training.model_outputs import ReadsOutputs
from tests.small import Net, loader, make_trainer, task

X, Y = torch.zeros(4, 2), torch.arange(4)


class Model(Net):
    def __init__(self, result: Any = None) -> None:
        super().__init__()
        self.result = result

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        return x * 2 if self.result is None else self.result


@dataclass
class Output:
    logits: Tensor


@dataclass
class CausalLMOutput(Output):
    """Named as the class of ``transformers`` that marks a causal language model."""


class MoeCausalLMOutputWithPast(Output):
    """A causal language model too."""


class Encoding(UserDict):
    """A mapping that is no dict, as tokenizers return."""


@pytest.mark.parametrize(
    ("batch", "labels"),
    [
        ((X, Y), Y),
        ([X, Y], Y),
        (X, None),
        ({"x": X, "labels": Y}, Y),
        ({"x": X, "mask": X, "label": Y, "task": 3}, Y),
        (Encoding(x=X), None),
    ],
)
def test_batches(batch: Any, labels: Tensor | None) -> None:
    outputs, found = ReadsOutputs().outputs_and_labels(Model(), batch)
    assert torch.equal(outputs, X * 2)
    assert found is labels


@pytest.mark.parametrize("result", [Output(X), {"logits": X}, X])
def test_logits_are_found(result: Any) -> None:
    assert ReadsOutputs().outputs_and_labels(Model(result), (X, Y))[0] is X


def test_causal_language_models_are_aligned_with_their_labels() -> None:
    logits, labels = torch.randn(2, 5, 7), torch.arange(10).view(2, 5)
    for kind in (CausalLMOutput, MoeCausalLMOutputWithPast):
        batch = {"x": labels, "labels": labels}
        outputs, found = ReadsOutputs().outputs_and_labels(Model(kind(logits)), batch)
        assert torch.equal(outputs, logits[:, :-1])
        assert torch.equal(found, labels[:, 1:])


@pytest.mark.parametrize(
    ("batch", "result", "said"),
    [
        ((X, Y, Y), None, "tuple of 3 items: override `outputs"),
        ("text", None, "got a str: override `outputs"),
        ((X, Y), (X, X), "returned a tuple"),
        ((X, Y), {"scores": X}, "returned a dict"),
    ],
)
def test_what_cannot_be_read_is_named(batch: Any, result: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        ReadsOutputs().outputs_and_labels(Model(result), batch)


def test_the_first_batch_tells_what_is_wrong() -> None:
    class Without(Net):
        forward = LightningModule.forward

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise AssertionError("trained")

    class Flat(Without):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).flatten()

    for model, said in [
        (Without(), "EWC needs the outputs of Without .* has no `forward`.* or override `outputs"),
        (
            Flat(),
            r"Flat.forward returned outputs of shape \(24,\) for labels of shape \(8,\).* override `outputs",
        ),
    ]:
        with pytest.raises((MisconfigurationException, ValueError), match=said):
            make_trainer(EWC(1.0)).fit(model, loader(*task(0)))


def test_keyword_models_get_everything_but_the_labels() -> None:
    class Keywords(Net):
        def forward(self, **inputs: Tensor) -> Tensor:
            assert set(inputs) == {"x", "z"}
            return inputs["x"]

    EWC(1.0).outputs(Keywords(), {"x": X, "z": X, "labels": Y})


def test_outputs_alone_are_enough() -> None:
    class Own(EWC):
        def outputs(self, pl_module: Any, batch: Any) -> Tensor:
            return batch[2]

    assert Own(1.0).outputs_and_labels(Net(), (0, 0, X)) == (X, None)
