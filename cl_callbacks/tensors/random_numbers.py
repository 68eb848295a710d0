"""Random numbers that depend only on a seed and a counter, not on the global generators."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cl_callbacks.tensors.flat import flat_zeros
from cl_callbacks.tensors.shards import distribute_like, held, is_sharded

PIECE = 2**20
"""Elements drawn with one generator, on a CPU."""

STRIP = 2**15
"""Elements drawn in one call, which goes over them twice, so few enough for the cache."""

COMPARED = 2**12
"""Elements of each tensor by which processes find out whether they draw the same numbers."""


def numbered_generator(seed: int, number: int, device: torch.device, piece: int = 0) -> torch.Generator:
    """Returns a new generator for a seed, a number and a piece, independent of ``torch.manual_seed``."""
    return torch.Generator(device).manual_seed(mixed_seed(seed, number, piece))


def mixed_seed(seed: int, number: int, piece: int = 0) -> int:
    """Mixes three numbers into a seed of 32 bits, since generators on the CPU use no more.

    Example:
        >>> mixed_seed(0, 0), mixed_seed(1, 0), mixed_seed(0, 1)
        (3266489917, 1625958382, 1218345140)
    """
    return (seed * 2654435761 + number * 2246822519 + piece * 668265263 + 3266489917) % 2**32


def uniform_numbers(seed: int, numbers: Sequence[int] | np.ndarray, stream: int = 0) -> np.ndarray:
    """Independent uniform random numbers from 0 to 1, each of which depends on its own number alone.

    So they are the same whichever process draws them, with which others, and in which order. They are the
    output function of the generator SplitMix64 (Steele, Lea & Flood 2014).

    Args:
        seed: the same for all numbers.
        numbers: ``(N,)``, from 0.
        stream: another one gives other random numbers for the same seed.

    Returns:
        Array of double precision, ``(N,)``.

    Example:
        >>> both = uniform_numbers(0, [7, 8])
        >>> bool(uniform_numbers(0, [8])[0] == both[1]), bool(uniform_numbers(0, [8], stream=1)[0] == both[1])
        (True, False)
    """
    start = _mixed(_mixed(np.array([seed % 2**64], dtype=np.uint64)) + np.uint64(stream % 2**64))
    counted = np.asarray(numbers, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (_mixed(start + counted) >> np.uint64(11)) * 2.0**-53


def _mixed(x: np.ndarray) -> np.ndarray:
    """A permutation of the numbers of 64 bits, in which every bit depends on every other."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Draws:
    """Tensors of random numbers, one for each parameter.

    On a CPU a single generator is sequential and would take longer than the rest of a step: there each piece
    of the numbers has its own generator, and torch's threads share the pieces.

    The numbers of one seed are not the same everywhere. On a GPU those of a large tensor depend on its number
    of multiprocessors, on a CPU the last bits depend on its vector instructions. Processes that draw together
    compare their first numbers, once; if these differ, the first process draws for all.

    Those of a sharded parameter are the process's part of the numbers of the whole one, the same as without
    sharding: each process draws all of them, in memory that is freed again, and keeps its own.

    Args:
        fill: ``torch.Tensor.normal_`` or ``torch.Tensor.uniform_``.
        parameters: to which they belong, and which give the devices.
        like: tensors that give the shapes and dtypes, aligned with the parameters; of a sharded one, of this
            process's shard.

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
        self._alike: bool | None = None  # unknown before the processes have drawn together

    def __getitem__(self, parameter: Tensor) -> Tensor:
        return self._beside[parameter]

    def __contains__(self, parameter: Tensor) -> bool:
        return parameter in self._beside

    def are_beside(self, parameters: Sequence[Tensor], like: Sequence[Tensor]) -> bool:
        """Whether the tensors are those of these parameters, in this order, with these shapes and dtypes."""
        return len(parameters) == len(self._beside) and all(
            p is q and (p.device, t.dtype, t.shape) == (found.device, found.dtype, found.shape)
            for p, t, (q, found) in zip(parameters, like, self._beside.items(), strict=True)
        )

    @torch.no_grad()
    def draw(self, seed: int, number: int, together: bool = False) -> None:
        """Fills all tensors with the random numbers of this seed and number.

        Args:
            seed: of all numbers.
            number: of the draw.
            together: whether all processes of the default group call this, and need the same numbers.
        """
        flats, shards = self._whole()
        self._draw_here(flats, seed, number)
        if together:
            self._agree(flats)
        for parameter, whole in shards.items():
            self._beside[parameter].copy_(held(distribute_like(whole, parameter)))

    def _whole(self) -> tuple[list[Tensor], dict[Tensor, Tensor]]:
        """The tensors to fill, and the part of them that belongs to each whole parameter, if sharded."""
        if not any(map(is_sharded, self._beside)):
            return self.flats, {}
        shapes = [t.new_empty(p.shape, device="meta") for p, t in self._beside.items()]
        flats, whole = flat_zeros(shapes, list(self._beside))
        return flats, dict(zip(self._beside, whole, strict=True))

    def _agree(self, flats: Sequence[Tensor]) -> None:
        """Has all processes use the numbers of the first one, if they have drawn others."""
        if self._alike is None:
            self._alike = alike_in_all_processes(flats)
            if not self._alike and dist.get_rank() == 0:
                size = sum(flat.nbytes for flat in flats) / 2**20
                warnings.warn(
                    f"The processes draw different random numbers from one seed, as devices of different "
                    f"models and different versions of torch do. The first process now draws for all of "
                    f"them and sends {size:.3g} MiB with each draw, so that their weights stay the same.",
                    stacklevel=2,
                )
        if not self._alike:
            for flat in flats:
                dist.broadcast(flat, src=0)

    def _draw_here(self, flats: Sequence[Tensor], seed: int, number: int) -> None:
        pieces = [piece for flat in flats for piece in _pieces(flat, PIECE)]
        inference = torch.is_inference_mode_enabled()

        def fill(k: int) -> None:
            generator = numbered_generator(seed, number, pieces[k].device, k)
            with torch.inference_mode(inference):  # the mode is per thread
                for strip in _pieces(pieces[k], STRIP):
                    self._fill(strip, generator=generator)

        for k, piece in enumerate(pieces):
            if piece.device.type != "cpu":  # in this thread, since others have other streams
                fill(k)
        on_cpu = [k for k, piece in enumerate(pieces) if piece.device.type == "cpu"]
        if len(on_cpu) == 1:
            fill(on_cpu[0])
        elif on_cpu:
            with ThreadPoolExecutor(torch.get_num_threads()) as threads:
                list(threads.map(fill, on_cpu))


def alike_in_all_processes(tensors: Iterable[Tensor]) -> bool:
    """Whether tensors of one dimension have the same bits in all processes, which all have to call this.

    Some of the elements are compared, from all over each tensor, and those at its end.
    """
    bits = hashlib.sha256()
    for tensor in tensors:
        some = torch.cat([tensor[:: 1 + len(tensor) // COMPARED], tensor[-COMPARED:]])
        bits.update(some.cpu().view(torch.uint8).numpy().tobytes())
    found = [""] * dist.get_world_size()
    dist.all_gather_object(found, bits.hexdigest())
    return len(set(found)) == 1


def _pieces(flat: Tensor, length: int) -> Sequence[Tensor]:
    return flat.split(length) if flat.device.type == "cpu" else [flat]
