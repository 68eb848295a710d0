"""Random numbers that follow from a seed and a number, whatever else draws any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from cl_callbacks.tensors.flat import flat_zeros

PIECE = 2**20
"""Elements that are drawn with one generator on a CPU."""

STRIP = 2**15
"""Of these so many in one call, which goes over them twice: while they are in the cache."""


def numbered_generator(seed: int, number: int, device: torch.device, piece: int = 0) -> torch.Generator:
    """A generator for each seed and numbers, apart from those of ``torch.manual_seed``.

    Generators on the CPU use 32 bits of a seed.
    """
    mixed = (seed * 2654435761 + number * 2246822519 + piece * 668265263 + 3266489917) % 2**32
    return torch.Generator(device).manual_seed(mixed)


class Draws:
    """Random numbers beside parameters.

    On a CPU a generator gives them one after the other, which would take longer than all else that is done
    with them: there each piece has a generator of its own, and each of torch's threads some pieces.

    Args:
        fill: ``torch.Tensor.normal_`` or ``torch.Tensor.uniform_``.
        parameters: beside which they are.
        like: tensors of the shapes and dtypes of the numbers, aligned with the parameters.

    Attributes:
        flats: all numbers, in tensors of one dimension.

    Example:
        >>> weight = torch.zeros(2, 1)
        >>> draws = Draws(torch.Tensor.uniform_, [weight], [weight])
        >>> draws.draw(seed=0, number=1)
        >>> draws[weight].shape
        torch.Size([2, 1])
    """

    def __init__(
        self, fill: Callable[..., Tensor], parameters: Sequence[Tensor] = (), like: Sequence[Tensor] = ()
    ) -> None:
        self._fill = fill
        self.flats, beside = flat_zeros(like, parameters)
        self._beside = dict(zip(parameters, beside, strict=True))

    def __getitem__(self, parameter: Tensor) -> Tensor:
        return self._beside[parameter]

    def __contains__(self, parameter: Tensor) -> bool:
        return parameter in self._beside

    def are_beside(self, parameters: Sequence[Tensor], like: Sequence[Tensor]) -> bool:
        """Whether there are such numbers for these and no others, in this order."""
        return len(parameters) == len(self._beside) and all(
            p is q and (p.device, t.dtype, t.shape) == (found.device, found.dtype, found.shape)
            for p, t, (q, found) in zip(parameters, like, self._beside.items(), strict=True)
        )

    @torch.no_grad()
    def draw(self, seed: int, number: int) -> None:
        """Fills them with what follows from these two."""
        pieces = [piece for flat in self.flats for piece in _pieces(flat, PIECE)]
        inference = torch.is_inference_mode_enabled()

        def fill(k: int) -> None:
            generator = numbered_generator(seed, number, pieces[k].device, k)
            with torch.inference_mode(inference):  # each thread begins without
                for strip in _pieces(pieces[k], STRIP):
                    self._fill(strip, generator=generator)

        if len(pieces) > 1:
            with ThreadPoolExecutor(torch.get_num_threads()) as threads:
                list(threads.map(fill, range(len(pieces))))
        elif pieces:
            fill(0)


def _pieces(flat: Tensor, length: int) -> Sequence[Tensor]:
    return flat.split(length) if flat.device.type == "cpu" else [flat]
