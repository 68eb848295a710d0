"""Weights drawn anew around their means, for as long as a forward and a backward take."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class WeightNoise:
    r"""Replaces weights :math:`\mu` by :math:`\mu+\sigma\epsilon` in place, and puts the means back.

    The means come back bit for bit. The noise is a function of ``seed`` and of the number of the draw
    alone: it leaves the random numbers of training as they are, is the same on every process, and goes on
    from a checkpoint that knows ``draws``. Several draws may contribute to one step; gradient times noise,
    summed over them, is gathered by parts from the gradients :math:`G_j=g_1+\dots+g_j` as they accumulate
    in ``.grad``:

    .. math:: \sum_{j\le J} g_j\epsilon_j = \sum_{j<J} G_j(\epsilon_j-\epsilon_{j+1}) + G_J\epsilon_J

    Args:
        seed: of the noise.
        antithetic: let every second draw be the one before it with its sign turned, which takes the mean
            gradient out of the estimate of a pair.

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
        self.draws = 0
        """The number of the present draw."""
        self.settle: Callable[[Tensor], None] = _as_it_is
        """Settles a sum over several draws, in place: averages over processes, takes a scale off."""
        self.parameters: list[Tensor] = []
        self.stds: list[Tensor] = []
        self._wanted = self._perturbed = self._taken = False
        self._reset()

    @property
    def next_draw(self) -> int:
        """The number of the draw that the next step begins with."""
        return self.draws + self._taken

    def place(self, parameters: Sequence[Tensor], stds: Sequence[Tensor]) -> None:
        """Says which weights there are, and their standard deviations, which are read at each draw."""
        now, then = [*parameters, *stds], [*self.parameters, *self.stds]
        if len(now) != len(then) or any(a is not b for a, b in zip(now, then, strict=True)):
            self.pause()
            self.parameters, self.stds = list(parameters), list(stds)
            self._reset()

    def _reset(self) -> None:
        self._means = [torch.empty_like(p.detach()) for p in self.parameters]
        self._flat, noise = _flat(self.stds)
        self._noise = dict(zip(self.parameters, noise, strict=True))
        self._gathered_flat: dict[torch.device, Tensor] = {}  # of steps with several draws
        self._gathered: dict[Tensor, Tensor] = {}
        self._drawn: int | None = None

    def begin(self, anew: bool = False) -> None:
        """Puts drawn weights in place: those of the present draw, or of another if a step has used it.

        Args:
            anew: whether to go on to another draw also within a step.
        """
        self._wanted = True
        if self._taken:
            self.draws += 1
            self._taken = False
            for total in self._gathered_flat.values():
                total.zero_()
        elif anew and self._drawn is not None:
            self.redraw()
        self.resume()

    def end(self) -> None:
        """Puts the means in place."""
        self.pause()
        self._wanted = False

    @torch.no_grad()
    def pause(self) -> None:
        """Puts the means in place until :meth:`resume`."""
        if self._perturbed:
            torch._foreach_copy_(self.parameters, self._means)
            self._perturbed = False

    @torch.no_grad()
    def resume(self) -> None:
        """Puts the drawn weights in place again, if that has begun and not ended."""
        if self._wanted and not self._perturbed and self.parameters:
            self._draw()
            torch._foreach_copy_(self._means, self.parameters)
            self._perturbed = True
            torch._foreach_add_(self.parameters, torch._foreach_mul(list(self._noise.values()), self.stds))

    @torch.no_grad()
    def redraw(self) -> None:
        """Goes on to another draw within the same step and puts it in place."""
        self.pause()
        if not self._gathered:
            self._gathered_flat, gathered = _flat(self.stds)
            self._gathered = dict(zip(self.parameters, gathered, strict=True))
        self._gather(1.0)
        self.draws += 1
        self._draw()
        self._gather(-1.0)
        self.resume()

    def take(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Gradient times noise, summed over the draws of a step, for weights that are about to step."""
        met = [p for p in parameters if p in self._noise]
        self._taken = True
        if self._drawn is None or len(met) < len(parameters):  # joined since the draw: no noise yet
            return [torch.zeros_like(p) for p in parameters]
        found = torch._foreach_mul([self._noise[p] for p in met], _gradients(met))
        if self._gathered:
            for total in self._gathered_flat.values():
                self.settle(total)
            torch._foreach_add_(found, [self._gathered[p] for p in met])
        return list(found)

    def _gather(self, sign: float) -> None:
        met = [p for p in self.parameters if p.grad is not None]
        if met:
            torch._foreach_addcmul_(
                [self._gathered[p] for p in met],
                _gradients(met),
                [self._noise[p] for p in met],
                value=sign,
            )

    def _draw(self) -> None:
        if self._drawn == self.draws:
            return
        pair, second = divmod(self.draws, 2) if self.antithetic else (self.draws, 0)
        for device, noise in self._flat.items():
            if second and self._drawn == self.draws - 1:
                noise.neg_()
                continue
            # Generators on the CPU use 32 bits of a seed.
            seed = (self.seed * 2654435761 + pair) % 2**32
            noise.normal_(generator=torch.Generator(device).manual_seed(seed))
            if second:
                noise.neg_()
        self._drawn = self.draws


def _as_it_is(gathered: Tensor) -> None:
    """Of one process, without a scale."""


def _gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _flat(like: Sequence[Tensor]) -> tuple[dict[torch.device, Tensor], list[Tensor]]:
    """Zeros of the shapes of tensors, as views into one flat tensor for each device."""
    sizes = [t.numel() for t in like]
    flat: dict[torch.device, Tensor] = {}
    views: dict[int, Tensor] = {}
    for device in dict.fromkeys(t.device for t in like):
        mine = [i for i, t in enumerate(like) if t.device == device]
        flat[device] = torch.zeros(sum(sizes[i] for i in mine), dtype=like[mine[0]].dtype, device=device)
        pieces = flat[device].split([sizes[i] for i in mine])
        views |= {i: piece.view_as(like[i]) for i, piece in zip(mine, pieces, strict=True)}
    return flat, [views[i] for i in range(len(like))]
