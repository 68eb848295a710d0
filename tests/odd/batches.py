"""Batches of every kind that cannot be counted or cut, with a module that reads them; rows are samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader

from tests.small import CLASSES, FEATURES, Net


class Checked(NamedTuple("Checked", [("x", Tensor), ("y", Tensor), ("name", str)])):
    """A named tuple that checks its fields."""

    __slots__ = ()

    def __new__(cls, x: Tensor, y: Tensor, name: str) -> Checked:
        assert x.ndim == 2 and len(x) == len(y)
        return super().__new__(cls, x, y, name)


@dataclass
class Fields:
    """A dataclass that checks its fields, and that there are as many inputs as labels."""

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        if not (isinstance(self.x, Tensor) and len(self.x) == len(self.y)):
            raise TypeError("x and y belong together")


class Sized(MutableMapping):
    """A mapping of tensors with one batch size, which it enforces, in the manner of a TensorDict."""

    def __init__(self, values: dict[str, Tensor], size: int) -> None:
        self.values_, self.size = {}, size
        for key, value in values.items():
            self[key] = value

    def __getitem__(self, key: str) -> Tensor:
        return self.values_[key]

    def __setitem__(self, key: str, value: Tensor) -> None:
        if len(value) != self.size:
            raise RuntimeError(f"a batch of {self.size} has no place for {len(value)}")
        self.values_[key] = value

    def __delitem__(self, key: str) -> None:
        del self.values_[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)

    def to(self, device: Any) -> Sized:
        return Sized({key: value.to(device) for key, value in self.items()}, self.size)


class Graph:
    """Several graphs as one: features of all nodes, and to which graph each belongs."""

    def __init__(self, x: Tensor, graph: Tensor, y: Tensor) -> None:
        self.x, self.graph, self.y = x, graph, y
        self.myself = self

    def to(self, device: Any) -> Graph:
        return Graph(*(t.to(device) for t in (self.x, self.graph, self.y)))


class Odd(Net):
    """A module that reads its batches in a way of its own, of which `EWC.outputs` knows nothing."""

    def __init__(self, read: Callable[[Any, Any], tuple[Tensor, Tensor]], **layers: nn.Module) -> None:
        super().__init__(nn.Sequential(nn.Linear(8, CLASSES)))
        self.first, self.act = nn.Linear(FEATURES, 8), nn.Tanh()
        self.read = read
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        return self.read(self, batch)

    def head(self, x: Tensor) -> Tensor:
        return self.net(self.act(self.first(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(*self(batch))


def outputs(self: Any, pl_module: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """What a user overrides of a rule."""
    return pl_module(batch)


def reading(rule: type) -> type:
    """The rule with :func:`outputs`."""
    return type(f"Own{rule.__name__}", (rule,), {"outputs": outputs, "__module__": __name__})


def _x(n: int, *shape: int) -> Tensor:
    return torch.randn(n, *(shape or (FEATURES,)))


def _y(n: int) -> Tensor:
    return torch.randint(CLASSES, (n,))


def _packed(n: int) -> Any:
    return pack_sequence([_x(length) for length in range(n + 2, 2, -1)]), _y(n)


def _graph(n: int) -> Graph:
    sizes = torch.arange(n) % 3 + 1
    return Graph(_x(int(sizes.sum())), torch.arange(n).repeat_interleave(sizes), _y(n))


def _pooled(net: Any, g: Graph) -> tuple[Tensor, Tensor]:
    nodes = net.act(net.first(g.x))
    return net.net(nodes.new_zeros(len(g.y), 8).index_add(0, g.graph, nodes)), g.y


def _images(net: Any, batch: Any) -> tuple[Tensor, Tensor]:
    return net.head(torch.stack([image.mean((1, 2)) for image in batch[0]])), batch[1]


def _texts(net: Any, batch: Any) -> tuple[Tensor, Tensor]:
    counts = [[float(text.count(letter)) for letter in "abcdef"] for text in batch["text"]]
    x = torch.tensor(counts, dtype=net.first.weight.dtype)
    return net.head(x), batch["label"]


def _both(net: Any, batch: Any) -> tuple[Tensor, Tensor]:
    parts = batch.values()
    return net.head(torch.cat([x for x, _ in parts])), torch.cat([y for _, y in parts])


class Centred(nn.Module):
    """Samples influence each other without any layer that is known to do so."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def _sequence(net: Any, batch: Any) -> tuple[Tensor, Tensor]:
    return net.net(net.rnn(batch[0])[1][-1]), batch[1]


