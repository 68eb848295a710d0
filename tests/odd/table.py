"""What every rule is declared to do on every unusual batch and with every unusual parameter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.every_rule import RECYCLING, REHEARSING, make
from tests.odd.batches import OWN, WITHOUT_ROWS, loader_of, odd, reading
from tests.odd.modules import MORE, ODD, Lazy, Quantised, built, plain_sgd
from tests.small import Net, loader, plain_net, task

EQUALS_ROWS = {"ewc", "mas", "kfac"}
"""Rules whose importance is compared with a loop over rows, in tests/rules/test_odd_batches.py."""
NO_UNITS = "finds no units that it could replace"
WITHOUT_UNITS = {
    "packed", "time major", "square", "graphs", "one graph", "pruned",
    "weight norm", "spectral norm", "hooked", "whole numbers",
}  # fmt: skip
"""Networks in which something else than a linear layer reads each layer."""
NOT_TOLD = r"cannot be told|holds a Graph|takes no other rows|could not train Odd on 3 of the 6 samples"


@dataclass(frozen=True)
class Row:
    """A kind of input."""

    title: str
    kind: str
    batch: bool
    refused: str | None = None
    """A regular expression that finds the sentence of every rule; ``None`` where none refuses it."""

    def refused_for(self, rule: str) -> str | None:
        """A regular expression that finds the sentence; ``None`` where the rule works."""
        if rule == "der" and self.kind == "task and as much memory":
            return "returned 12 rows for a batch of 6 samples"
        if rule in RECYCLING and self.kind in WITHOUT_UNITS:
            return NO_UNITS
        return NOT_TOLD if rule in REHEARSING and self.kind in WITHOUT_ROWS else self.refused

    def build(self, rule: str) -> tuple[Net, Any, Any]:
        """Module, training batches and the rule."""
        if self.batch:
            model, batches = odd(self.kind, batches=3)
            memory = make(rule)
            memory.__class__ = reading(type(memory))
            return model, loader_of(batches), memory
        batches = loader(*task(0))
        if self.kind in ODD:
            return built(self.kind), batches, make(rule)
        if self.kind in MORE:
            model = Net(plain_net(), plain_sgd)
            MORE[self.kind][0](model.net[0])
            return model, batches, make(rule)
        model = Net(Quantised() if self.kind == "whole numbers" else Lazy(), plain_sgd)
        model(task(0)[0])  # a lazy layer has its shape after this
        return model, batches, make(rule)


BATCHES = {
    "packed": "a `PackedSequence`",
    "time major": "time before samples, as `nn.GRU` has it by default",
    "square": "time before samples, and as many of both",
    "time major linear": "time before samples in a linear layer",
    "named tuple": "a named tuple that checks its fields",
    "dataclass": "a dataclass that checks its fields",
    "mapping": "a mapping with one batch size that it enforces, such as a `TensorDict`",
    "graphs": "several graphs, one label each",
    "one graph": "one graph with one label",
    "nodes": "a graph with a label for each node",
    "images": "a list of images of different sizes",
    "texts": "a list of texts",
    "task beside memory": "two loaders of different batch sizes, of which one is read",
    "task and memory": "two loaders of different batch sizes",
    "task and as much memory": "two loaders of one batch size",
    "batch norm": "BatchNorm without running statistics",
    "centred": "samples that influence each other by hand",
}
MODULES = {
    "pruned": "a pruned layer (`torch.nn.utils.prune`)",
    "weight norm": "`torch.nn.utils.weight_norm`",
    "spectral norm": "`torch.nn.utils.spectral_norm`",
    "registered": "one more parameter on a standard layer, without a part in its output",
    "hooked": "one more parameter, which a hook uses",
    "whole numbers": "frozen weights of eight bits",
    "lazy that has run": "a lazy layer that has run",
    "lazy": "a lazy layer that has not run",
    "complex": "complex weights",
    "sparse": "weights that are stored sparse",
    "sparse gradient of a layer": "`nn.Embedding(sparse=True)`",
    "sparse gradient": "`F.embedding(..., sparse=True)`",
}
assert BATCHES.keys() == OWN.keys()
ROWS = [Row(title, kind, batch=True) for kind, title in BATCHES.items()] + [
    Row(title, kind, batch=False, refused=ODD[kind][1] if kind in ODD else None)
    for kind, title in MODULES.items()
]


def said(row: Row, rule: str) -> str:
    """The cell of a page."""
    if row.refused_for(rule) is not None:
        return "refused"
    return "equals rows" if row.batch and rule in EQUALS_ROWS else "works"
