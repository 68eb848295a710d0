"""Settings of the whole process under which ``vmap`` can run a network."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel

from cl_callbacks.guards.process_wide import ProcessWide


@contextmanager
def _no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        yield


WITHOUT_WARNING = ProcessWide(_no_warning)
"""Keeps ``vmap`` from warning that an operation has no batched form and runs once for each sample."""

PLAIN_ATTENTION = ProcessWide(lambda: sdpa_kernel(SDPBackend.MATH))
"""Computes attention by matrix products: its fused kernels have no batched form."""
