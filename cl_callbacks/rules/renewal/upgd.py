"""Utility-based perturbed gradient descent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import SGD
from typing_extensions import Unpack

from cl_callbacks.functional.averaging import newest_share
from cl_callbacks.functional.utility import add_utility_, upgd_, utility_gates
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import NON_NEGATIVE, Bounds
from cl_callbacks.guards.once import first_time
from cl_callbacks.guards.sound_state import COUNT, OF_WEIGHTS
from cl_callbacks.rules.compatibility import warn_of_half_precision
from cl_callbacks.rules.renewal.drawn_noise import DrawnNoise
from cl_callbacks.rules.rule_options import RuleOptions
from cl_callbacks.rules.synaptic_callback import SynapticCallback
from cl_callbacks.synapses.state import Fill
from cl_callbacks.synapses.step import Need, Step
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.tensors.finite import copy_each_
from cl_callbacks.training.progress import say


class UPGD(SynapticCallback):
    r"""Utility-based perturbed gradient descent: useful weights move less, and noise renews the others.

    The utility :math:`u=-g\theta` is by how much the loss would rise without a weight, to first order. With
    its exponential average :math:`U`, corrected for its start at 0, :math:`\hat U_t=U_t/(1-\beta^t)`,

    .. math::
        U &\leftarrow \beta U + (1-\beta)(-g\theta), \\
        \theta &\leftarrow (1-\eta\lambda)\,\theta - \eta\,(g+\sigma\xi)
                 \big(1-\operatorname{sigmoid}(\hat U/\max\hat U)\big),
                 \qquad \xi\sim\mathcal N(0,1),

    with the maximum over all weights that step together. The most useful weight takes 0.27 of a step, one
    without utility 0.5, and one that does harm up to all of it. While no weight has a utility above 0, every
    one takes 0.5. No task boundary is needed.

    This replaces the optimizer's update. Of the optimizer only the learning rate :math:`\eta` of each
    parameter group counts, with its schedule: moments, momentum and weight decay of the optimizer have no
    effect. Use ``torch.optim.SGD`` and a rate for it, of which about half arrives: the paper's is 0.01 for
    batches of one sample. Pulls of other rules are part of :math:`g` in the update, and not in the utility,
    which is that for the task; gradients are not clipped.

    The maximum is that of the corrected utilities, as the paper writes it. Both released versions divide by
    that of :math:`U` itself, which saturates the sigmoid over the first :math:`1/(1-\beta)` steps. Under
    FSDP2 it is the maximum over all shards. The noise depends on the seed alone: it is the same in all
    processes, with and without sharding, and goes on after a checkpoint. Memory is two tensors per parameter,
    for utility and noise, and three snapshots while training.

    Source: Elsayed & Mahmood 2024, "Addressing loss of plasticity and catastrophic forgetting in continual
    learning" (ICLR; arXiv 2404.00781), there UPGD-W.

    Args:
        decay: :math:`\beta` per step, from 0 to below 1.
        noise: :math:`\sigma`, in units of the gradient, at least 0. Beside a learning rate of 0.01 the paper
            takes 0.1 for input-permuted MNIST, 0.001 for label-permuted EMNIST, and 0 for CIFAR-10.
        weight_decay: :math:`\lambda`, at least 0; 0.01, 0 and 0.001 there.
        seed: of the noise.
        options: of every rule: see :class:`~cl_callbacks.SynapticCallback`.

    Raises:
        ValueError: an argument that cannot work, at construction.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[UPGD()], logger=False, enable_checkpointing=False)
    """

    fields: Mapping[str, Fill] = {"utility": "zeros"}
    state_bounds: Mapping[str, Bounds] = {
        **SynapticCallback.state_bounds,
        "synapses/utility": OF_WEIGHTS,
        "steps": COUNT,
        "draws": COUNT,
    }
    running: tuple[str, ...] = ("utility",)
    needs: frozenset[Need] = frozenset({"gradients", "pulled", "before"})
    owns_update: ClassVar[bool] = True
    holds_weights: ClassVar[bool] = False
    renews: ClassVar[bool] = True
    shardable: ClassVar[bool] = True
    saved: ClassVar[tuple[str, ...]] = ("steps", "draws")
    dial: str = "noise"

    @checked(decay=Bounds(least=0, below=1), noise=NON_NEGATIVE, weight_decay=NON_NEGATIVE, seed=NON_NEGATIVE)
    def __init__(
        self,
        decay: float = 0.999,
        noise: float = 0.001,
        weight_decay: float = 0.001,
        *,
        seed: int = 0,
        **options: Unpack[RuleOptions],
    ) -> None:
        super().__init__(**options)
        self.decay, self.noise, self.weight_decay, self.seed = decay, noise, weight_decay, seed
        self.steps: dict[str, int] = {}
        """Number of steps of each parameter, by name, from which its utility is averaged."""
        self.draws = 0
        """Number of steps, which determines the noise."""
        self._noise = DrawnNoise(seed)
        self._largest: Tensor | None = None  # utility, in the latest step

    def advice(self, factor: float) -> str:
        """What to try for ``factor`` times the effect: the learning rate is the optimizer's."""
        return "try another learning rate, of which weights without utility take half"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says what of the optimizers has no effect, and draws with all processes from here on."""
        super().on_train_start(trainer, pl_module)
        warn_of_half_precision(self)
        self._noise.together = trainer.world_size > 1
        without = [text for optimizer in trainer.optimizers for text in _without_effect(optimizer)]
        without += ["clipping of gradients"] if trainer.gradient_clip_val else []
        if without and first_time(self, "optimizers"):
            say(
                trainer,
                f"{self.name} replaces the optimizer's update, and takes of it only the learning rate; "
                f"without effect: {', '.join(dict.fromkeys(without))}",
            )

    def rewrite(self, step: Step) -> None:
        """Replaces the optimizer's update by the rule's."""
        synapses = step.synapses
        weights, utility = synapses.parameters, synapses["utility"]
        copy_each_(weights, step.before)
        shares = [newest_share(self.decay, self.steps.get(name, 0) + 1) for name in synapses.names]
        add_utility_(utility, step.gradients, weights, shares)
        self._largest = synapses.greatest(utility)
        noise = self._noise.beside(synapses, self.synapses.view, self.draws) if self.noise else None
        gates = utility_gates(utility, self._largest)
        upgd_(weights, step.pulled, gates, noise, step.option("lr"), self.noise, self.weight_decay)

    def end_step(self, synapses: SynapseView) -> None:
        """Counts the step of each parameter, and the draw."""
        self.steps.update((name, self.steps.get(name, 0) + 1) for name in synapses.names)
        self.draws += 1

    def plasticity(self, synapses: SynapseView, rates: list[float]) -> list[Tensor]:
        """Share that each weight takes of a step of gradient descent; 0.5 before the first one."""
        if self._largest is None:
            return list(torch._foreach_add(torch._foreach_mul(synapses["utility"], 0.0), 0.5))
        return utility_gates(synapses["utility"], self._largest)


def _without_effect(optimizer: Any) -> list[str]:
    """What an optimizer does beyond plain gradient descent, in words."""
    found = [] if isinstance(optimizer, SGD) else [f"the moments of {type(optimizer).__name__}"]
    for option in ("momentum", "weight_decay"):
        if any(group.get(option, 0) for group in optimizer.param_groups):
            found.append(f"its {option}")
    return found
