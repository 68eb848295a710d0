"""Finds the matrices of a network's layers, by which they multiply their inputs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

_ATTENTION = re.compile("attention|attn", re.IGNORECASE)
_QUERY_OR_KEY = re.compile(r"(to_|w)?(q|k|query|key)(_?(proj|lin|linear))?", re.IGNORECASE)
_ALL_THREE = re.compile(r"(to_)?qkv(_proj)?|c_attn|in_proj", re.IGNORECASE)


@dataclass(frozen=True)
class LayerMatrix:
    """A matrix in a parameter, or one for each place of a kernel and each group of channels.

    Attributes:
        name: of the parameter.
        parameter: which holds it, possibly sharded.
        start: its first row, of the parameter's first dimension.
        stop: the row after its last one.
        groups: number of groups of channels of a convolution.
        transposed: whether rows are inputs, as in transposed convolutions, and not outputs.
    """

    name: str
    parameter: Tensor
    start: int
    stop: int
    groups: int = 1
    transposed: bool = False

    def of(self, whole: Tensor) -> Tensor:
        """The matrices in the whole parameter, as a view ``(groups, positions, rows, columns)``."""
        rows = whole[self.start : self.stop]
        return rows.reshape(self.groups, len(rows) // self.groups, rows.shape[1], -1).movedim(-1, 1)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Numbers of outputs, inputs and places of the kernel."""
        rows, columns, *kernel = (self.stop - self.start) // self.groups, *self.parameter.shape[1:]
        places = 1
        for length in kernel:
            places *= length
        return (columns, rows, places) if self.transposed else (rows, columns, places)


class LayerMatrices:
    """The matrices of linear layers and convolutions, and why other parameters are none.

    Of attention only the matrices of queries and keys count, unless ``everything`` does. A low-rank adapter
    is none, since its factors have no scale of their own; nor is a depthwise convolution, of which each
    matrix is one number, nor a matrix that is an embedding, too.

    Args:
        module: the network.
        selected: parameters among which to look, by name.
        everything: whether values and outputs of attention count, too.

    Attributes:
        found: the matrices, in the order of the modules.
        left_out: reason by name of each parameter of two or more dimensions that is none.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Embedding(5, 3))
        >>> matrices = LayerMatrices(net, dict(net.named_parameters()))
        >>> [matrix.name for matrix in matrices.found], matrices.left_out
        (['0.weight'], {'1.weight': 'not of a linear layer or convolution'})
    """

    def __init__(self, module: nn.Module, selected: Mapping[str, Tensor], everything: bool = False) -> None:
        self._names = {id(p): name for name, p in selected.items() if p.ndim > 1}
        self._everything = everything
        tables = (m.weight for m in module.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag))
        self._embedded = {id(weight) for weight in tables}
        self.left_out: dict[str, str] = {}
        by_place = {(m.name, m.start): m for m in self._matrices(module, "", attends=False)}
        self.found = list(by_place.values())
        known = {m.name for m in self.found} | self.left_out.keys()
        others = (name for name in self._names.values() if name not in known)
        self.left_out |= dict.fromkeys(others, "not of a linear layer or convolution")

    def _matrices(self, module: nn.Module, name: str, attends: bool) -> Iterator[LayerMatrix]:
        if isinstance(module, nn.MultiheadAttention):
            yield from self._of_multihead(module)
        elif isinstance(module, nn.Linear):
            yield from self._of_linear(module, name, attends)
        elif isinstance(module, _ConvNd):
            yield from self._of_convolution(module)
        attends = attends or bool(_ATTENTION.search(type(module).__name__))
        for part, child in module.named_children():
            yield from self._matrices(child, name if part == "_orig_mod" else part, attends)

    def _of_multihead(self, module: nn.MultiheadAttention) -> Iterator[LayerMatrix]:
        if module.in_proj_weight is not None:
            yield from self._three_of(module.in_proj_weight)
        else:
            yield from self._rows(module.q_proj_weight)
            yield from self._rows(module.k_proj_weight)
            yield from self._value_or_output(module.v_proj_weight)

    def _of_linear(self, module: nn.Linear, name: str, attends: bool) -> Iterator[LayerMatrix]:
        weight = module.weight
        if "lora_" in self._names.get(id(weight), ""):
            self._leave(weight, "a factor of a low-rank adapter")
        elif attends and _ALL_THREE.fullmatch(name) and module.out_features == 3 * module.in_features:
            yield from self._three_of(weight)
        elif attends and not _QUERY_OR_KEY.fullmatch(name):
            yield from self._value_or_output(weight)
        else:
            yield from self._rows(weight)

    def _of_convolution(self, module: _ConvNd) -> Iterator[LayerMatrix]:
        weight, transposed = module.weight, isinstance(module, _ConvTransposeNd)
        if module.groups > 1 and weight.shape[1] == 1 and len(weight) == module.groups:
            self._leave(weight, "a depthwise convolution")
        else:
            yield from self._rows(weight, groups=module.groups, transposed=transposed)

    def _three_of(self, weight: Tensor) -> Iterator[LayerMatrix]:
        """Queries and keys, and values if these count, which are below each other."""
        third = len(weight) // 3
        for part in range(3 if self._everything else 2):
            yield from self._rows(weight, part * third, (part + 1) * third)

    def _value_or_output(self, weight: Tensor) -> Iterator[LayerMatrix]:
        if self._everything:
            yield from self._rows(weight)
        else:
            self._leave(weight, "values or outputs of attention")

    def _rows(
        self,
        weight: Tensor,
        start: int = 0,
        stop: int | None = None,
        groups: int = 1,
        transposed: bool = False,
    ) -> Iterator[LayerMatrix]:
        name = self._names.get(id(weight))
        if id(weight) in self._embedded:
            self._leave(weight, "an embedding, too")
        elif name is not None:
            yield LayerMatrix(name, weight, start, len(weight) if stop is None else stop, groups, transposed)

    def _leave(self, weight: Tensor, reason: str) -> None:
        if id(weight) in self._names:
            self.left_out[self._names[id(weight)]] = reason
