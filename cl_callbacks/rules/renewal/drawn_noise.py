"""Standard normal noise for the weights of a rule."""

from __future__ import annotations

from torch import Tensor

from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.tensors.blocks import rows_of
from cl_callbacks.tensors.random_numbers import Draws


class DrawnNoise:
    """Noise that depends on a seed and the number of the draw alone, the same in all processes.

    Args:
        seed: of all draws.

    Attributes:
        together: whether several processes draw, all at once.

    Example:
        >>> import torch
        >>> from cl_callbacks.synapses.state import Synapses
        >>> view = Synapses({}).place({"weight": torch.zeros(2, 3)}, ["weight"])
        >>> [draw] = DrawnNoise(seed=0).beside(view, view, number=7)
        >>> draw.shape
        torch.Size([2, 3])
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.together = seed, False
        self.forget()

    def forget(self) -> None:
        """Frees the memory of the noise; the next draw allocates it again."""
        self._draws = Draws(Tensor.normal_)
        self._number: int | None = None
        self._view: SynapseView | None = None

    def beside(self, synapses: SynapseView, of_rule: SynapseView, number: int) -> list[Tensor]:
        """The noise of some of a rule's synapses, for reading; all of it is drawn once for each number."""
        if of_rule is not self._view and not self._draws.are_beside(of_rule.sources, of_rule.parameters):
            self._draws = Draws(Tensor.normal_, of_rule.sources, of_rule.parameters)
            self._number = None
        self._view = of_rule  # compared once for each placement, and not for each block of a step
        if self._number != number:
            self._draws.draw(self.seed, number, self.together)
            self._number = number
        return [rows_of(self._draws[p], rows) for p, rows in synapses.part.items()]
