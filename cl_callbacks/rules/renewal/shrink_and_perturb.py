"""Shrinking of weights, and noise, in each step or before each task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from typing_extensions import Unpack

from cl_callbacks.functional.shrinking import shrink_and_perturb_
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import AT_LEAST_ONE, NON_NEGATIVE, SHARE, Bounds
from cl_callbacks.guards.sound_state import COUNT, OF_SQUARES
from cl_callbacks.rules.compatibility import warn_of_half_precision
from cl_callbacks.rules.renewal.boundary_renewal import BoundaryRenewal
from cl_callbacks.rules.renewal.drawn_noise import DrawnNoise
from cl_callbacks.rules.rule_options import RuleOptions
from cl_callbacks.rules.rule_scale import ActsOn
from cl_callbacks.rules.synaptic_callback import SynapticCallback
from cl_callbacks.synapses.step import Step
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.tensors.devices import stacked

NoiseUnit = Literal["initial_std", "absolute"]


class ShrinkAndPerturb(BoundaryRenewal):
    r"""Shrinks every weight towards 0 and adds a little noise, before each new task or in every step.

    .. math:: \theta \leftarrow a\,\theta + \sigma s\,\xi, \qquad \xi\sim\mathcal N(0, 1),

    with the standard deviation :math:`s` of the initial weights of each tensor, so that
    :math:`\sigma s\,\xi` are :math:`\sigma` times freshly drawn weights. The network keeps the direction of
    what it has learned, its weights become small again, and units that had become alike part.

    By default it acts when a new task begins, except for the first; what is measured, scored and saved at the
    end of a task is of the weights before. With ``every_n_steps`` it acts after every so many steps of the
    optimizer, and needs no boundary. The form with a learning rate,
    :math:`\theta\leftarrow(1-\eta\lambda)\theta-\eta(g+\xi)`, is ``every_n_steps=1`` with
    :math:`a=1-\eta\lambda` and, with ``noise_unit="absolute"``, :math:`\eta` times the noise's standard
    deviation.

    All weights shrink alike, as in the papers, also the scales of normalisation layers, which begin at 1 and
    whose initial weights have no spread: keep those by ``exclude``. Moments of the optimizer stay. The random
    numbers depend on the seed alone: they are the same in all processes, with and without sharding, and go on
    after a checkpoint. Under FSDP2 each process draws those of all weights for a moment. Memory is one tensor
    per parameter with ``every_n_steps``, else none between tasks.

    Sources: Ash & Adams 2020 (arXiv 1910.08475), between data sets; in every step, as a baseline, Dohare et
    al. 2024 (Nature 632) and Kumar et al. 2023 (arXiv 2308.11958).

    Args:
        shrink: :math:`a`, from 0 to 1; with a ``noise`` of 0, 1 leaves training as it is, bit for bit.
        noise: :math:`\sigma`, at least 0. Ash & Adams take 0.01 beside a ``shrink`` of 0.6 for each data set;
            Kumar et al. 0.01 beside 0.999 or 0.9999 for each step.
        every_n_steps: number of optimizer steps from one time to the next; ``None`` for when a task begins.
        noise_unit: ``"initial_std"``, or ``"absolute"`` for an :math:`s` of 1.
        seed: of the noise.
        options: of every rule: see :class:`~cl_callbacks.SynapticCallback`.

    Raises:
        ValueError: an argument that cannot work, at construction.
        MisconfigurationException: before the first step, beside a rule whose weights have only certain
            values, such as :class:`Cascade`.

    Example:
        >>> from lightning import Trainer
        >>> each_step = ShrinkAndPerturb(0.9999, every_n_steps=1)
        >>> trainer = Trainer(callbacks=[each_step], logger=False, enable_checkpointing=False)
    """

    local: ClassVar[bool] = True
    state_bounds: Mapping[str, Bounds] = {
        **SynapticCallback.state_bounds,
        "steps": COUNT,
        "draws": COUNT,
        "initial_stds": OF_SQUARES,
    }
    saved: ClassVar[tuple[str, ...]] = (*BoundaryRenewal.saved, "steps", "draws", "initial_stds")
    dial: str = "noise"

    @checked(shrink=SHARE, noise=NON_NEGATIVE, every_n_steps=AT_LEAST_ONE, seed=NON_NEGATIVE)
    def __init__(
        self,
        shrink: float = 0.6,
        noise: float = 0.01,
        *,
        every_n_steps: int | None = None,
        noise_unit: NoiseUnit = "initial_std",
        seed: int = 0,
        **options: Unpack[RuleOptions],
    ) -> None:
        super().__init__(**options)
        self.shrink, self.noise, self.every_n_steps = shrink, noise, every_n_steps
        self.noise_unit, self.seed = noise_unit, seed
        self.steps: dict[str, int] = {}
        """Number of optimizer steps of each parameter, by name, if they are counted."""
        self.draws = 0
        """Number of draws of the noise."""
        self.initial_stds: dict[str, float] = {}
        """Standard deviation of each parameter when it was first met, by name."""
        self._noise = DrawnNoise(seed)

    @property
    def acts(self) -> bool:
        """Whether weights are changed at all."""
        return self.shrink < 1 or self.noise > 0

    @property
    def renews_at_boundaries(self) -> bool:
        """Whether weights are changed when a task begins."""
        return self.acts and self.every_n_steps is None

    @property
    def acts_on(self) -> ActsOn | None:
        """The update, if weights are changed within a task."""
        return None if self.every_n_steps is None else "update"

    @property
    def strength_now(self) -> float | None:
        """The size of the noise; ``None`` if weights are only shrunk."""
        return self.noise if self.noise or not self.acts else None

    @property
    def waits_for_a_task(self) -> bool:
        """Whether nothing happens before a task has ended, and none has."""
        return self.every_n_steps is None and super().waits_for_a_task

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws with all processes from here on."""
        super().on_train_start(trainer, pl_module)
        self._noise.together = trainer.world_size > 1
        if self.every_n_steps is not None:
            warn_of_half_precision(self)

    def renew(self, trainer: Trainer, pl_module: LightningModule, synapses: SynapseView) -> None:
        """Shrinks and perturbs all weights, and frees the noise."""
        self._change(synapses, [True] * len(synapses))
        self.draws += 1
        self._noise.forget()

    def rewrite(self, step: Step) -> None:
        """Shrinks and perturbs the weights, after every n-th step."""
        if self.every_n_steps is not None and self.acts:
            due = self._due(step.synapses)
            if any(due):
                self._change(step.synapses, due)

    def end_step(self, synapses: SynapseView) -> None:
        """Counts the step of each parameter, and the draw if there was one."""
        if self.every_n_steps is not None and self.acts:
            self.draws += any(self._due(synapses))
            self.steps.update((name, self.steps.get(name, 0) + 1) for name in synapses.names)

    def _due(self, synapses: SynapseView) -> list[bool]:
        """Whether this step of each parameter is one after which it is changed."""
        every = self.every_n_steps or 1
        return [(self.steps.get(name, 0) + 1) % every == 0 for name in synapses.names]

    def _change(self, synapses: SynapseView, due: list[bool]) -> None:
        noise = self._noise.beside(synapses, self.synapses.view, self.draws) if self.noise else None
        pairs = zip(synapses.names, due, strict=True)
        stds = [self.noise * self._unit(name) if now else 0.0 for name, now in pairs]
        shrink_and_perturb_(synapses.parameters, noise, [self.shrink if now else 1.0 for now in due], stds)

    def _unit(self, name: str) -> float:
        return 1.0 if self.noise_unit == "absolute" else self.initial_stds[name]

    def _place(self, pl_module: LightningModule, growing: bool = False) -> None:
        super()._place(pl_module, growing)
        view = self.synapses.view
        new = [p for name, p in zip(view.names, view.sources, strict=True) if name not in self.initial_stds]
        if new:
            some = view.restrict_to(new)
            self.initial_stds |= dict(zip(some.names, _stds(some), strict=True))


@torch.no_grad()
def _stds(view: SynapseView) -> list[float]:
    """Standard deviation of each tensor over its elements; 0 if it is not finite."""
    sums = [torch.stack([p.double().sum(), p.double().square().sum()]) for p in view.parameters]
    found = []
    for (total, squares), source in zip(view.total(stacked(sums)).tolist(), view.sources, strict=True):
        mean = total / source.numel()
        variance = squares / source.numel() - mean**2
        found.append(math.sqrt(variance) if 0 < variance < math.inf else 0.0)
    return found
