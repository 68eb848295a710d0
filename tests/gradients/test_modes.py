"""Recurrent layers without cuDNN, whose kernels cannot be differentiated in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_callbacks import EWC
from cl_callbacks.gradients import fisher_information
from cl_callbacks.gradients.modes import differentiable_in_evaluation
from tests.small import CLASSES, FEATURES, Net, loader, make_trainer, task

SEEN: list[tuple[str, bool]] = []


class SeeingLSTM(nn.LSTM):
    def forward(self, *args: Any) -> Any:
        SEEN.append(("lstm", torch.backends.cudnn.enabled))
        return super().forward(*args)


class SeeingConv(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        SEEN.append(("conv", torch.backends.cudnn.enabled))
        return super().forward(x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm = SeeingConv(1, 2, 1), SeeingLSTM(2, 4, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.conv(x.unsqueeze(1)).mT)[0][:, -1])


def switches() -> dict[str, Any]:
    cudnn: Any = torch.backends.cudnn
    names = "enabled", "benchmark", "deterministic", "fp32_precision"
    return {name: getattr(cudnn, name) for name in names} | {
        "conv": cudnn.conv.fp32_precision,
        "rnn": cudnn.rnn.fp32_precision,
    }


@pytest.fixture
def precisions_apart() -> Iterator[dict[str, Any]]:
    """Which torch's older switch, `allow_tf32`, cannot say."""
    cudnn: Any = torch.backends.cudnn
    if not hasattr(cudnn, "conv"):
        pytest.skip("this version of torch has one switch for both")
    before = cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision
    cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = "tf32", "ieee"
    SEEN.clear()
    yield switches()
    cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = before


@pytest.mark.parametrize("how", ["rule", "function"])
def test_only_recurrent_layers_run_without(precisions_apart: dict[str, Any], how: str) -> None:
    with pytest.raises(RuntimeError, match="allow_tf32"):
        torch.backends.cudnn.flags(enabled=False).__enter__()
    model, ewc = Net(Recurrent()), EWC(1.0)
    if how == "rule":
        make_trainer(ewc).fit(model, loader(*task(0)))
        assert ewc.tasks == 1
        assert ("lstm", True) in SEEN  # in training
    else:
        fisher_information(model, [task(0)[0]], likelihood="categorical")
        assert ("lstm", True) not in SEEN
    assert ("lstm", False) in SEEN
    assert ("conv", True) in SEEN
    assert ("conv", False) not in SEEN
    assert switches() == precisions_apart


class Failing(nn.LSTM):
    error: type[BaseException] = ValueError

    def forward(self, *args: Any) -> Any:
        assert not torch.backends.cudnn.enabled
        raise self.error("from the layer")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_switches_are_restored_after_an_exception(
    precisions_apart: dict[str, Any], error: type[BaseException]
) -> None:
    layer = Failing(FEATURES, 2)
    layer.error = error
    with pytest.raises(error, match="from the layer"), differentiable_in_evaluation(layer):
        layer(torch.zeros(1, FEATURES))
    assert switches() == precisions_apart
    assert not layer._forward_hooks and not layer._forward_pre_hooks
