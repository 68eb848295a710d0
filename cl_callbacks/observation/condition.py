"""What goes with a loss of plasticity: silent units, few directions, weights far from where they began."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from cl_callbacks.compiled.one_thread import eagerly
from cl_callbacks.functional.representation import effective_rank, stable_rank
from cl_callbacks.functional.units import relative_activity
from cl_callbacks.rules.renewal.units import Units, find_units
from cl_callbacks.training.quiet_step import quiet_step, training_loss

DORMANT = 0.01
"""Activity beside the mean of the layer up to which a unit counts as dormant, as ReDo has it."""


@torch.no_grad()
def condition(
    trainer: Trainer,
    pl_module: LightningModule,
    batches: Sequence[Any],
    start: Mapping[str, Tensor],
    seed: int,
) -> dict[str, float]:
    """Measures a network in training, and changes nothing.

    Args:
        trainer: that is fitting.
        pl_module: its module.
        batches: on which units are observed.
        start: weights at the beginning, by name.
        seed: of dropout.

    Returns:
        ``weight_norm``, and ``distance`` from the weights at the beginning; for each layer whose units can be
        told (see :func:`~cl_callbacks.rules.renewal.units.find_units`) ``dormant/LAYER``, the share of units
        that are dormant, and ``effective_rank/LAYER`` and ``stable_rank/LAYER`` of their activations.
    """
    named = {name: p for name, p in pl_module.named_parameters() if p.requires_grad}
    moved = [
        p - start[name].to(p) for name, p in named.items() if name in start and start[name].shape == p.shape
    ]
    found = {"weight_norm": _norm(list(named.values())), "distance": _norm(moved)}

    def run() -> list[Tensor | None]:
        losses = []
        for batch in batches:
            with quiet_step(trainer, pl_module, seed), eagerly():
                losses.append(training_loss(trainer, pl_module, batch))
        return losses

    units, _ = find_units(pl_module, run)
    for layer, values in _activations(pl_module, units, run).items():
        size = values.abs().mean(0)
        found[f"dormant/{layer}"] = float((relative_activity(size) <= DORMANT).float().mean())
        found[f"effective_rank/{layer}"] = float(effective_rank(values))
        found[f"stable_rank/{layer}"] = float(stable_rank(values))
    return found


def _norm(tensors: list[Tensor]) -> float:
    norms = torch._foreach_norm([t.float() for t in tensors])
    return float(torch.stack([n.cpu() for n in norms]).norm()) if norms else 0.0


def _activations(module: nn.Module, units: Sequence[Units], run: Any) -> dict[str, Tensor]:
    """Activations by layer, ``(samples and positions, units)``."""
    heard: dict[str, list[Tensor]] = {each.layer: [] for each in units}

    def listen(each: Units) -> Any:
        def hear(reader: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0].float()
            channels = x if isinstance(reader, nn.Linear) else x.movedim(1, -1)
            heard[each.layer].append(channels.reshape(-1, each.number, each.columns).mean(2))

        return hear

    readers = [module.get_submodule(each.outgoing[0].removesuffix(".weight")) for each in units]
    handles = [r.register_forward_pre_hook(listen(each)) for r, each in zip(readers, units, strict=True)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return {layer: torch.cat(values) for layer, values in heard.items() if values}
