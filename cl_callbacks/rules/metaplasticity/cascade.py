"""Binary synapses with a cascade of hidden levels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import Unpack

from cl_callbacks.functional.cascade import switch_probabilities, switch_weights_
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import NON_NEGATIVE, Bounds
from cl_callbacks.guards.sound_state import COUNT
from cl_callbacks.rules.rule_options import RuleOptions
from cl_callbacks.rules.synaptic_callback import SynapticCallback
from cl_callbacks.synapses.state import Fill
from cl_callbacks.synapses.step import Need, Step
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.tensors.blocks import rows_of
from cl_callbacks.tensors.random_numbers import Draws


class Cascade(SynapticCallback):
    r"""Binary weights with hidden levels: a weight that was often confirmed is hard to switch.

    A weight is :math:`\pm a`, with :math:`a` the mean size of its tensor's weights when training begins. The
    optimizer's update :math:`\Delta` becomes a candidate event: towards the sign of :math:`\Delta`, with
    probability :math:`\min(1, |\Delta|/2a)`. An event against the weight switches its sign with probability
    :math:`q_k` and sets it to the first level; one that confirms it moves it from level :math:`k` to
    :math:`k+1` with probability :math:`p_k`:

    .. math:: q_k = x^{k-1},\quad q_n = \frac{x^{n-1}}{1-x}, \qquad p_k = \frac{x^k}{1-x},\quad p_n = 0 .

    With one level a weight follows the optimizer on average. No task boundary is needed. The rule replaces
    the update; it suits networks that compute with the signs of weights, and others whose layers are
    followed by a normalisation. One-dimensional parameters (biases, normalisation) stay with the
    optimizer, unless ``parameters`` names them. Memory is one tensor per parameter, and one for the random
    numbers of a step.

    It is a model of synapses to study, not a remedy: on permuted digits networks of binary weights forget
    more with it than without, for 2 to 20 levels and ratios from 0.05 to 0.5.

    Source: Fusi, Drew & Abbott 2005, "Cascade models of synaptically stored memories".

    Args:
        levels: :math:`n`, at least 1.
        seed: of the random transitions; the same on every process.
        ratio: :math:`x`, of a level's probabilities to those of the one before: above 0 and at most 0.5,
            where all levels are used equally.
        options: of every rule: see :class:`~cl_callbacks.SynapticCallback`; by default ``parameters``
            are those of two and more dimensions.

    Raises:
        ValueError: an argument that cannot work, at construction; a tensor of zeros, when training begins.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[Cascade(levels=5)], logger=False, enable_checkpointing=False)
    """

    fields: Mapping[str, Fill] = {"level": "zeros"}
    state_bounds: Mapping[str, Bounds] = {
        **SynapticCallback.state_bounds,
        "steps": COUNT,
    }
    running = ("level",)
    needs: frozenset[Need] = frozenset({"before"})
    owns_update: ClassVar[bool] = True
    free_values: ClassVar[bool] = False
    matrices_only: ClassVar[bool] = True
    local: ClassVar[bool] = True
    saved: ClassVar[tuple[str, ...]] = ("steps",)

    @checked(levels=Bounds(least=1, most=64), seed=NON_NEGATIVE, ratio=Bounds(above=0, most=0.5))
    def __init__(
        self, levels: int = 5, seed: int = 0, *, ratio: float = 0.5, **options: Unpack[RuleOptions]
    ) -> None:
        super().__init__(**options)
        self.levels, self.seed, self.ratio = levels, seed, ratio
        self.steps = 0
        """Number of optimizer steps, which determines the random numbers."""
        self._uniform = Draws(Tensor.uniform_)
        self._drawn: int | None = None
        self._together = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws with all processes from here on."""
        super().on_train_start(trainer, pl_module)
        self._together = trainer.world_size > 1

    def rewrite(self, step: Step) -> None:
        """Replaces the update by random switches of the weights, and updates their levels."""
        synapses = step.synapses
        if self._drawn != self.steps:
            self._uniform.draw(self.seed, self.steps, self._together)
            self._drawn = self.steps
        uniform = [rows_of(self._uniform[p], rows) for p, rows in synapses.part.items()]
        switch_weights_(synapses.parameters, step.before, synapses["level"], uniform, self.levels, self.ratio)

    def end_step(self, synapses: SynapseView) -> None:
        """Counts the step, so that the next one uses other random numbers."""
        self.steps += 1

    def plasticity(self, synapses: SynapseView, rates: list[float]) -> list[Tensor]:
        """Probability that an event against a weight switches it."""
        q = switch_probabilities(self.levels, self.ratio)
        return [q.to(level)[level.abs().long().clamp(min=1) - 1] for level in synapses["level"]]

    def measures(self, synapses: SynapseView, rates: list[float]) -> dict[str, list[Tensor]]:
        """Plasticity, and the level of each synapse, from 1."""
        return super().measures(synapses, rates) | {"level": list(torch._foreach_abs(synapses["level"]))}

    def _place(self, pl_module: LightningModule, growing: bool = False) -> None:
        super()._place(pl_module, growing)
        view = self.synapses.view
        if not self._uniform.are_beside(view.parameters, view.fields["level"]):
            self._uniform = Draws(Tensor.uniform_, view.parameters, view.fields["level"])
            self._drawn = None
        with self.synapses.on_device():
            for name, weight, level in zip(view.names, view.parameters, view["level"], strict=True):
                _make_binary(name, weight, level)


@torch.no_grad()
def _make_binary(name: str, weight: Tensor, level: Tensor) -> None:
    """Sets a tensor to its two values where it has others, and new weights to the first level."""
    new = level == 0
    size = weight.abs().mean() if new.all() else weight[~new].abs().mean()
    if not size.isfinite():
        return  # left as they are: finite weights may be restored later
    if size == 0:
        raise ValueError(
            f"Cascade: all weights of {name} are 0, so they have no two values: initialise them at random, "
            f"or leave them out with exclude."
        )
    if ((weight.abs() - size).abs() <= 1e-3 * size).all() and not new.any():
        return
    sign = torch.where(weight < 0, -1.0, 1.0)
    level.copy_(torch.where(level * sign > 0, level, sign))
    weight.copy_(size * sign)
