"""The networks to whose outputs another one is held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from cl_callbacks.gradients.modes import evaluation_mode
from cl_callbacks.guards.few import few
from cl_callbacks.synapses.state import parameters_by_name, plain_name
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.tensors.shards import distribute_like, full_tensor, held, is_sharded, reshard


class Teacher(Protocol):
    """A frozen network."""

    @property
    def is_there(self) -> bool:
        """Whether there is something to learn from."""

    def prepare(self, pl_module: LightningModule, known: SynapseView, device: torch.device) -> None:
        """Makes ready for the network as it is now; cheap, and called whenever that may have changed."""

    def network(self, pl_module: LightningModule) -> Any:
        """A context that yields the network, in evaluation mode."""


class LastTask:
    """The module itself, with the weights and buffers that it had when the latest task ended.

    Kept are the weights that were trained; frozen ones are the module's own, of which a copy is made when
    they are unfrozen. Weights that the teacher does not have, such as those of a new head, are NaN in it, so
    that outputs which depend on them are told from others.
    """

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}
        self.frozen: set[str] = set()
        self.missing: list[str] = []
        """Names of the module's weights that the teacher does not have."""
        self._pairs: list[tuple[Tensor, Tensor]] = []

    @property
    def is_there(self) -> bool:
        """Whether a task has ended."""
        return bool(self.weights or self.frozen or self.buffers)

    @property
    def bytes(self) -> int:
        """Memory of the copies."""
        kept = map(held, (*self.weights.values(), *self.buffers.values()))
        return sum(t.numel() * t.element_size() for t in kept)

    @torch.no_grad()
    def copy(self, pl_module: LightningModule, known: SynapseView, untrained: Iterable[str]) -> None:
        """Copies a module, but for weights that were never trained so far."""
        reshard(pl_module)
        found, left_out = parameters_by_name(pl_module, known), set(untrained)
        self.weights, self.buffers, self._pairs = {}, {}, []  # the older copy goes before there is another
        self.frozen = {name for name, p in found.items() if not p.requires_grad}
        self.weights = {
            name: p.detach().clone() for name, p in found.items() if name not in self.frozen | left_out
        }
        self.buffers = {plain_name(name): b.detach().clone() for name, b in pl_module.named_buffers()}

    @torch.no_grad()
    def prepare(self, pl_module: LightningModule, known: SynapseView, device: torch.device) -> None:
        """Finds the weights of the module that its own copies take the place of, by their known names."""
        reshard(pl_module)
        self._pairs, self.missing = [], []
        for name, p in parameters_by_name(pl_module, known).items():
            if name in self.frozen and p.requires_grad:
                self.frozen.remove(name)
                self.weights[name] = p.detach().clone()
            if name in self.weights:
                self.weights[name] = distribute_like(self.weights[name].to(device), p).to(p)
                self._pairs.append((p, self.weights[name]))
            elif name not in self.frozen and p.is_floating_point():
                self.missing.append(name)
                self._pairs.append((p, torch.full_like(p, torch.nan, requires_grad=False)))
        self.buffers = {name: buffer.to(device) for name, buffer in self.buffers.items()}

    @contextmanager
    def network(self, pl_module: LightningModule) -> Iterator[nn.Module]:
        """The module, with the weights and buffers exchanged for a while."""
        own = [p.detach().clone() if is_sharded(p) else p.data for p, _ in self._pairs]
        places = [
            (module._buffers, key, buffer, self.buffers.get(plain_name(f"{path}.{key}" if path else key)))
            for path, module in pl_module.named_modules()
            for key, buffer in module._buffers.items()
        ]
        try:
            for p, kept in self._pairs:
                _exchange(p, kept)
            reshard(pl_module)  # or a forward would use weights that were gathered before
            for buffers, key, _, copy in places:
                if copy is not None:
                    buffers[key] = copy
            with evaluation_mode(pl_module):
                yield pl_module
        finally:
            for (p, _), value in zip(self._pairs, own, strict=True):
                _exchange(p, value)
            reshard(pl_module)
            for buffers, key, buffer, _ in places:
                buffers[key] = buffer

    def state_dict(self) -> dict[str, Any]:
        """Tensors and names only. A collective under FSDP2: all processes must call it."""
        weights = {name: full_tensor(value) for name, value in self.weights.items()}
        return {"weights": weights, "buffers": self.buffers, "frozen": sorted(self.frozen)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.weights = {name: value.detach().clone() for name, value in state_dict["weights"].items()}
        self.buffers = {name: value.detach().clone() for name, value in state_dict["buffers"].items()}
        self.frozen = set(state_dict["frozen"])


def _exchange(parameter: Tensor, value: Tensor) -> None:
    """Gives a parameter another value: another tensor, or in place what FSDP2 gathers."""
    if is_sharded(parameter):
        with torch.no_grad():
            held(parameter).copy_(held(value))
    else:
        parameter.data = value


class AdaptersOff:
    """The module itself without its adapters, by ``disable_adapter`` of ``peft``; no copy is kept."""

    is_there = True

    def __init__(self) -> None:
        self._adapted: list[Any] = []

    def prepare(self, pl_module: LightningModule, known: SynapseView, device: torch.device) -> None:
        """Finds the adapters."""
        found = [
            m for m in pl_module.modules() if hasattr(m, "disable_adapter") and hasattr(m, "peft_config")
        ]
        within = {id(inner) for m in found for inner in m.modules() if inner is not m}
        self._adapted = [m for m in found if id(m) not in within]
        if not self._adapted:
            raise MisconfigurationException(
                f"teacher='adapters_off' switches off the adapters of a peft.PeftModel, and "
                f"{type(pl_module).__name__} has none: wrap its network with peft.get_peft_model, or use "
                f"teacher='last_task', which keeps a copy of what is trained."
            )

    @contextmanager
    def network(self, pl_module: LightningModule) -> Iterator[nn.Module]:
        """The module, with the adapters off for a while."""
        required = [(p, p.requires_grad) for p in pl_module.parameters()]
        try:
            with ExitStack() as stack:
                for adapted in self._adapted:
                    stack.enter_context(adapted.disable_adapter())
                stack.enter_context(evaluation_mode(pl_module))
                yield pl_module
        finally:
            for p, flag in required:  # peft sets those of all active adapters
                p.requires_grad_(flag)


class GivenModule:
    """A module that somebody else has trained."""

    is_there = True

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def prepare(self, pl_module: LightningModule, known: SynapseView, device: torch.device) -> None:
        """Moves it beside the network."""
        self.module.to(device)

    def refuse_trained(self, optimizers: Iterable[Any]) -> None:
        """Raises if an optimizer changes the teacher's parameters."""
        names = {held(p).untyped_storage().data_ptr(): name for name, p in self.module.named_parameters()}
        given = (p for o in optimizers for group in o.param_groups for p in group["params"])
        stepped = [p for p in given if p.requires_grad]
        trained = [names[at] for p in stepped if (at := held(p).untyped_storage().data_ptr()) in names]
        if trained:
            raise MisconfigurationException(
                f"the teacher is being trained: an optimizer has its parameters {few(trained)}. Give a copy "
                f"(copy.deepcopy), or teacher='last_task', which keeps one of every task's end."
            )

    @contextmanager
    def network(self, pl_module: LightningModule) -> Iterator[nn.Module]:
        """The given module."""
        with evaluation_mode(self.module):
            yield self.module
