"""Makes the pretend device known to torch and to Lightning, as ``torch.device("pretend")``: there are two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor

from tests.pretend_device import autocast, fused_cells
from tests.pretend_device.build import library
from tests.small import make_trainer

DEVICE = "pretend"
DEVICES = 2


def _index(device: Any = None) -> int:
    if isinstance(device, int):
        return device
    index = None if device is None else torch.device(device).index
    return int(torch.ops.pretend.device()) if index is None else index


@contextmanager
def _on(device: Any) -> Iterator[None]:
    before = torch.ops.pretend.device()
    torch.ops.pretend.set_device(_index(device))
    try:
        yield
    finally:
        torch.ops.pretend.set_device(before)


def _module() -> ModuleType:
    """What ``torch.pretend`` is: the functions that torch expects of the module of a device."""
    ops = torch.ops.pretend
    module = ModuleType("torch.pretend")
    functions: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: DEVICES,
        "current_device": lambda: ops.device(),
        "device": _on,
        "set_device": lambda device: ops.set_device(_index(device)),
        "manual_seed": lambda seed: ops.seed(seed, _index()),
        "manual_seed_all": lambda seed: [ops.seed(seed, i) for i in range(DEVICES)],
        "get_rng_state": lambda device=None: ops.rng_state(_index(device)).clone(),
        "set_rng_state": lambda state, device=None: ops.set_rng_state(state, _index(device)),
        "get_amp_supported_dtype": lambda: [torch.float16, torch.bfloat16],
        "synchronize": lambda device=None: torch.accelerator.synchronize(_index(device)),
        "memory_allocated": lambda device=None: ops.bytes_allocated(_index(device)),
        "empty_cache": lambda: None,
    }
    vars(module).update(functions)
    return module


def load() -> None:
    """Builds and loads the device; safe to repeat."""
    if hasattr(torch, DEVICE):
        return
    torch.ops.load_library(str(library()))
    torch.utils.rename_privateuse1_backend(DEVICE)
    torch._register_device_module(DEVICE, _module())
    torch.utils.generate_methods_for_privateuse1_backend(for_tensor=True, for_module=True, for_storage=True)
    autocast.register()
    fused_cells.register()


def waits() -> int:
    """How often the host has waited for a device, in this process."""
    return int(torch.ops.pretend.waits())


def races() -> list[str]:
    """What streams or the host did with memory that another still used, since the last call."""
    return list(torch.ops.pretend.races())


def on_host(tensor: Tensor) -> Tensor:
    """The same memory as a tensor of the CPU, without a wait."""
    return torch.ops.pretend.on_host(tensor)


class PretendAccelerator(Accelerator):
    """What Lightning asks of an accelerator."""

    def setup_device(self, device: torch.device) -> None:
        torch.ops.pretend.set_device(_index(device))

    def teardown(self) -> None:
        """There is nothing to free."""

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}

    @staticmethod
    def parse_devices(devices: Any) -> list[int]:
        return [0]

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [torch.device(DEVICE, i) for i in devices]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return DEVICE


def trainer_on(*callbacks: Callback, index: int = 0, precision: str | None = None, **options: Any) -> Trainer:
    """A Trainer of :func:`tests.small.make_trainer` that trains on a pretend device."""
    strategy = SingleDeviceStrategy(torch.device(DEVICE, index), accelerator=PretendAccelerator())
    if precision in ("16-mixed", "bf16-mixed"):  # the Trainer itself would take it for one on CUDA
        scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**12) if precision == "16-mixed" else None
        options["plugins"] = [MixedPrecision(precision, DEVICE, scaler=scaler)]
    elif precision is not None:
        options["precision"] = precision
    return make_trainer(*callbacks, accelerator="auto", devices="auto", strategy=strategy, **options)
