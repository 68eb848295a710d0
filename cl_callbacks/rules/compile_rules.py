"""The callback that compiles the arithmetic of the rules."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cl_callbacks.compiled.fused import compiling
from cl_callbacks.compiled.kernels import SMALLEST
from cl_callbacks.tensors.finite import copy_finite_


def compiles(trainer: Trainer) -> bool:
    """Whether a Trainer has :class:`CompileRules` among its callbacks."""
    return any(isinstance(callback, CompileRules) for callback in trainer.callbacks)  # type: ignore[attr-defined]


class CompileRules(Callback):
    """Compiles the arithmetic of all rules of the Trainer with ``torch.compile``.

    All operations of the rules on the weights then take one pass over memory before each step and one after
    it, instead of one for each operation: snapshots, pulls, paths, the flow between beakers, the updates of
    MESU, BGD and Cascade. Results are equal up to rounding. It needs a C++ compiler on the machine (on a
    GPU, Triton) and takes a tenth of a second for each parameter of more than 16,384 weights, once for each
    machine and network; it pays off for networks of millions of weights. The network itself is not compiled.
    See docs/performance.md for measurements on a CPU; on a GPU it has not been run.

    Raises:
        MisconfigurationException: where ``torch.compile`` does not work, when training starts.

    Example:
        >>> from lightning import Trainer
        >>> from cl_callbacks import EWC
        >>> trainer = Trainer(
        ...     callbacks=[EWC(70.0), CompileRules()], logger=False, enable_checkpointing=False)
    """

    def __init__(self) -> None:  # so that configurations see that there are no arguments
        super().__init__()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compiles one small kernel, so that a missing compiler is reported before training."""
        kept, values = torch.zeros(2, SMALLEST, device=pl_module.device)
        try:
            with compiling():
                copy_finite_([kept], [values])
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise MisconfigurationException(
                f"CompileRules: torch.compile does not work here ({type(error).__name__}: {reason}). On a "
                f"CPU it needs a C++ compiler, such as g++, and on a GPU Triton: install it, or leave "
                f"CompileRules out; the rules do the same without."
            ) from error
