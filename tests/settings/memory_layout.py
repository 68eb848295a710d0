"""Networks whose weights and activations lie in memory in another order than that of their dimensions."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from tests.every_rule import OWNING
from tests.settings.outcomes import Differs, Run, Setting, Within
from tests.settings.training import make, sgd, train
from tests.small import CLASSES, FEATURES, Net

CONVOLUTIONS = {
    torch.channels_last: (nn.Conv2d, nn.BatchNorm2d, (1, 2, 3)),
    torch.channels_last_3d: (nn.Conv3d, nn.BatchNorm3d, (1, 1, 2, 3)),
}


def images(dimensions: torch.memory_format, layout: torch.memory_format, norm: bool = True) -> Net:
    """A network of convolutions, of two or three dimensions, in double precision."""
    torch.manual_seed(0)
    convolution, batch_norm, image = CONVOLUTIONS[dimensions]
    net = nn.Sequential(
        nn.Unflatten(1, image),
        convolution(1, 3, 2, padding=1, bias=not norm),  # a norm's own bias makes it 0 but for rounding
        batch_norm(3) if norm else nn.Identity(),
        nn.Tanh(),
        convolution(3, 4, 2),
        nn.Flatten(),
        nn.Linear(4 * FEATURES, CLASSES),
    )
    return Net(net.double().to(memory_format=layout), sgd)


def laid_out(rule: str | None, dimensions: torch.memory_format, layout: torch.memory_format) -> Run:
    model = images(dimensions, layout)
    found = train(model, make(rule), precision="64-true")
    assert model.net[4].weight.is_contiguous(memory_format=layout)
    return found


SETTINGS = [
    Setting(
        f"convolutions with `memory_format=torch.{name}`",
        "the same with `torch.contiguous_format`",
        partial(laid_out, dimensions=dimensions, layout=dimensions),
        partial(laid_out, dimensions=dimensions, layout=torch.contiguous_format),
        Within(1e-9, "another order of summation; in double precision"),
        dict.fromkeys(
            [*OWNING, "shrink", "shrink steps"],
            Differs("random numbers are drawn in the order of the memory"),
        ),
    )
    for name, dimensions in {
        "channels_last": torch.channels_last,
        "channels_last_3d": torch.channels_last_3d,
    }.items()
]
