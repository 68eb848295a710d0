"""What happens to the weights when a fit ends: averages are swapped in, after the last optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import Tensor
from torch.nn.parameter import is_lazy

from cl_callbacks.tensors.shards import held, reshard
from cl_callbacks.training.lightning_private import last_averaged_epoch

_HARMLESS = ("lightning", "lightning_fabric", "pytorch_lightning", __name__.partition(".")[0])
"""Packages whose ``on_train_end`` leaves the weights alone, apart from callbacks that average weights."""


def weights_may_change(trainer: Trainer) -> bool:
    """Whether a callback or the module may change the weights in ``on_train_end``.

    These are the callbacks of Lightning that average weights, and everything with an ``on_train_end`` of its
    own: nobody can tell beforehand what is done there.
    """
    owners = (*trainer.callbacks, trainer.lightning_module)  # type: ignore[attr-defined]
    return any(map(_may_change, owners))


def _may_change(owner: Any) -> bool:
    if isinstance(owner, StochasticWeightAveraging | WeightAveraging):
        return True
    package = (getattr(owner.on_train_end, "__module__", None) or "").partition(".")[0]
    return package not in _HARMLESS


def after_training(trainer: Trainer, work: Callable[[], None]) -> None:
    """Calls ``work`` after ``on_train_end`` of all callbacks and of the module; called in such a hook.

    Several are called in the order in which they were given. The Trainer calls one more ``on_train_end``
    after these, that of the strategy, which is extended for this once.
    """
    strategy = trainer.strategy
    before = strategy.on_train_end

    def last() -> None:
        forget_after_training(trainer)
        before()
        work()

    strategy.on_train_end = last  # type: ignore[method-assign]


def forget_after_training(trainer: Trainer) -> None:
    """Drops the work that :func:`after_training` was given and that an exception has kept from being done."""
    vars(trainer.strategy).pop("on_train_end", None)


def renews_statistics(trainer: Trainer, epoch: int | None = None) -> bool:
    """Whether an epoch, by default the present one, trains nothing but the statistics of BatchNorm.

    Lightning's ``StochasticWeightAveraging`` adds such an epoch behind the last one, if there is BatchNorm.
    """
    epoch = trainer.current_epoch if epoch is None else epoch
    swa: list[Any] = [c for c in trainer.callbacks if isinstance(c, StochasticWeightAveraging)]  # type: ignore[attr-defined]
    if not any(epoch > last_averaged_epoch(each) for each in swa):
        return False
    return StochasticWeightAveraging.pl_module_contains_batch_norm(trainer.lightning_module)


@torch.no_grad()
def weight_norms(module: LightningModule) -> dict[str, Tensor]:
    """Euclidean norm of each trainable dense parameter, as far as this process has it, on the CPU.

    Two of them tell by :func:`same_weights` whether the weights are the same.

    Example:
        >>> module = LightningModule()
        >>> module.weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> weight_norms(module)
        {'weight': tensor(5., dtype=torch.float64)}
    """
    reshard(module)
    named = {n: held(p.detach()) for n, p in module.named_parameters() if p.requires_grad and not is_lazy(p)}
    usual = {name: part for name, part in named.items() if part.layout == torch.strided and not part.is_meta}
    norms = {name: _norm(part) for name, part in usual.items() if part.numel()}
    found: dict[str, Tensor] = {}
    for device in {norm.device for norm in norms.values()}:
        names = [name for name, norm in norms.items() if norm.device == device]
        # Together, so that the host waits once for a device and not for each parameter.
        found |= zip(names, torch.stack([norms[name] for name in names]).cpu().unbind(), strict=True)
    return found


def _norm(tensor: Tensor) -> Tensor:
    # In double precision it is the same on every device, and the weights are back on the CPU after a fit.
    tensor = tensor.cpu() if tensor.device.type == "mps" else tensor
    return torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float64))


def same_weights(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """Share of the parameters in both whose norms are the same, but for the order of their sums.

    Example:
        >>> same_weights({"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, {"a": torch.tensor(1.0)})
        1.0
    """
    common = before.keys() & after.keys()
    same = sum(torch.allclose(before[n], after[n], rtol=1e-9, atol=0.0, equal_nan=True) for n in common)
    return same / len(common) if common else 1.0
