"""The values that a boundary callback can monitor: one number for each training batch."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from cl_callbacks.drift.feature_shift import FeatureShift
from cl_callbacks.training.task_loss import task_loss

_PATIENCE = 100  # batches within which a key has to be logged, or a layer to run


class Signal(Protocol):
    """Protocol of a value that is measured on each training batch."""

    def attach(self, pl_module: LightningModule) -> None:
        """Prepares the module, such as with a forward hook."""

    def detach(self) -> None:
        """Removes what :meth:`attach` installed."""

    def read(self, trainer: Trainer, pl_module: LightningModule, outputs: Any) -> Tensor | None:
        """Value (scalar or vector) of the batch that this process just trained on; ``None`` without one."""

    def values(self, means: Tensor) -> Tensor:
        """Numbers to monitor ``(N,)``, from the values of N batches, averaged over processes."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives only."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state that :meth:`state_dict` returned."""


class LossSignal:
    """The loss that ``training_step`` returns, not divided by the number of accumulated batches.

    The rules' pull is added to gradients, so that this loss does not contain it.
    """

    def attach(self, pl_module: LightningModule) -> None:
        """Does nothing: the loss needs no hook."""

    def detach(self) -> None:
        """Does nothing: the loss needs no hook."""

    def read(self, trainer: Trainer, pl_module: LightningModule, outputs: Any) -> Tensor | None:
        """The loss of a batch, before the update that it made."""
        loss = task_loss(trainer, outputs)
        if loss is not None:
            return loss
        if not pl_module.automatic_optimization:  # under automatic optimization, None skips the batch
            raise MisconfigurationException(
                f"There is no loss to watch: training_step of {type(pl_module).__name__} returns none. "
                f"Under manual optimization, return it too."
            )
        return None

    def values(self, means: Tensor) -> Tensor:
        """Returns the losses unchanged."""
        return means

    def state_dict(self) -> dict[str, Any]:
        """Returns an empty dict: the loss has no state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Does nothing: the loss has no state."""


class LoggedSignal(LossSignal):
    """A value that the module logs under a key in each training step.

    Args:
        key: the name in ``self.log(key, ...)``.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self._missed = 0
        self._last: Tensor | None = None

    def read(self, trainer: Trainer, pl_module: LightningModule, outputs: Any) -> Tensor | None:
        """The value logged for the batch; ``None`` if none was logged."""
        value = trainer.callback_metrics.get(self.key)
        if value is not None:
            # `callback_metrics` keeps the last value when none has been logged since.
            old = self._last is not None and self._last.data_ptr() == value.data_ptr()
            self._last = value
            return None if old else value.detach().float().mean()
        self._missed += 1
        if self._missed >= _PATIENCE or trainer.is_last_batch:
            raise MisconfigurationException(
                f"{self.key!r} is to be watched, and {type(pl_module).__name__} has not logged it in "
                f"{self._missed} training steps, but {sorted(trainer.callback_metrics) or 'nothing'}: "
                f"call self.log({self.key!r}, ..., on_step=True) in training_step, or set monitor='loss'."
            )
        return None


class FeatureSignal:
    """Distance of a batch's mean features from their running mean.

    Args:
        layer: name of the module whose input are the features; default: the last ``nn.Linear``.

    See :class:`~cl_callbacks.drift.feature_shift.FeatureShift`.
    """

    def __init__(self, layer: str | None = None) -> None:
        self.layer = layer
        self.shift = FeatureShift()
        self._handle: Any = None
        self._features: Tensor | None = None
        self._missed = 0

    def attach(self, pl_module: LightningModule) -> None:
        """Registers a forward pre-hook that reads the input of the layer."""
        modules = dict(pl_module.named_modules())
        linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
        name = self.layer if self.layer is not None else next(reversed(linear), "")
        if not name or name not in modules:
            raise MisconfigurationException(
                f"feature_layer={self.layer!r} is no module of {type(pl_module).__name__}"
                f"{'' if linear else ', which has no nn.Linear'}: name the module whose input are the "
                f"features, one of {list(modules)[1:]}"
            )
        self._handle = modules[name].register_forward_pre_hook(self._listen)

    def detach(self) -> None:
        """Removes the hook."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._features = None

    def _listen(self, module: nn.Module, inputs: Any) -> None:
        if not module.training or not inputs or not isinstance(inputs[0], Tensor):
            return
        found = inputs[0].detach()
        if not found.is_floating_point() or found.ndim < 2:
            raise MisconfigurationException(
                f"what goes into {type(module).__name__} are no features but a {found.dtype} of shape "
                f"{tuple(found.shape)}: name another feature_layer, whose input has one row per sample."
            )
        # Channels are dimension 1 of images and of the inputs of convolutions, and the last one elsewhere.
        channels = 1 if found.ndim > 3 or type(module).__name__.startswith("Conv") else -1
        self._features = found.movedim(channels, -1).flatten(0, -2).mean(0)

    def read(self, trainer: Trainer, pl_module: LightningModule, outputs: Any) -> Tensor | None:
        """Mean features ``(D,)`` of the batch; ``None`` if the layer has not run."""
        found, self._features = self._features, None
        self._missed = self._missed + 1 if found is None else 0
        if self._missed >= _PATIENCE:
            raise MisconfigurationException(
                f"the layer whose input are the features (feature_layer={self.layer!r}) has not run in "
                f"{self._missed} training steps: name one that {type(pl_module).__name__} uses."
            )
        return found

    def values(self, means: Tensor) -> Tensor:
        """Distances ``(N,)`` of the mean features ``(N, D)`` of N batches, which also enter the averages."""
        return torch.stack([self.shift.update(features) for features in means])

    def state_dict(self) -> dict[str, Any]:
        """State of the running averages."""
        return self.shift.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state that :meth:`state_dict` returned."""
        self.shift.load_state_dict(state_dict)


def signal_of(monitor: str, layer: str | None = None) -> Signal:
    """Returns the signal for a user's ``monitor=``.

    Example:
        >>> type(signal_of("loss")).__name__, signal_of("train_acc").key
        ('LossSignal', 'train_acc')
    """
    if monitor == "feature_shift":
        return FeatureSignal(layer)
    return LossSignal() if monitor == "loss" else LoggedSignal(monitor)
