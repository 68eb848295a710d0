"""Consolidation by Benna and Fusi's chain of beakers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from typing_extensions import Unpack

from cl_callbacks.functional.beakers import (
    capacities,
    conductances,
    flow_,
    largest_coupling,
    level_differences,
    timescales,
)
from cl_callbacks.guards.arguments import at_most_one, checked
from cl_callbacks.guards.bounds import NON_NEGATIVE, POSITIVE, Bounds
from cl_callbacks.rules.compatibility import warn_of_half_precision
from cl_callbacks.rules.named_rule import KNOWS_PLASTICITY, knows_plasticity, named_rule
from cl_callbacks.rules.rule_options import RuleOptions
from cl_callbacks.rules.synaptic_callback import SynapticCallback
from cl_callbacks.synapses.state import Fill
from cl_callbacks.synapses.step import Step
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.training import log_keys
from cl_callbacks.training.log import log


class BennaFusi(SynapticCallback):
    r"""Every weight is the first of a chain of beakers, through which its changes flow, and back.

    After each step of the optimizer, of any type, the levels of all beakers change by

    .. math:: C_k\,\Delta u_k = g_{k-1}(u_{k-1}-u_k) - g_k(u_k-u_{k+1}), \qquad
              C_k = r^{k-1}, \quad g_k = g_1 r^{-(k-1)},

    with the weight :math:`u_1`. Beaker :math:`k` follows the weight within :math:`r^{2(k-1)}/g_1` steps,
    which are logged. A single change fades as :math:`t^{-1/2}` up to the last of them. No task boundary is
    needed and no importance measured: each weight is drawn to its own past, on many timescales at once.
    Memory is one tensor of double precision per parameter and beaker beyond the first. All beakers start
    at the weight.

    Source: Benna & Fusi 2016, "Computational principles of synaptic memory consolidation"; for networks,
    Kaplanis et al. 2018 (arXiv 1802.07239).

    Args:
        beakers: :math:`m`, at least 1; with 1 the rule is only a leak, a decay of the weights.
        coupling: :math:`g_1`, the share of a weight's distance to the second beaker that flows in a step,
            from 0, which leaves training as it is, bit for bit, to ``largest_coupling(timescale_ratio)``,
            0.5 for a ratio of 2, beyond which the flow would overshoot. Default: 0.01.
        horizon_steps: the timescale of the last beaker in optimizer steps, another way to set the coupling:
            about the length of training, or deep beakers never move.
        timescale_ratio: :math:`r`, at least 1: from beaker to beaker the timescale grows by its square.
        leak: whether the last beaker drains; without, the flow conserves :math:`\sum_k C_ku_k`.
        gated_by: name of another rule of this Trainer, whose plasticity of each synapse multiplies the flows:
            :math:`1/(1+\eta\lambda\Omega)` for rules with a penalty, :math:`\sigma^2/\sigma_p^2` for
            :class:`MESU`.
        options: of every rule: see :class:`~cl_callbacks.SynapticCallback`. ``state_dtype`` is by default
            ``"float64"``: in single precision the flow into the fifth and deeper beakers is lost to rounding.
            With few beakers ``"float32"`` saves half of the memory.

    Raises:
        ValueError: an argument that cannot work, at construction.

    Example:
        >>> BennaFusi(beakers=4, horizon_steps=6400).timescales
        [100.0, 400.0, 1600.0, 6400.0]
    """

    shardable: ClassVar[bool] = True
    local: ClassVar[bool] = True
    dial: str = "coupling"
    default_state_dtype: ClassVar[str | None] = "float64"

    @checked(
        beakers=Bounds(least=1, most=64),
        coupling=NON_NEGATIVE,
        horizon_steps=POSITIVE,
        timescale_ratio=Bounds(least=1, most=100),
    )
    def __init__(
        self,
        beakers: int = 2,
        coupling: float | None = None,
        *,
        horizon_steps: float | None = None,
        timescale_ratio: float = 2.0,
        leak: bool = False,
        gated_by: str | None = None,
        **options: Unpack[RuleOptions],
    ) -> None:
        self.levels = [f"beaker_{k}" for k in range(2, beakers + 1)]
        self.fields: Mapping[str, Fill] = dict.fromkeys(self.levels, "parameter")
        self.running = tuple(self.levels)
        super().__init__(**options)
        self.coupling = _coupling(coupling, horizon_steps, beakers, timescale_ratio)
        self.beakers, self.timescale_ratio, self.leak = beakers, timescale_ratio, leak
        self.gated_by, self.horizon_steps = gated_by, horizon_steps
        self._gating: SynapticCallback | None = None
        self._capacities = capacities(beakers, timescale_ratio)
        self._conductances = conductances(beakers, self.coupling, timescale_ratio, leak)

    @property
    def timescales(self) -> list[float]:
        """Timescale of each beaker, in steps."""
        if not self.coupling:
            return [float("inf")] * self.beakers
        return timescales(self.beakers, self.coupling, self.timescale_ratio)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the timescales, and finds the rule of ``gated_by``."""
        super().on_train_start(trainer, pl_module)
        warn_of_half_precision(self)
        rounded = [float(f"{t:.3g}") for t in self.timescales]
        rank_zero_info(f"{self.name}: timescales of the beakers in steps: {rounded}")
        log(trainer, {log_keys.timescale(self.name, k): t for k, t in enumerate(self.timescales, 1)})
        if self.gated_by is not None:
            self._gating = named_rule(trainer, self, "gated_by", knows_plasticity, KNOWS_PLASTICITY)

    def rewrite(self, step: Step) -> None:
        """Takes one step of the flow between all beakers, including the weight."""
        if self.coupling > 0:
            levels = [step.synapses.parameters, *(step.synapses[level] for level in self.levels)]
            flow_(levels, self._capacities, self._conductances, self._gates(step))

    def measures(self, synapses: SynapseView, rates: list[float]) -> dict[str, list[Tensor]]:
        """Distances between the levels of neighbouring beakers, the first of which is the weight."""
        levels = [synapses.parameters, *(synapses[level] for level in self.levels)]
        pairs = enumerate(level_differences(levels), 1)
        return super().measures(synapses, rates) | {f"beaker_distance_{k}": found for k, found in pairs}

    def _gates(self, step: Step) -> list[Tensor] | None:
        if self._gating is None:
            return None
        mine = step.synapses
        view = self._gating.synapses.view.restrict_to(mine.part)
        rates = dict(zip(mine.names, step.option("lr", default=1.0), strict=True))
        found = self._gating.plasticity(view, [rates[name] for name in view.names]) if len(view) else None
        known = dict(zip(view.names, found or [], strict=True))
        return [
            known[name] if name in known else torch.ones_like(weight)
            for name, weight in zip(mine.names, mine.parameters, strict=True)
        ]


def _coupling(coupling: float | None, horizon: float | None, beakers: int, ratio: float) -> float:
    at_most_one(coupling=coupling, horizon_steps=horizon)
    largest = largest_coupling(ratio)
    if horizon is not None:
        shortest = ratio ** (2 * (beakers - 1)) / largest
        if not horizon >= shortest:
            raise ValueError(
                f"with {beakers} beakers whose timescales grow by {ratio**2:g} the last is at least "
                f"{shortest:g} steps slow, or the first overshoots; got horizon_steps={horizon}: use fewer "
                f"beakers, or a longer horizon"
            )
        return ratio ** (2 * (beakers - 1)) / horizon
    found = 1e-2 if coupling is None else coupling
    if not 0 <= found <= largest:
        raise ValueError(
            f"coupling must be from 0 to {largest:g}, beyond which beakers with timescale_ratio={ratio:g} "
            f"overshoot; got {coupling}"
        )
    return found
