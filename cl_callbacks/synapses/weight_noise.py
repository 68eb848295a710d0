"""Gaussian samples of the weights, in place of their means during a forward and backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from cl_callbacks.compiled.fused import compiling
from cl_callbacks.functional.uncertainty import draw_, keep_noise_gradients_
from cl_callbacks.guards.parameters import SPARSE_GRADIENT
from cl_callbacks.guards.uninterrupted import uninterrupted
from cl_callbacks.tensors.blocks import ELEMENTS_IF_COMPILED, Rows, in_blocks, rows_of
from cl_callbacks.tensors.flat import flat_zeros
from cl_callbacks.tensors.random_numbers import Draws


class WeightNoise:
    r"""Replaces weights :math:`\mu` by :math:`\mu+\sigma\epsilon` in place, and restores the means.

    The means are restored bit for bit. The noise depends only on ``seed`` and the number of the draw: it
    leaves the random number generators of training as they are, and continues from a checkpoint that contains
    ``draws``; of processes that draw ``together`` it is the same. Several draws may contribute to one step;
    gradient times noise, summed over them, is computed by summation by parts from the gradients
    :math:`G_j=g_1+\dots+g_j` as they accumulate in ``.grad``:

    .. math:: \sum_{j\le J} g_j\epsilon_j = \sum_{j<J} G_j(\epsilon_j-\epsilon_{j+1}) + G_J\epsilon_J

    Args:
        seed: of the noise.
        antithetic: let every second draw be the one before it with the opposite sign, which removes the mean
            gradient from the estimate of a pair.

    Example:
        >>> weight, noise = torch.nn.Parameter(torch.zeros(2)), WeightNoise()
        >>> noise.place([weight], [torch.ones(2)])
        >>> noise.begin(); first = weight.detach().clone()
        >>> noise.redraw(); torch.equal(weight, -first)
        True
        >>> noise.end(); weight.tolist()
        [0.0, 0.0]
    """

    def __init__(self, seed: int = 0, antithetic: bool = True) -> None:
        self.seed, self.antithetic = seed, antithetic
        self.draws = self._first = 0
        """The number of the current draw."""
        self.reduce: Callable[[Tensor], None] = _as_it_is
        """Averages a sum of draws over processes and removes the loss scale, in place."""
        self.compiled = False
        """Whether to compile the operations; set where ``CompileRules`` is among the callbacks."""
        self.together = False
        """Whether all processes draw at the same times and need the same noise."""
        self.parameters: list[Tensor] = []
        self.stds: list[Tensor] = []
        self._load: Callable[[list[Tensor], list[Tensor]], list[Tensor]] = _as_they_are
        self._wanted = self._taken = False
        self._versions: dict[Tensor, int] = {}  # of the weights that are currently replaced by samples
        self._reset()

    @property
    def next_draw(self) -> int:
        """The number of the first draw of the next step, or of the present one until that is taken."""
        return self.draws + 1 if self._taken else self._first

    def place(
        self,
        parameters: Sequence[Tensor],
        stds: Sequence[Tensor],
        load: Callable[[list[Tensor], list[Tensor]], list[Tensor]] | None = None,
    ) -> None:
        """Sets the weights and their standard deviations, which are read at each draw.

        Args:
            parameters: the weights.
            stds: aligned with them.
            load: moves stds to the devices of the parameters, from ``(stds, parameters)``; default: no move.
        """
        self._load = load or _as_they_are
        now, then = [*parameters, *stds], [*self.parameters, *self.stds]
        if len(now) != len(then) or any(a is not b for a, b in zip(now, then, strict=True)):
            self.pause()
            self.parameters, self.stds = list(parameters), list(stds)
            self._reset()

    def _reset(self) -> None:
        means = [torch.empty_like(p.detach()) for p in self.parameters]
        self._means = dict(zip(self.parameters, means, strict=True))
        self._std_of = dict(zip(self.parameters, self.stds, strict=True))
        self._noise = Draws(Tensor.normal_, self.parameters, self.stds)
        self._gathered_flat: list[Tensor] = []  # of steps with several draws
        self._gathered: dict[Tensor, Tensor] = {}
        self._drawn: int | None = None

    def begin(self, anew: bool = False) -> None:
        """Replaces the weights by the current draw, or by the next one if a step has used it.

        With ``anew`` it is another draw also within a step.
        """
        self._wanted = True
        if anew and not self._taken and self._drawn is not None:
            self.redraw()
        self.resume()

    def end(self) -> None:
        """Restores the means."""
        self._wanted = False
        self.pause()

    def go_on(self, draw: int) -> None:
        """Sets the draw with which the next step begins, such as after a checkpoint was loaded."""
        self.pause()
        self.draws = self._first = draw
        self._taken, self._drawn = False, None

    def mean_of(self, parameter: Tensor) -> Tensor | None:
        """A copy of the mean of a weight that is replaced by a sample now; ``None`` if it is not."""
        return self._means[parameter].clone() if parameter in self._versions else None

    def restart(self) -> None:
        """Marks the current draw as used, so that the next step begins with another and empty sums."""
        self._taken = self._taken or self._drawn is not None

    @torch.no_grad()
    def pause(self, parameters: Iterable[Tensor] | None = None) -> None:
        """Restores the means of some weights until :meth:`resume`; by default of all."""
        which = [p for p in (self.parameters if parameters is None else parameters) if p in self._versions]
        if not which:
            return
        edited = any(p._version != self._versions[p] for p in which)
        torch._foreach_copy_(which, [self._means[p] for p in which])
        for p in which:
            del self._versions[p]
        if edited:
            raise RuntimeError(
                "Weights were changed while they were drawn at random for a forward and backward, and the "
                "change would be lost. Let an optimizer that the Trainer knows make it, make it in "
                "on_train_batch_start or on_train_batch_end, or keep these parameters out with exclude."
            )

    @torch.no_grad()
    def resume(self) -> None:
        """Replaces the weights by the current draw again, between :meth:`begin` and :meth:`end`."""
        if not self._wanted or len(self._versions) == len(self.parameters):
            return
        if self._taken and not self._versions:
            self.draws += 1
            self._first, self._taken = self.draws, False
            for total in self._gathered_flat:
                total.zero_()
        self._draw()
        which = [p for p in self.parameters if p not in self._versions]
        drawn: list[tuple[list[Tensor], list[Tensor]]] = []
        with uninterrupted():  # or an interrupt could leave drawn weights that are not in `_versions`
            try:
                for part in in_blocks(which, ELEMENTS_IF_COMPILED if self.compiled else None):
                    drawn.append(self._put_in_place(part))
            except Exception:
                for weights, means in drawn:
                    torch._foreach_copy_(weights, means)
                raise
            self._versions.update((p, p._version) for p in which)

    def _put_in_place(self, part: Mapping[Tensor, Rows]) -> tuple[list[Tensor], list[Tensor]]:
        weights = [rows_of(p, rows) for p, rows in part.items()]
        means, noise, stds = (
            [rows_of(beside[p], rows) for p, rows in part.items()]
            for beside in (self._means, self._noise, self._std_of)
        )
        with compiling(self.compiled):
            draw_(means, weights, noise, self._load(stds, weights))
        return weights, means

    @torch.no_grad()
    def redraw(self) -> None:
        """Replaces the weights by the next draw of the same step."""
        self.pause()
        if not self._gathered:
            self._refuse_sparse()
            self._gathered_flat, gathered = flat_zeros(self.stds, self.parameters)
            self._gathered = dict(zip(self.parameters, gathered, strict=True))
        self._gather(1.0)
        self.draws += 1
        self._draw()
        self._gather(-1.0)
        self.resume()

    def reduce_gathered(self) -> None:
        """Reduces the sums gathered over the draws of a step, and marks the step as taken."""
        self._taken = True
        for total in self._gathered_flat:
            self.reduce(total)

    def take(self, part: Mapping[Tensor, Rows], kept: Sequence[Tensor]) -> None:
        """Writes gradient times noise, summed over the draws of a step, for weights that are about to step.

        ``kept`` is aligned with ``part``, the rows by weight; it is overwritten, except where none is drawn.
        """
        drawn = {p: (rows, t) for (p, rows), t in zip(part.items(), kept, strict=True) if p in self._noise}
        if not drawn:
            return
        gradients = [rows_of(p.grad, rows) for p, (rows, _) in drawn.items() if p.grad is not None]
        noise = [rows_of(self._noise[p], rows) for p, (rows, _) in drawn.items()]
        gathered = None
        if self._gathered:
            gathered = [rows_of(self._gathered[p], rows) for p, (rows, _) in drawn.items()]
        keep_noise_gradients_([t for _, t in drawn.values()], noise, gradients, gathered)

    def _gather(self, sign: float) -> None:
        met = [p for p in self.parameters if p.grad is not None]
        if met:
            torch._foreach_addcmul_(
                [self._gathered[p] for p in met], _gradients(met), [self._noise[p] for p in met], value=sign
            )

    def _refuse_sparse(self) -> None:
        for p in self.parameters:
            if p.grad is not None and p.grad.layout is not torch.strided:
                raise ValueError(
                    f"A weight of shape {tuple(p.shape)} is drawn at random and {SPARSE_GRADIENT}, or leave "
                    f"it out with exclude."
                )

    def _draw(self) -> None:
        if self._drawn == self.draws:
            return
        pair, second = divmod(self.draws, 2) if self.antithetic else (self.draws, 0)
        if not second or self._drawn != self.draws - 1:
            self._noise.draw(self.seed, pair, self.together)
        if second:
            torch._foreach_neg_(self._noise.flats)
        self._drawn = self.draws


def _as_it_is(gathered: Tensor) -> None:
    """Does nothing: the default reduction, for one process without a loss scale."""


def _as_they_are(stds: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
    """Returns the standard deviations unchanged, for state that is not offloaded."""
    return stds


def _gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]
