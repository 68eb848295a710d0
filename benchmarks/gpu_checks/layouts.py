"""Networks that a GPU runs by other kernels or in other layouts, or that are on two devices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cl_callbacks import EWC
from gpu_checks.check import Skip, each
from gpu_checks.correctness import tolerance
from gpu_checks.place import Place
from gpu_checks.rules import PLAIN, RULES
from gpu_checks.training import CLASSES, FEATURES, Net, distance, fit, loader, model, outcome, sgd


class Recurrent(nn.Module):
    """Two layers over five copies of the inputs."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.layers = kind(FEATURES, 16, num_layers=2, batch_first=True)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x[:, None].expand(-1, 5, -1).contiguous())[0][:, -1])


def recurrent(place: Place) -> str:
    """LSTM and GRU of cuDNN: EWC, MAS and KFACLaplace measure at resting weights what the CPU does to 1 %."""
    said = []
    for kind in (nn.LSTM, nn.GRU):
        for name in ("EWC", "MAS", "KFACLaplace"):
            found = []
            for where in (place, place.on_cpu):
                rule = PLAIN[name](samples=32)
                module = model(lambda kind=kind: Recurrent(kind), sgd(lr=0.0))
                found.append(outcome(fit(where, rule, module=module, epochs=1), rule))
            said.append(f"{kind.__name__} {name} {distance(*found):.0e}")
            assert distance(*found) < 1e-2, said[-1]
    return ", ".join(said)


def recurrent_with_precision_flags(place: Place) -> str:
    """EWC measures an LSTM while the precision of cuDNN's convolutions and of its recurrent layers differ."""
    conv, rnn = torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    before = conv.fp32_precision, rnn.fp32_precision
    conv.fp32_precision, rnn.fp32_precision = "tf32", "ieee"
    try:
        fit(place, EWC(1.0, samples=16), module=model(lambda: Recurrent(nn.LSTM)), epochs=1)
        assert (conv.fp32_precision, rnn.fp32_precision) == ("tf32", "ieee"), "the precisions were changed"
    finally:
        conv.fp32_precision, rnn.fp32_precision = before
    return "measured, and both left as they were"


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, CLASSES),
    )


def channels_last(place: Place) -> str:
    """Convolutions in channels_last: rules without random numbers as in the usual layout to 1e-6, all run."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(48, 3, 8, 8, generator=generator, dtype=torch.float64)
    data = loader(images, torch.randint(CLASSES, (48,), generator=generator))

    def compare(name: str, make: Any) -> float | None:
        found = []
        for layout in (torch.channels_last, torch.contiguous_format):
            rule, module = make(), model(convolutional).double()
            module.to(memory_format=layout)
            fit(place, rule, module=module, data=data, epochs=2)
            found.append(outcome(module, rule))
        if name not in PLAIN:
            return None
        apart = distance(*found)
        assert apart < 1e-6, f"differs by {apart:.1e}"
        return apart

    return each(place.of(RULES), compare)


class Split(Net):
    """The second layer on the second device."""

    def __init__(self, device: str) -> None:
        super().__init__(nn.ModuleList([nn.Linear(FEATURES, 32), nn.Linear(32, CLASSES)]), sgd())
        self.second = torch.device(device, 1)

    def on_fit_start(self) -> None:
        self.net[1].to(self.second)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.net[0](x).tanh()
        return self.net[1](hidden.to(self.net[1].weight.device)).to(x.device)


class Whole(Split):
    """The same network on one device."""

    def on_fit_start(self) -> None:
        pass


def two_devices(place: Place) -> str:
    """Layers on two devices by hand: rules without random numbers as on one device, to 1e-8; all run."""
    if place.device == "cpu" or torch.get_device_module(place.device).device_count() < 2:
        raise Skip("needs two devices")

    def compare(name: str, make: Any) -> float | None:
        found = []
        for kind in (Split, Whole):
            torch.manual_seed(0)
            rule, module = make(), kind(place.device).double()
            found.append(outcome(fit(place, rule, module=module), rule))
        if name not in PLAIN:
            return None
        apart = distance(*found)
        assert apart < tolerance(name), f"differs by {apart:.1e}"
        return apart

    return each(place.of(RULES), compare)
