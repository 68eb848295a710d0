"""Networks with parameters of unusual kinds, which every rule works with or refuses by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune, spectral_norm, weight_norm

from tests.small import CLASSES, FEATURES, Net

HIDDEN = 8


class Between(nn.Module):
    """A plain network with one more parameter between its layers, or one more layer."""

    def __init__(self, odd: Any) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, CLASSES)
        self.odd = odd

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x).tanh()))

    def between(self, h: Tensor) -> Tensor:
        return h


class Fourier(Between):
    """A filter with complex weights."""

    def __init__(self) -> None:
        super().__init__(nn.Parameter(torch.randn(1, HIDDEN // 2 + 1, dtype=torch.cfloat)))

    def between(self, h: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(h) * self.odd, n=HIDDEN)


class SparseTable(Between):
    """A table whose gradient is sparse, which no rule can know before there is one."""

    def __init__(self) -> None:
        super().__init__(nn.Parameter(torch.randn(5, HIDDEN)))

    def between(self, h: Tensor) -> Tensor:
        return h + F.embedding(h.argmax(1) % 5, self.odd, sparse=True)


class SparseLayer(Between):
    def __init__(self) -> None:
        super().__init__(nn.Embedding(5, HIDDEN, sparse=True))

    def between(self, h: Tensor) -> Tensor:
        return h + self.odd(h.argmax(1) % 5)


class SparseMatrix(Between):
    """A parameter that is stored as its few entries."""

    def __init__(self) -> None:
        super().__init__(nn.Parameter(torch.eye(HIDDEN).to_sparse()))

    def between(self, h: Tensor) -> Tensor:
        return h + torch.sparse.mm(self.odd, h.T).T


class Lazy(Between):
    def __init__(self) -> None:
        super().__init__(nn.LazyLinear(HIDDEN))

    def between(self, h: Tensor) -> Tensor:
        return self.odd(h)


class Odd(Net):
    """Its parameters that have sparse gradients get an optimizer that can read them."""

    def __init__(self, net: Between) -> None:
        super().__init__(net)
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        sparse = isinstance(self.net, SparseTable | SparseLayer | SparseMatrix)
        odd = [p for name, p in self.named_parameters() if "odd" in name] if sparse else []
        rest = [p for p in self.parameters() if not any(p is other for other in odd)]
        kind = torch.optim.SGD if isinstance(self.net, SparseMatrix) else torch.optim.SparseAdam
        return [torch.optim.SGD(rest, lr=0.05), *([kind(odd, lr=0.01)] if odd else [])]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        found = self.optimizers()
        optimizers = found if isinstance(found, list) else [found]
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        for optimizer in optimizers:
            optimizer.step()


ODD: dict[str, tuple[Callable[[], Between], str]] = {
    "complex": (Fourier, r"net\.odd is complex: .*view_as_real"),
    "sparse gradient of a layer": (SparseLayer, r"net\.odd\.weight gets a sparse gradient: .*sparse=False"),
    "sparse gradient": (SparseTable, r"net\.odd gets a sparse gradient: .*sparse=False"),
    "sparse": (SparseMatrix, r"net\.odd is stored as torch\.sparse_coo: .*to_dense"),
    "lazy": (Lazy, r"net\.odd\.weight.* has no shape yet, .*run one batch through the module"),
}


def built(kind: str) -> Odd:
    torch.manual_seed(0)
    return Odd(ODD[kind][0]())


def plain_sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in parameters if p.requires_grad], lr=0.05)


class Quantised(Between):
    """Frozen weights of eight bits, and a buffer of whole numbers."""

    def __init__(self) -> None:
        super().__init__(nn.Parameter(torch.randint(-9, 9, (HIDDEN, HIDDEN), dtype=torch.int8), False))
        self.register_buffer("zero_point", torch.ones(HIDDEN, dtype=torch.int64))

    def between(self, h: Tensor) -> Tensor:
        return h @ ((self.odd.float() - self.zero_point) * 0.1)


# -- more parameters than the class of a layer has ---------------------------------------------------------


def registered(layer: nn.Linear) -> None:
    layer.register_parameter("spare", nn.Parameter(torch.ones(3, 3)))


def hooked(layer: nn.Linear) -> None:
    layer.gain = nn.Parameter(torch.ones(1, HIDDEN))
    layer.register_forward_hook(lambda module, inputs, outputs: outputs * module.gain)


MORE: dict[str, tuple[Callable[[nn.Linear], Any], list[str]]] = {
    "pruned": (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), ["weight_orig"]),
    "weight norm": (weight_norm, ["weight_g", "weight_v"]),
    "spectral norm": (spectral_norm, ["weight_orig"]),
    "registered": (registered, ["spare"]),
    "hooked": (hooked, ["gain"]),
}