def _steps(net: Any, batch: Any) -> tuple[Tensor, Tensor]:
    return net.net(net.act(net.first(batch[0])).mean(0)), batch[1]


def _pair(net: Any, batch: Any) -> tuple[Tensor, Tensor]:
    x, y = (batch["x"], batch["y"]) if isinstance(batch, Sized) else (batch.x, batch.y)
    return net.head(x), y


def _plain(net: Any, batch: Any) -> tuple[Tensor, Tensor]:
    return net.head(batch[0]), batch[1]


def _task(net: Any, batch: Any) -> tuple[Tensor, Tensor]:
    return net.head(batch["task"][0]), batch["task"][1]


def _gru() -> dict[str, nn.Module]:
    return {"rnn": nn.GRU(FEATURES, 8)}


def _norm() -> dict[str, nn.Module]:
    return {"act": nn.Sequential(nn.BatchNorm1d(8, track_running_stats=False), nn.Tanh())}


def _centred() -> dict[str, nn.Module]:
    return {"act": nn.Sequential(Centred(), nn.Tanh())}


# How the module reads a batch, how a batch of about n samples is made, and the module's own layers.
OWN: dict[str, tuple[Callable[..., Any], Callable[[int], Any], Callable[[], dict[str, nn.Module]]]] = {
    "packed": (_sequence, _packed, _gru),
    "time major": (_sequence, lambda n: (_x(9, n, FEATURES), _y(n)), _gru),
    "square": (_sequence, lambda n: (_x(n, n, FEATURES), _y(n)), _gru),
    "time major linear": (_steps, lambda n: (_x(9, n, FEATURES), _y(n)), dict),
    "named tuple": (_pair, lambda n: Checked(_x(n), _y(n), "a"), dict),
    "dataclass": (_pair, lambda n: Fields(_x(n), _y(n)), dict),
    "mapping": (_pair, lambda n: Sized({"x": _x(n), "y": _y(n)}, n), dict),
    "graphs": (_pooled, _graph, dict),
    "one graph": (_pooled, lambda n: Graph(_x(n), torch.zeros(n, dtype=torch.long), _y(1)), dict),
    "nodes": (lambda net, g: (net.head(g.x), g.graph % CLASSES), _graph, dict),
    "images": (_images, lambda n: ([_x(FEATURES, 3 + i, 4) for i in range(n)], _y(n)), dict),
    "texts": (_texts, lambda n: {"text": ["abcdef"[i % 5 :] * i for i in range(n)], "label": _y(n)}, dict),
    "task beside memory": (
        _task,
        lambda n: {"task": (_x(n), _y(n)), "memory": (_x(n // 2), _y(n // 2), _x(n // 2, 1))},
        dict,
    ),
    "task and memory": (
        _both,
        lambda n: {"task": (_x(n), _y(n)), "memory": (_x(n // 2), _y(n // 2))},
        dict,
    ),
    "task and as much memory": (_both, lambda n: {"task": (_x(n), _y(n)), "memory": (_x(n), _y(n))}, dict),
    "batch norm": (_plain, lambda n: (_x(n), _y(n)), _norm),
    "centred": (_plain, lambda n: (_x(n), _y(n)), _centred),
}
WITHOUT_ROWS = {
    "time major", "square", "time major linear", "mapping", "graphs", "one graph", "nodes", "images",
    "task beside memory", "task and memory",
}  # fmt: skip
"""Batches of which single samples cannot be remembered."""


def odd(name: str, samples: int = 6, batches: int = 1) -> tuple[Odd, list[Any]]:
    """The module and some batches of a kind."""
    read, make, layers = OWN[name]
    torch.manual_seed(0)
    return Odd(read, **layers()), [make(samples) for _ in range(batches)]


def loader_of(batches: list[Any]) -> DataLoader:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
