"""State of the synapses: named fields, each with one tensor for every trainable parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from cl_callbacks.synapses.offload import Offload
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.synapses.visit import Visit
from cl_callbacks.tensors.blocks import ALL
from cl_callbacks.tensors.finite import zero_nonfinite_
from cl_callbacks.tensors.flat import dense_strides
from cl_callbacks.tensors.lines import Lines
from cl_callbacks.tensors.shards import distribute_like, full_tensor, held

Fill = Literal["zeros", "parameter"] | float | Callable[[str, Mapping[str, Tensor]], float]
"""The initial value of a field for a new synapse: zeros, the weight itself, or a number.

The number may depend on the parameter: a function of its name and of all parameters by plain name, such as
:func:`~cl_callbacks.synapses.fan_in.weight_scale`. It must be picklable.
"""

_NOTHING: AbstractContextManager[None] = nullcontext()
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module")


def plain_name(name: str) -> str:
    """A parameter's name without what ``torch.compile`` and FSDP put into it.

    The ``module.`` of DDP stays: rules get the module that DDP wraps, in which it is a user's attribute.

    Example:
        >>> plain_name("net._orig_mod.0.weight")
        'net.0.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def parameters_by_name(module: nn.Module, known: SynapseView | None = None) -> dict[str, Tensor]:
    """All parameters of a module by plain name, in its order.

    Args:
        module: the module.
        known: a parameter that is in this view keeps its name there, and so its state, if it is called
            otherwise now: pruning makes a ``weight`` the ``weight_orig`` of its layer.

    Raises:
        ValueError: two parameters have one plain name, so that one would take the other's state.

    Example:
        >>> list(parameters_by_name(nn.Linear(2, 3)))
        ['weight', 'bias']
    """
    found: dict[str, Tensor] = {}
    whole: dict[str, str] = {}
    for name, parameter in module.named_parameters():
        plain = plain_name(name)
        if plain in found:
            raise ValueError(
                f"{whole[plain]} and {name} of {type(module).__name__} are two parameters, and both are "
                f"called {plain} without what torch.compile and FSDP put into names: give the attribute that "
                f"holds one of them another name."
            )
        found[plain], whole[plain] = parameter, name
    before = {} if known is None else {id(p): n for n, p in zip(known.names, known.sources, strict=True)}
    kept = {name: before.get(id(p), name) for name, p in found.items()}
    return {name if kept[name] in found else kept[name]: p for name, p in found.items()}


