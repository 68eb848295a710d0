"""Random numbers that follow from a seed and a number, whatever else draws any."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

PIECE = 2**20
"""Elements that are drawn one after the other on a CPU."""


def numbered_generator(seed: int, number: int, device: torch.device, piece: int = 0) -> torch.Generator:
    """A generator for each seed and numbers, apart from those of ``torch.manual_seed``.

    Generators on the CPU use 32 bits of a seed.
    """
    mixed = (seed * 2654435761 + number * 2246822519 + piece * 668265263 + 3266489917) % 2**32
    return torch.Generator(device).manual_seed(mixed)


def draw_normal_(flats: Sequence[Tensor], seed: int, number: int) -> None:
    """Fills tensors of one dimension with standard normal numbers.

    On a CPU a generator gives them one after the other, which would take longer than all else that is done
    with them: there each piece has a generator of its own, and each of torch's threads some pieces.

    Example:
        >>> flat = torch.zeros(2)
        >>> draw_normal_([flat], seed=0, number=1)
        >>> flat
        tensor([...])
    """
    pieces = [p for flat in flats for p in (flat.split(PIECE) if flat.device.type == "cpu" else [flat])]

    def draw(k: int) -> None:
        pieces[k].normal_(generator=numbered_generator(seed, number, pieces[k].device, k))

    if len(pieces) > 1:
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            list(threads.map(draw, range(len(pieces))))
    elif pieces:
        draw(0)
