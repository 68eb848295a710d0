"""Follows the units of all layers through one run of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.overrides import TorchFunctionMode

from cl_callbacks.rules.renewal.places import (
    ATTENTION,
    COMBINING,
    DIVIDING,
    NORMALISING,
    RESHAPING,
    Call,
    Place,
    after,
    combined,
    divided_into_heads,
)
from cl_callbacks.synapses.state import plain_name
from cl_callbacks.tensors.containers import flat_tensors

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm),
)
_READERS = {"linear": 1, "conv1d": 2, "conv2d": 3, "conv3d": 4}
"""Functions that read units, and the number of dimensions of their input from that of the units on."""


@dataclass(eq=False)
class Source:
    """Layers whose outputs are the same units, and what was found of these so far."""

    layers: list[str]
    number: int
    rows: int = 1
    norms: dict[str, None] = field(default_factory=dict)
    readers: dict[str, int] = field(default_factory=dict)  # columns of each unit, by name of the weight
    obstacle: str = ""

    def take(self, other: Source) -> None:
        """Adds what was found of another, whose units are these too."""
        self.norms |= other.norms
        for reader, columns in other.readers.items():
            self.read_by(reader, columns)
        self.obstacle = self.obstacle or other.obstacle

    def read_by(self, reader: str, columns: int) -> None:
        """Notes that a weight reads the units."""
        if self.readers.setdefault(reader, columns) != columns:
            self.left_out(f"{reader} is used elsewhere")

    def left_out(self, reason: str) -> None:
        """Notes why the units cannot be replaced; the first reason stays."""
        self.obstacle = self.obstacle or reason


class UnitTrace(TorchFunctionMode):
    """Follows the outputs of layers through the functions of torch that are called while it is entered.

    Args:
        module: with the layers.

    Attributes:
        sources: what was found, by layer.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.sources: dict[str, Source] = {}
        self._module = module
        self._layers = {
            f"{plain_name(name)}.weight": (plain_name(name), layer)
            for name, layer in module.named_modules()
            if isinstance(layer, LAYERS) and (getattr(layer, "groups", 1) == 1 or _is_depthwise(layer))
        }
        self._names: dict[int, str] = {}  # of a parameter; by several id() of one that is sharded
        self._norms: dict[int, str] = {}
        self._learn_names()
        self._carried: dict[int, tuple[Source, Place]] = {}
        self._alive: list[Tensor] = []  # so that no other tensor gets the id() of one
        self._inputs: dict[str, int] = {}  # id() of the input of a layer's present call
        self._uses: dict[str, set[str]] = {}  # of each parameter: the layer that it reads, or what reads it
        self._handles: list[Any] = []

    def __enter__(self) -> UnitTrace:
        for name, (_, layer) in self._layers.items():
            self._handles.append(layer.register_forward_pre_hook(self._noting(name)))
        for part in self._module.modules():
            if isinstance(part, FSDPModule):
                self._handles.append(part.register_forward_pre_hook(self._learn_names))
        super().__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        for handle in self._handles:
            handle.remove()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._follow(getattr(func, "__name__", str(func)), func, args, kwargs or {}, result)
        return result

    def parameters_of(self, layer: str) -> list[str]:
        """Names of the parameters of a layer."""
        _, found = self._layers[f"{layer}.weight"]
        return [f"{layer}.{name}" for name in ("weight", "bias") if getattr(found, name) is not None]

    def obstacle(self, source: Source) -> str:
        """Why the units of a source cannot be told from what reads them; empty if they can."""
        layers = [self._layers[f"{name}.weight"][1] for name in source.layers]
        own = [p for layer in layers for p in (layer.weight, layer.bias) if p is not None]
        if any(self._users(self._names[id(p)]) > 1 for p in own):
            return "its weights are shared"
        if not source.readers:
            return "read by nothing"
        for reader in source.readers:
            if self._users(reader) > 1:
                return f"{reader} reads others too"
        if any(self._users(f"{norm}.weight") > 1 for norm in source.norms):
            return "its norm is shared"
        if len({*source.readers.values()}) > 1 or source.rows not in (1, *source.readers.values()):
            return "read as channels and as numbers"
        return ""

    def _users(self, parameter: str) -> int:
        return len({self.sources.get(use, use) for use in self._uses.get(parameter, ())})

    def _learn_names(self, *_: Any) -> None:
        """Notes which tensors the parameters are: in a forward of FSDP2 others than before, gathered."""
        parameters = self._module.named_parameters(remove_duplicate=False)
        self._names.update({id(p): plain_name(name) for name, p in parameters})
        self._names.update({id(layer.weight): name for name, (_, layer) in self._layers.items()})
        norms = ((plain_name(n), m) for n, m in self._module.named_modules() if isinstance(m, NORMS))
        for name, norm in norms:
            known = (getattr(norm, "weight", None), getattr(norm, "running_mean", None))
            self._norms.update({id(t): name for t in known if t is not None})

    def _noting(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def note(layer: nn.Module, args: tuple[Any, ...]) -> None:
            self._inputs[name] = id(args[0]) if args else 0

        return note

    def _follow(
        self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        given, outputs = flat_tensors((args, kwargs)), flat_tensors(result)
        carried = [t for t in given if id(t) in self._carried]
        if not outputs and name != "__setitem__":  # a shape, a type, a number
            return
        name = name if name.startswith("__") else name.rstrip("_")
        if name in _READERS:
            return self._read(name, args, kwargs, outputs[0])
        # Of several tensors with units the last: of attention the values, behind queries and keys.
        call = Call(name, func, args, kwargs, carried[-1], outputs[0]) if carried and outputs else None
        place = self._after(call, given) if call is not None else None
        source = self._carried[id(carried[-1])][0] if carried else None
        if place is not None and source is not None:
            self._carry(outputs[0], source, place)
        for found, _ in (self._carried[id(t)] for t in carried):
            if place is None or found is not source:
                found.left_out(f"read by {name.strip('_')}")
        for tensor in given if place is None else ():
            if id(tensor) in self._names and name != "__get__":
                self._uses.setdefault(self._names[id(tensor)], set()).add(f" {name}")

    def _after(self, call: Call, given: Sequence[Tensor]) -> Place | None:
        """Where the result of a function that handles each unit by itself has them; else ``None``."""
        x, name = call.x, call.name
        source, place = self._carried[id(x)]
        if name in ATTENTION:
            heads = place.dim < x.ndim - 2 and source.rows > 1 and call.out.ndim == x.ndim
            return place if heads else None
        others = [t for t in given if t is not x]
        if name in COMBINING or (name in DIVIDING and call.args[0] is x):
            return self._combined(call, source, place, others)
        if any(id(t) in self._carried for t in others):
            return None
        if name in NORMALISING:
            norms = {self._norms[id(t)] for t in others if id(t) in self._norms}
            source.norms.update(dict.fromkeys(norms))
            for norm in norms:
                self._uses.setdefault(f"{norm}.weight", set()).add(source.layers[0])
        elif name in RESHAPING and divided_into_heads(x, call.out, place) and not source.readers:
            number, rows = call.out.shape[-2:]
            if source.rows not in (1, rows):
                return None
            source.number, source.rows = number, rows
            return place
        return after(call, place)

    def _combined(self, call: Call, source: Source, place: Place, others: Sequence[Tensor]) -> Place | None:
        """The units of all that are added or multiplied one by one, which from here on are the same."""
        found = [self._carried.get(id(t)) for t in others]
        places = [(t, f and f[1]) for t, f in zip(others, found, strict=True)]
        result = combined(call.x, call.out, place, places)
        joining = [f[0] for f in found if f is not None and f[0] is not source]
        alike = all((s.number, s.rows) == (source.number, source.rows) for s in joining)
        if result is None or not alike:
            return None
        for other in joining:
            self._join(source, other)
        return result

    def _join(self, source: Source, other: Source) -> None:
        source.take(other)
        self.sources.update(dict.fromkeys(other.layers, source))
        source.layers = [layer for layer, found in self.sources.items() if found is source]
        for key, (found, place) in self._carried.items():
            if found is other:
                self._carried[key] = source, place

    def _read(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        x = given["input"]
        source, place = self._carried.get(id(x), (None, Place(0)))
        parameter = self._names.get(id(given["weight"]), "")
        known = parameter in self._layers and self._inputs.get(parameter) == id(x)
        own, layer = self._layers.get(parameter, ("", None))
        by_channel = known and _is_depthwise(layer)
        behind = _READERS[name]
        if source is not None:
            if not known or place.dim != x.ndim - behind:
                computed = f"read by a {name} of computed weights"
                source.left_out(f"{parameter} is used elsewhere" if parameter else computed)
            elif not by_channel:
                source.read_by(parameter, place.columns)
            elif place.columns > 1:
                source.left_out("read as channels and as numbers")
        if parameter:
            reads = (source.layers[0] if source else "") if known else " another layer"
            self._uses.setdefault(parameter, set()).add(reads)
        if id(given.get("bias")) in self._names:
            self._uses.setdefault(self._names[id(given["bias"])], set()).add(parameter)
        if known:
            new = self.sources.setdefault(own, Source([own], len(given["weight"])))
            if by_channel and source is not None and new is not source and not source.obstacle:
                self._join(source, new)
                new = source
            self._carry(out, new, Place(out.ndim - behind))

    def _carry(self, tensor: Tensor, source: Source, place: Place) -> None:
        self._alive.append(tensor)
        self._carried[id(tensor)] = source, place


def _is_depthwise(layer: Any) -> bool:
    """Whether a convolution has one input and one output in each group."""
    return getattr(layer, "groups", 1) > 1 and layer.groups == layer.in_channels == layer.out_channels
