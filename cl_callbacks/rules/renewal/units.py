"""Which weights lead into each unit of a network, and which read it: found by running the network once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.overrides import TorchFunctionMode

from cl_callbacks.synapses.state import plain_name
from cl_callbacks.tensors.containers import flat_tensors

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.LayerNorm, nn.RMSNorm)

_READERS = {"linear", "conv1d", "conv2d", "conv3d"}
_ELEMENTWISE = {
    "alpha_dropout", "celu", "clamp", "clip", "clone", "contiguous", "double", "dropout", "elu",
    "feature_alpha_dropout", "dropout1d", "dropout2d", "dropout3d", "float", "bfloat16", "half", "gelu",
    "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "logsigmoid", "mish", "relu", "relu6", "selu",
    "sigmoid", "silu", "softplus", "softsign", "square", "tanh", "tanhshrink", "threshold", "to", "type_as",
}  # fmt: skip
_POOLING = {
    f"{kind}{d}d"
    for d in (1, 2, 3)
    for kind in ("avg_pool", "max_pool", "adaptive_avg_pool", "adaptive_max_pool")
}
_RESHAPING = {"flatten", "reshape", "view"}
_ATTENTION = {"scaled_dot_product_attention", "matmul", "__matmul__", "bmm"}
_NORMALISING = {"batch_norm", "layer_norm", "rms_norm"}
_MOVING = {"transpose", "permute", "movedim", "swapaxes", "squeeze", "unsqueeze"}


@dataclass(frozen=True)
class Units:
    """The units of one layer: its outputs, each of them a number or a channel.

    Attributes:
        layer: name of the layer.
        number: of units.
        incoming: names of the parameters whose rows (of the first dimension) lead into each unit: weight and
            bias of the layer.
        norms: names of the norms behind it, such as BatchNorm and LayerNorm, whose parameters and statistics
            have a row for each unit.
        outgoing: names of the weights whose columns (of the second dimension) read the units.
        rows: number of rows of each unit, which lie side by side: those of a head of attention, else 1.
        columns: number of columns of each unit, side by side too: those of a head, or the positions of a
            channel that was flattened, else 1.
    """

    layer: str
    number: int
    incoming: tuple[str, ...]
    norms: tuple[str, ...]
    outgoing: tuple[str, ...]
    rows: int = 1
    columns: int = 1


@dataclass
class _Source:
    layer: str
    number: int
    rows: int = 1
    norms: dict[str, None] = field(default_factory=dict)
    readers: dict[str, int] = field(default_factory=dict)  # columns of each unit, by name of the weight
    obstacle: str = ""


@dataclass(frozen=True)
class _Carried:
    """Where a tensor has the units of a layer: their dimension, and how many entries each has there."""

    source: _Source
    dim: int
    columns: int


def find_units(module: nn.Module, run: Callable[[], Any]) -> tuple[list[Units], dict[str, str]]:
    """Finds the units of linear and convolutional layers that only other such layers read.

    From a unit to its readers there may be activations, dropout, norms, pooling, and flattening. Where a
    layer gives the values of attention, each head is a unit. A unit that something else reads too is left
    out, since nobody could tell by which weights: that of an output, of a residual stream, of a query or
    key, or of a gate.

    Args:
        module: whose layers are looked at.
        run: runs the module on a batch. Layers that it does not run are not found.

    Returns:
        The units of each layer, in order; and why others were left out, by layer.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> units, left_out = find_units(net, lambda: net(torch.ones(5, 4)).sum())
        >>> units[0].incoming, units[0].outgoing
        (('0.weight', '0.bias'), ('2.weight',))
        >>> left_out
        {'2': 'read by sum'}
    """
    with _Trace(module) as trace, torch.no_grad():
        run()
    found, left_out = [], {}
    for source in trace.sources.values():
        reason = source.obstacle or trace.obstacle(source)
        if reason:
            left_out[source.layer] = reason
            continue
        layer = module.get_submodule(source.layer)
        own = [name for name in ("weight", "bias") if getattr(layer, name) is not None]
        incoming = tuple(f"{source.layer}.{name}" for name in own)
        columns = next(iter(source.readers.values()))
        readers = tuple(source.readers)
        norms = tuple(source.norms)
        found.append(Units(source.layer, source.number, incoming, norms, readers, source.rows, columns))
    return found, left_out


class _Trace(TorchFunctionMode):
    """Follows the outputs of layers through the functions of torch that are called."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.sources: dict[str, _Source] = {}
        self._module = module
        self._layers = {
            f"{plain_name(name)}.weight": (plain_name(name), layer)
            for name, layer in module.named_modules()
            if isinstance(layer, LAYERS) and getattr(layer, "groups", 1) == 1
        }
        self._names: dict[int, str] = {}  # of a parameter; by several id() of one that is sharded
        self._norms: dict[int, str] = {}
        self._learn_names()
        self._carried: dict[int, _Carried] = {}
        self._alive: list[Tensor] = []  # so that no other tensor gets the id() of one
        self._inputs: dict[str, int] = {}  # id() of the input of a layer's present call
        self._uses: dict[str, set[str]] = {}  # of each parameter: the layer that it reads, or what reads it
        self._handles: list[Any] = []

    def __enter__(self) -> _Trace:
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

    def obstacle(self, source: _Source) -> str:
        """Why the units of a layer cannot be told from what reads them; empty if they can."""
        _, layer = self._layers[f"{source.layer}.weight"]
        own = (self._names[id(p)] for p in (layer.weight, layer.bias) if p is not None)
        if any(len(self._uses.get(name, ())) > 1 for name in own):
            return "its weights are shared"
        if not source.readers:
            return "read by nothing"
        for reader in source.readers:
            if len(self._uses[reader]) > 1:
                return f"{reader} reads others too"
        if any(len(self._uses[f"{norm}.weight"]) > 1 for norm in source.norms):
            return "its norm is shared"
        if len(set(source.readers.values())) > 1:
            return "read as channels and as numbers"
        return ""

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
        carried = [(t, self._carried[id(t)]) for t in given if id(t) in self._carried]
        if not outputs and name != "__setitem__":  # a shape, a type, a number
            return
        name = name if name.startswith("__") else name.rstrip("_")
        if name in _READERS:
            return self._read(name, args, kwargs, outputs[0])
        kept = self._kept(name, func, args, kwargs, carried, outputs) if carried and outputs else None
        if kept is not None:
            self._carry(outputs[0], kept)
        for _, found in carried:
            if kept is None or found.source is not kept.source:
                found.source.obstacle = found.source.obstacle or f"read by {name.strip('_')}"
        for tensor in given if kept is None else ():
            if id(tensor) in self._names and name != "__get__":
                self._uses.setdefault(self._names[id(tensor)], set()).add(f" {name}")

    def _kept(
        self,
        name: str,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        carried: Sequence[tuple[Tensor, _Carried]],
        outputs: Sequence[Tensor],
    ) -> _Carried | None:
        """The units in the outputs of a function that handles each of them by itself; else ``None``."""
        (x, found), out = carried[-1], outputs[0]  # of attention the values, behind queries and keys
        if name in _ATTENTION:
            return found if found.dim < x.ndim - 2 and found.source.rows > 1 and out.ndim == x.ndim else None
        if any(t is not x for t, _ in carried):
            return None
        if name in _ELEMENTWISE:
            return found if out.shape == x.shape else None
        if name in _POOLING:
            return found if found.dim == 1 and x.ndim > 2 else None
        if name in _NORMALISING:
            norms = {self._norms[id(t)] for t in flat_tensors((args, kwargs)) if id(t) in self._norms}
            found.source.norms.update(dict.fromkeys(norms))
            for norm in norms:
                self._uses.setdefault(f"{norm}.weight", set()).add(found.source.layer)
            return found if found.columns == 1 and _fits_norm(name, x, found.dim, args, kwargs) else None
        if name in _RESHAPING:
            return _reshaped(x, out, found)
        if name in _MOVING:
            return _moved(x, found, func, args, kwargs)
        return None

    def _read(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        x = given["input"]
        found, parameter = self._carried.get(id(x)), self._names.get(id(given["weight"]), "")
        known = parameter in self._layers and self._inputs.get(parameter) == id(x)
        if found is not None:
            fits = found.dim == (x.ndim - 1 if name == "linear" else 1)
            if not (
                known and fits and found.source.readers.setdefault(parameter, found.columns) == found.columns
            ):
                reason = (
                    f"{parameter} is used elsewhere" if parameter else f"read by a {name} of computed weights"
                )
                found.source.obstacle = found.source.obstacle or reason
        if parameter:
            reads = (found.source.layer if found else "") if known else " another layer"
            self._uses.setdefault(parameter, set()).add(reads)
        if id(given.get("bias")) in self._names:
            self._uses.setdefault(self._names[id(given["bias"])], set()).add(parameter)
        if known:
            own, layer = self._layers[parameter]
            source = self.sources.setdefault(own, _Source(own, len(layer.weight)))
            dim = out.ndim - 1 if name == "linear" else out.ndim - int(name[-2]) - 1
            self._carry(out, _Carried(source, dim, 1))

    def _carry(self, tensor: Tensor, carried: _Carried) -> None:
        self._alive.append(tensor)
        self._carried[id(tensor)] = carried


def _fits_norm(name: str, x: Tensor, dim: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the parameters of the norm have an entry for each unit, and for nothing else."""
    if name == "batch_norm":
        return dim == 1
    shape = kwargs.get("normalized_shape", args[1] if len(args) > 1 else ())
    return dim == x.ndim - 1 and tuple(shape) == x.shape[-1:]


def _reshaped(x: Tensor, out: Tensor, found: _Carried) -> _Carried | None:
    """The units after dimensions behind them were merged with theirs, or those before it changed."""
    behind = x.ndim - found.dim
    if out.shape[-behind:] == x.shape[found.dim :]:
        return _Carried(found.source, out.ndim - behind, found.columns)
    if behind == 1 and out.shape[:-2] == x.shape[:-1] and found.columns == 1 and not found.source.readers:
        return _heads(out, found)
    if out.shape[:-1] == x.shape[: found.dim]:
        positions = x.shape[found.dim + 1 :].numel()
        return _Carried(found.source, found.dim, found.columns * positions)
    return None


def _heads(out: Tensor, found: _Carried) -> _Carried | None:
    """Heads as units, once the outputs of a layer are divided into them."""
    number, rows = out.shape[-2:]
    source = found.source
    if source.rows not in (1, rows):
        return None
    source.number, source.rows = number, rows
    return _Carried(source, found.dim, 1)


def _moved(
    x: Tensor, found: _Carried, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> _Carried | None:
    """The units after their dimension has become another one, which its stride tells."""
    if x.shape[found.dim] == 1:
        return None
    meta = torch.empty([1 if n == 1 else 2 for n in x.shape], device="meta")  # no two strides of 2 are alike
    moved = func(
        *[meta if a is x else a for a in args], **{k: meta if a is x else a for k, a in kwargs.items()}
    )
    dims = [d for d in range(moved.ndim) if moved.shape[d] == 2 and moved.stride(d) == meta.stride(found.dim)]
    return _Carried(found.source, dims[0], found.columns) if len(dims) == 1 else None