class Synapses:
    """Fields of per-synapse state, by parameter name, each tensor of the shape of its parameter.

    Args:
        fields: names of the fields and their initial value: see :data:`Fill`.
        dtype: of the state; by default float32, or the parameter's own dtype where that is wider.
        strict: whether state of a parameter that the model no longer has is an error.
        device: on which the state is stored; by default that of each parameter.
        running: fields that change by small amounts in every step: at least float32, whatever ``dtype`` is.

    Example:
        >>> synapses = Synapses({"importance": "zeros"})
        >>> view = synapses.place({"weight": torch.ones(2)}, ["weight"])
        >>> view["importance"]
        [tensor([0., 0.])]
    """

    def __init__(
        self,
        fields: Mapping[str, Fill],
        dtype: torch.dtype | None = None,
        strict: bool = True,
        device: torch.device | None = None,
        running: Iterable[str] = (),
    ) -> None:
        self.dtype, self.strict = dtype, strict
        self.offload = None if device is None else Offload(device)
        self._running = frozenset(running)
        self._fill = dict(fields)
        self._state: dict[str, dict[str, Tensor]] = {field: {} for field in fields}
        self._source = ""  # the file that the state is from
        self.view = SynapseView([], {field: [] for field in fields}, [], [])

    def place(self, model: Mapping[str, Tensor], selected: Sequence[str]) -> SynapseView:
        """Matches the state to the selected parameters of a model, and returns a view of it; safe to repeat.

        State is moved to its storage device, by default each parameter's, and sharded like the parameter. A
        parameter without state gets the field's initial value. One that has grown along its first dimension
        (an output layer with new classes) keeps its state, and only its new rows get the initial value. State
        of parameters that are not selected is kept as it is.

        Args:
            model: all parameters of the model, by plain name.
            selected: names of the parameters that the view is to contain.

        Raises:
            ValueError: restored state does not fit the model; lists every misfit.
        """
        self.flush()
        self._refuse_misfits(model)
        for field, state in self._state.items():
            for name in selected:
                state[name] = self._beside(state.get(name), name, model, field)
        self.view = SynapseView(
            list(selected),
            {field: [held(state[name]) for name in selected] for field, state in self._state.items()},
            [model[name] for name in selected],
            [ALL] * len(selected),
            self.offload,
        )
        return self.view

    def on_device(self, changing: bool = True, visit: Visit | None = None) -> AbstractContextManager[None]:
        """Within, offloaded fields stay on the parameters' device, and may be changed if ``changing``.

        A rule's ``pull``, ``rewrite``, ``observe`` and ``end_step`` are called within; any other code that
        changes fields must enter this context itself; with a ``visit`` if it does so in every step.
        """
        return _NOTHING if self.offload is None else self.offload.on_device(changing, visit)

    def flush(self) -> None:
        """Brings offloaded state up to date where it is stored; call it before reading ``view.fields``."""
        if self.offload is not None:
            self.offload.flush()

    def __getstate__(self) -> dict[str, Any]:
        """For copies of a rule: the state, up to date."""
        self.flush()
        return dict(vars(self))

    @property
    def known(self) -> bool:
        """Whether there is any state."""
        return any(self._state.values())

    @property
    def names(self) -> set[str]:
        """Names of all parameters of which there is state."""
        return {name for state in self._state.values() for name in state}

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The live state: ``{field: {name: tensor}}``.

        Sharded tensors are gathered, so all processes have to call this.
        """
        self.flush()
        return {
            field: {name: full_tensor(tensor) for name, tensor in state.items()}
            for field, state in self._state.items()
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]], source: str = "") -> None:
        """Copies saved state, which the next :meth:`place` matches to the parameters.

        A field that is missing gets its initial value. The ``source`` is the file it is from, for errors.
        """
        self._source = source
        for field in self._state:
            self._state[field] = {name: t.detach().clone() for name, t in state.get(field, {}).items()}

    def copies(self, fields: Iterable[str]) -> dict[str, dict[str, Tensor]]:
        """Copies of some fields: ``{field: {name: tensor}}``."""
        self.flush()
        return {field: {name: t.clone() for name, t in self._state[field].items()} for field in fields}

    @contextmanager
    def rewound(self, snapshot: Mapping[str, Mapping[str, Tensor]]) -> Iterator[None]:
        """Within, fields have the values of a snapshot; afterwards later changes are added to them.

        State that the snapshot lacks (of a layer unfrozen since, of new rows) stays as it is.
        """
        self.flush()
        then = {(field, name): t for field, state in snapshot.items() for name, t in state.items()}
        now = {key: live.clone() for key, live in self._known(then).items()}
        with torch.no_grad():
            for key, live in self._known(then).items():
                live.copy_(distribute_like(then[key], live))
        try:
            yield
        finally:
            self.flush()
            with torch.no_grad():
                for key, live in self._known(now).items():
                    live.sub_(distribute_like(then[key].to(live), live)).add_(now[key])
                    zero_nonfinite_([held(live)])

    @torch.no_grad()
    def forget(self, parameter: Tensor, dim: int, index: Tensor) -> None:
        """Gives some rows or columns of a parameter the state of a new synapse, at its present weight.

        Args:
            parameter: a source of the view; of others nothing happens.
            dim: 0 for rows, 1 for columns.
            index: of the rows or columns, ``(n,)``, on the device of the parameter.
        """
        self.flush()
        lines = Lines(dim, index)
        names = (n for n, p in zip(self.view.names, self.view.sources, strict=True) if p is parameter)
        for name in names:
            model = dict(zip(self.view.names, self.view.sources, strict=True))
            for field, state in self._state.items():
                fill = self._fill[field]
                value = fill(name, model) if callable(fill) else fill
                if value == "parameter":
                    lines.copy_(state[name], parameter)
                else:
                    lines.fill_(state[name], 0.0 if value == "zeros" else float(value))

    def _known(self, values: Mapping[tuple[str, str], Tensor]) -> dict[tuple[str, str], Tensor]:
        """The parts of the live state for which there are values."""
        live = {
            (field, name): known_rows(self._state[field][name], value)
            for (field, name), value in values.items()
            if name in self._state[field]
        }
        return {key: part for key, part in live.items() if part is not None}

    def _beside(self, old: Tensor | None, name: str, model: Mapping[str, Tensor], field: str) -> Tensor:
        parameter = model[name]
        dtype = self.dtype or torch.promote_types(parameter.dtype, torch.float32)
        if field in self._running:
            dtype = torch.promote_types(dtype, torch.float32)
        device = parameter.device if self.offload is None else self.offload.device_of(parameter)
        if old is not None and old.shape == parameter.shape:
            placed = distribute_like(old.to(device, dtype), parameter)
        else:
            fill = self._fill[field]
            value = fill(name, model) if callable(fill) else fill
            placed = distribute_like(self._new(old, parameter, value, dtype).to(device), parameter)
        placed = _in_the_layout_of(parameter, placed)
        return placed if self.offload is None else self.offload.store(placed, parameter)

    def _new(
        self,
        old: Tensor | None,
        parameter: Tensor,
        fill: Literal["zeros", "parameter"] | float,
        dtype: torch.dtype,
    ) -> Tensor:
        source = parameter.detach() if old is None else full_tensor(parameter.detach())
        if fill == "parameter":
            new = source.to(dtype, copy=True)
        else:
            new = torch.full_like(source, 0.0 if fill == "zeros" else fill, dtype=dtype)
        if old is not None:
            new[: len(old)].copy_(full_tensor(old))
        return new

    def _refuse_misfits(self, model: Mapping[str, Tensor]) -> None:
        held = dict.fromkeys(name for state in self._state.values() for name in state)
        vanished = [name for name in held if name not in model]
        misshaped = [
            f"{field}/{name}: state {tuple(t.shape)}, parameter {tuple(model[name].shape)}"
            for field, state in self._state.items()
            for name, t in state.items()
            if name in model and not _fits(t, model[name])
        ]
        if misshaped or (vanished and self.strict):
            missing = [name for name in model if name not in held]
            raise ValueError(
                f"The synaptic state{self._source and f' of {self._source}'} does not fit this model.\n"
                f"  of another shape: {misshaped or 'none'}\n"
                f"  not in the model: {vanished or 'none'}\n"
                f"  in the model, without state: {missing or 'none'}\n"
                "Load a checkpoint of this architecture. New parameters and output layers with new rows "
                "are fine; state of parameters that were removed is dropped with strict=False."
            )
        for state in self._state.values():
            for name in vanished:
                state.pop(name, None)


def _in_the_layout_of(parameter: Tensor, placed: Tensor) -> Tensor:
    """The same state with the strides of its parameter, which a checkpoint may have had otherwise."""
    strides = dense_strides(held(parameter))
    if held(placed).stride() == strides or isinstance(placed, DTensor):
        return placed
    return torch.empty_strided(placed.shape, strides, dtype=placed.dtype, device=placed.device).copy_(placed)


def known_rows(live: Tensor, known: Tensor) -> Tensor | None:
    """The first rows of ``live``, those that ``known`` has; ``None`` if the other dimensions differ.

    Example:
        >>> known_rows(torch.zeros(5, 2), torch.ones(3, 2)).shape
        torch.Size([3, 2])
    """
    if not _fits(known, live):
        return None
    return live if known.shape == live.shape else live[: len(known)]


def _fits(state: Tensor, parameter: Tensor) -> bool:
    if state.shape == parameter.shape:
        return True
    grown = state.ndim == parameter.ndim > 0 and len(state) < len(parameter)
    return grown and state.shape[1:] == parameter.shape[1:]
