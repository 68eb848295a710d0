"""The layers of a module whose units are followed, and which of its parts a tensor is."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cl_callbacks.synapses.state import plain_name

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_OF_NORMS = ("weight", "bias", "running_mean")


class ModuleParts:
    """Knows layers, and parameters by the tensors that functions of torch are given.

    Args:
        module: with the layers.

    Attributes:
        layers: those whose units are followed, with their names, by that of their weight.
        others: layers that are not followed, and why, by name.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Conv1d(4, 4, 1, groups=2))
        >>> parts = ModuleParts(net)
        >>> list(parts.layers), parts.others["2"][1]
        (['0.weight'], 'it has groups')
        >>> parts.name(net[0].bias), parts.norm(net[1].running_mean), parts.name(torch.ones(2))
        ('0.bias', '1', '')
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        found = [
            (plain_name(name), layer) for name, layer in module.named_modules() if isinstance(layer, LAYERS)
        ]
        reasons = {name: _not_followed(layer) for name, layer in found}
        self.layers: dict[str, tuple[str, Any]] = {
            f"{name}.weight": (name, layer) for name, layer in found if not reasons[name]
        }
        self.others = {name: (layer, reasons[name]) for name, layer in found if reasons[name]}
        self._names: dict[int, str] = {}  # by several id() of a parameter that is sharded
        self._norms: dict[int, str] = {}
        self.learn_names()

    def name(self, tensor: Tensor | None) -> str:
        """Name of a parameter; empty for another tensor."""
        return self._names.get(id(tensor), "")

    def norm(self, tensor: Tensor) -> str:
        """Name of the module, other than a layer, whose weight, bias or running mean it is; or empty."""
        return self._norms.get(id(tensor), "")

    def of_layer(self, name: str) -> dict[str, Tensor]:
        """The parameters of a layer, by name."""
        _, layer = self.layers[f"{name}.weight"]
        return {f"{name}.{key}": t for key in ("weight", "bias") if (t := getattr(layer, key)) is not None}

    def learn_names(self, *_: Any) -> None:
        """Notes which tensors the parameters are: in a forward of FSDP2 others than before, gathered."""
        parameters = self._module.named_parameters(remove_duplicate=False)
        self._names.update({id(p): plain_name(name) for name, p in parameters})
        self._names.update({id(layer.weight): name for name, (_, layer) in self.layers.items()})
        for name, part in self._module.named_modules():
            if not isinstance(part, LAYERS):
                own = {**part._parameters, **part._buffers}
                known = [t for key, t in own.items() if key in _OF_NORMS and t is not None]
                self._norms.update({id(t): plain_name(name) for t in known})


def _not_followed(layer: Any) -> str:
    """Why a layer is none whose units are followed; empty if they are."""
    if "weight" not in layer._parameters:
        return "its weights are computed"
    return "it has groups" if getattr(layer, "groups", 1) > 1 and not is_depthwise(layer) else ""


def is_depthwise(layer: Any) -> bool:
    """Whether a convolution has one input and one output in each group."""
    return getattr(layer, "groups", 1) > 1 and layer.groups == layer.in_channels == layer.out_channels
