"""Training steps at drawn weights that nobody else gets to see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from cl_callbacks.extra_pass import unremembered
from cl_callbacks.weight_noise import WeightNoise


class NoisyTraining:
    """Wraps a module's ``training_step`` and ``backward`` so that both meet drawn weights.

    From the beginning of ``training_step`` to the end of ``backward`` drawn weights are in place, and the
    means at all other times: for every other hook, in validation, in checkpoints, when a task ends and
    after an exception. Under manual optimization drawn weights are in place throughout ``training_step``,
    except while an optimizer steps.

    Args:
        trainer: that is about to train.
        pl_module: its module.
        noise: to be put in place.
        samples: how many draws each micro-batch is seen with. The extra passes run ``training_step`` again
            with nothing logged and no buffer (such as BatchNorm's statistics) changed, and no hook is
            called; the gradient is the mean over the passes.

    Raises:
        MisconfigurationException: ``samples`` under manual optimization.
    """

    def __init__(
        self, trainer: Trainer, pl_module: LightningModule, noise: WeightNoise, samples: int
    ) -> None:
        if samples > 1 and not pl_module.automatic_optimization:
            raise MisconfigurationException(
                f"samples={samples} repeats the passes of a step, which under manual optimization are the "
                f"module's own: set samples=1, or use automatic optimization."
            )
        self.trainer, self.pl_module, self.noise, self.samples = trainer, pl_module, noise, samples
        self._arguments: tuple[Any, ...] = ()
        self._again = False
        self._settled, noise.settle = noise.settle, self._settle
        self._originals = {name: getattr(pl_module, name) for name in ("training_step", "backward")}
        self._own = {name: vars(pl_module)[name] for name in self._originals if name in vars(pl_module)}
        vars(pl_module).update(
            training_step=self._noisy_step(self._originals["training_step"]),
            backward=self._noisy_backward(self._originals["backward"]),
        )

    def detach(self) -> None:
        """Puts the means in place and leaves the module as it was."""
        self.noise.end()
        self.noise.settle = self._settled
        for name in self._originals:
            vars(self.pl_module).pop(name, None)
        vars(self.pl_module).update(self._own)

    def _noisy_step(self, training_step: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(training_step)
        def step(*args: Any, **kwargs: Any) -> Any:
            if self._again:
                return training_step(*args, **kwargs)
            self._arguments = args
            output = None
            try:
                self.noise.begin(anew=self.samples > 1)
                output = training_step(*args, **kwargs)
            finally:
                if output is None or not self.pl_module.automatic_optimization:  # no backward will come
                    self.noise.end()
            return output

        return step

    def _noisy_backward(self, backward: Callable[..., None]) -> Callable[..., None]:
        @wraps(backward)
        def noisy(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            if not self.pl_module.automatic_optimization:
                return backward(loss, *args, **kwargs)
            try:
                backward(loss / self.samples if self.samples > 1 else loss, *args, **kwargs)
                for _ in range(self.samples - 1):
                    self.noise.redraw()
                    with unremembered(self.pl_module):  # buffers come back when backward is done with them
                        repeated = self._repeat()
                        if repeated is not None:
                            backward(repeated / self.samples, *args, **kwargs)
            finally:
                self.noise.end()

        return noisy

    def _repeat(self) -> Tensor | None:
        """The scaled loss of another pass over the present micro-batch."""
        self._again = True
        try:
            with torch.enable_grad():
                output = self.trainer.strategy.training_step(*self._arguments)
        finally:
            self._again = False
        loss = output["loss"] if isinstance(output, Mapping) else output
        if loss is None:
            return None
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        loss = loss / self.trainer.accumulate_grad_batches
        return loss if scaler is None else scaler.scale(loss)

    def _settle(self, gathered: Tensor) -> None:
        if self.trainer.world_size > 1:
            self.trainer.strategy.reduce(gathered, reduce_op="mean")
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            gathered.div_(scaler.get_scale())
