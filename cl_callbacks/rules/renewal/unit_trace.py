"""Follows the units of all layers through one run of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.overrides import TorchFunctionMode

from cl_callbacks.rules.renewal.module_parts import ModuleParts, is_depthwise
from cl_callbacks.rules.renewal.places import (
    ADDING,
    ATTENTION,
    COMBINING,
    NORMALISING,
    RESHAPING,
    Call,
    Place,
    after,
    combined,
    depends_on_no_values,
    divided_into_heads,
    handled,
)
from cl_callbacks.rules.renewal.source import UNREAD, Source
from cl_callbacks.tensors.containers import flat_tensors

_READERS = {"linear": 1, "conv1d": 2, "conv2d": 3, "conv3d": 4}
"""Functions that read units, and the number of dimensions of their input from that of the units on."""


class UnitTrace(TorchFunctionMode):
    """Follows the outputs of layers through the functions of torch that are called while it is entered.

    What mixes units, or picks some, is in the way of their replacement if the loss depends on it:
    :meth:`end` looks at that. Something that is only logged is not.

    Args:
        module: with the layers.

    Attributes:
        sources: what was found, by layer.
        not_followed: why layers that were run are no source, by layer.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.sources: dict[str, Source] = {}
        self.not_followed: dict[str, str] = {}
        self._module = module
        self._parts = ModuleParts(module)
        self._carried: dict[int, tuple[Source, Place]] = {}
        self._mixed: dict[int, dict[Source | str, str]] = {}  # what tensors depend on, and by what function
        self._of_weights: set[int] = set()  # tensors that depend on nothing but parameters
        self._storages: dict[int, Source] = {}  # of tensors that carry units, by address
        self._alive: list[Tensor] = []  # so that no other tensor gets the id() of one
        self._inputs: dict[str, int] = {}  # id() of the input of layers that are running
        self._uses: dict[str, set[str]] = {}  # of each parameter: the layer that it reads, or what reads it
        self._handles: list[Any] = []

    def __enter__(self) -> UnitTrace:
        for name, (_, layer) in self._parts.layers.items():
            self._handles.append(layer.register_forward_pre_hook(self._beginning(name), with_kwargs=True))
            self._handles.append(layer.register_forward_hook(self._ending(name)))
        for name, (layer, reason) in self._parts.others.items():
            self._handles.append(layer.register_forward_pre_hook(self._running(name, reason)))
        for part in self._module.modules():
            if isinstance(part, FSDPModule):
                self._handles.append(part.register_forward_pre_hook(self._parts.learn_names))
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
        name = getattr(func, "__name__", str(func))
        name = getattr(getattr(func, "__self__", None), "__name__", name) if name == "__get__" else name
        self._follow(name, func, args, kwargs or {}, result)
        return result

    def end(self, result: Any) -> None:
        """Notes what the result of the run depends on; without a tensor there, all that was computed."""
        outputs = flat_tensors(result)
        for tensor in outputs:
            if id(tensor) in self._carried:
                self._carried[id(tensor)][0].left_out("it is an output")
        for ident in map(id, outputs) if outputs else self._mixed:
            for key, reason in self._mixed.get(ident, {}).items():
                if isinstance(key, str):
                    self._uses.setdefault(key, set()).add(f" {reason}")
                else:
                    self.sources[key.layers[0]].left_out(reason)

    def parameters_of(self, source: Source) -> dict[str, Tensor]:
        """The parameters of the layers of a source, by name."""
        return {name: p for layer in source.layers for name, p in self._parts.of_layer(layer).items()}

    def obstacle(self, source: Source) -> str:
        """Why the units of a source cannot be told from what reads them; empty if they can."""
        own = self.parameters_of(source).values()
        if any(self._users(self._parts.name(p)) > 1 for p in own):
            return "its weights are used elsewhere too"
        if not source.readers:
            return UNREAD
        for reader in source.readers:
            if self._users(reader) > 1:
                return f"{reader} reads others too"
        if any(self._users(f"{norm}.weight") > 1 for norm in source.norms):
            return "its norm is used elsewhere too"
        if len({*source.readers.values()}) > 1 or source.rows not in (1, *source.readers.values()):
            return "read as channels and as numbers"
        if not self._sizes_fit(source, own):
            return "the weights around it have other sizes"
        return ""

    def _sizes_fit(self, source: Source, own: Iterable[Tensor]) -> bool:
        norms = [getattr(self._module.get_submodule(name), "weight", None) for name in source.norms]
        rows = [len(t) for t in (*own, *norms) if t is not None]
        readers = [(self._parts.layers[name][1].weight.shape[1], n) for name, n in source.readers.items()]
        columns_fit = all(size == source.number * n for size, n in readers)
        return columns_fit and {*rows} == {source.number * source.rows}

    def _users(self, parameter: str) -> int:
        return len({self.sources.get(use, use) for use in self._uses.get(parameter, ())})

    def _beginning(self, name: str) -> Callable[..., None]:
        def begin(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._inputs[name] = id(args[0] if args else kwargs.get("input"))

        return begin

    def _ending(self, name: str) -> Callable[..., None]:
        def end(*_: Any) -> None:
            self._inputs.pop(name, None)

        return end

    def _running(self, name: str, reason: str) -> Callable[..., None]:
        def run(*_: Any) -> None:
            self.not_followed[name] = reason

        return run

    def _follow(
        self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        outputs = flat_tensors(args[0] if name == "__setitem__" else result)
        if not outputs or depends_on_no_values(name):
            return
        in_place = name == "__setitem__" or (name.endswith("_") and any(t is outputs[0] for t in args))
        name = name if name.startswith("__") else name.rstrip("_")
        if name in _READERS:
            return self._read(name, args, kwargs, outputs[0])
        given = flat_tensors(handled(name, args, kwargs))
        call = self._call(name, func, args, kwargs, given, outputs[0])
        place = self._after(call, given) if call is not None else None
        source = self._carried[id(call.x)][0] if call is not None else None
        if in_place and place is None:
            address = _address(outputs[0])
            at = self._storages.get(address) if address is not None else None
            if at is not None:
                self.sources[at.layers[0]].left_out(f"read by {name.strip('_')}")
        if place is not None and source is not None:
            self._carry(outputs[0], source, place)
        self._mix(name, given, outputs, source if place is not None else None)

    def _mix(
        self, name: str, given: Sequence[Tensor], outputs: Iterable[Tensor], kept: Source | None
    ) -> None:
        """Notes what the outputs of a function depend on, besides the units that it has ``kept``."""
        of_weights = [t for t in given if id(t) in self._of_weights or self._parts.name(t)]
        alone = kept is None and 0 < len(of_weights) == len(given)
        loss = not alone and name in ADDING and all(t.ndim == 0 for t in given)
        mixed: dict[Source | str, str] = {}
        for tensor in given:
            if loss and id(tensor) in self._of_weights:  # a penalty, which says nothing of the data
                continue
            mixed |= self._mixed.get(id(tensor), {})
            carried = self._carried.get(id(tensor))
            if carried is not None and carried[0] is not kept:
                mixed.setdefault(carried[0], f"read by {name.strip('_')}")
            if self._parts.name(tensor) and (kept is None or name not in NORMALISING):
                mixed.setdefault(self._parts.name(tensor), name)
        self._note(outputs, mixed, alone)

    def _note(self, outputs: Iterable[Tensor], mixed: Mapping[Source | str, str], of_weights: bool) -> None:
        for tensor in outputs if mixed or of_weights else ():
            self._alive.append(tensor)
            self._mixed[id(tensor)] = dict(mixed)
            if of_weights:
                self._of_weights.add(id(tensor))

    def _call(
        self,
        name: str,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: Sequence[Tensor],
        out: Tensor,
    ) -> Call | None:
        """The call of a function on a tensor that carries units; ``None`` if its input carries none."""
        at = ATTENTION.get(name, 0)
        x = args[at] if len(args) > at else kwargs.get("value" if at == 2 else "input")
        if name in COMBINING and id(x) not in self._carried:
            x = next((t for t in given if id(t) in self._carried), None)
        return Call(name, func, args, kwargs, x, out) if id(x) in self._carried else None  # type: ignore[arg-type]

    def _after(self, call: Call, given: Sequence[Tensor]) -> Place | None:
        """Where the result of a function that handles each unit by itself has them; else ``None``."""
        x, name = call.x, call.name
        source, place = self._carried[id(x)]
        if name in ATTENTION:
            heads = place.dim < x.ndim - 2 and source.rows > 1 and call.out.ndim == x.ndim
            return place if heads and call.out.shape[place.dim] == source.number else None
        others = [t for t in given if t is not x]
        if name in COMBINING:
            return self._combined(call, source, place, others)
        if any(id(t) in self._carried for t in others):
            return None
        if name in NORMALISING:
            return self._normalised(call, source, place, others)
        if name in RESHAPING and divided_into_heads(x, call.out, place) and not source.readers:
            number, rows = call.out.shape[-2:]
            if source.rows not in (1, rows):
                return None
            source.number, source.rows = number, rows
            return place
        return after(call, place)

    def _normalised(self, call: Call, source: Source, place: Place, others: Sequence[Tensor]) -> Place | None:
        if any(self._parts.name(t) and not self._parts.norm(t) for t in others):
            return None
        norms = {norm for t in others if (norm := self._parts.norm(t))}
        source.norms.update(dict.fromkeys(norms))
        for norm in norms:
            self._uses.setdefault(f"{norm}.weight", set()).add(source.layers[0])
        return after(call, place)

    def _combined(self, call: Call, source: Source, place: Place, others: Sequence[Tensor]) -> Place | None:
        """The units of all that are added or multiplied one by one, which from here on are the same."""
        found = [self._carried.get(id(t)) for t in others]
        places = [(t, f and f[1]) for t, f in zip(others, found, strict=True)]
        result = combined(call, place, places)
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
        x, weight, bias = given["input"], given["weight"], given.get("bias")
        source, place = self._carried.get(id(x), (None, Place(0)))
        parameter, behind = self._parts.name(weight), _READERS[name]
        own, layer = self._parts.layers.get(parameter, ("", None))
        padded = getattr(layer, "padding_mode", "zeros") != "zeros"  # then it reads a copy
        known = parameter in self._inputs and (padded or self._inputs[parameter] == id(x))
        fits = known and place.dim == x.ndim - behind
        by_channel = known and is_depthwise(layer)
        mixed = {key: r for t in (x, weight, bias) for key, r in self._mixed.get(id(t), {}).items()}
        if source is not None and not fits:
            reader = own or parameter.removesuffix(".weight")
            elsewhere = f"read by {reader} " + ("along another dimension" if known else "in another way")
            mixed[source] = elsewhere if parameter else f"read by a {name} of computed weights"
        elif source is not None and not by_channel:
            source.read_by(parameter, place.columns)
        if known:
            self._uses.setdefault(parameter, set()).add(source.layers[0] if source and fits else "")
            if self._parts.name(bias):
                self._uses.setdefault(self._parts.name(bias), set()).add(parameter)
            new = self.sources.setdefault(own, Source([own], len(weight)))
            if by_channel and source is not None and fits and new is not source:
                if (source.number, source.rows, place.columns) == (new.number, 1, 1):
                    self._join(source, new)
                    new = source
                else:
                    mixed[source] = "read as channels and as numbers"
            self._carry(out, new, Place(out.ndim - behind))
        else:
            used = [name for t in (weight, bias) if (name := self._parts.name(t))]
            mixed |= dict.fromkeys(used, "another layer")
        self._note([out], mixed, of_weights=False)

    def _carry(self, tensor: Tensor, source: Source, place: Place) -> None:
        self._alive.append(tensor)
        self._carried[id(tensor)] = source, place
        address = _address(tensor)
        if address is None:
            source.left_out("it runs within torch.vmap")
        else:
            self._storages[address] = source


def _address(tensor: Tensor) -> int | None:
    """Where its memory is; ``None`` within ``torch.vmap``, of which nothing else tells."""
    try:
        return tensor.untyped_storage().data_ptr()
    except NotImplementedError:
        return None
