"""Training steps at sampled weights, with the means in place for all other code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from cl_callbacks.guards.waiting_signals import Section
from cl_callbacks.synapses.weight_noise import WeightNoise
from cl_callbacks.training.process_sums import mean_of_processes_
from cl_callbacks.training.quiet import unlogged, unremembered
from cl_callbacks.training.shadow_method import ShadowMethod


class NoisyTraining:
    """Runs a module's ``training_step`` and ``backward`` at sampled weights.

    The weights are samples from the beginning of ``training_step`` to the end of ``backward``. What is saved
    holds the means even then: ``state_dict`` of the module, or of a part of it, returns copies of them in the
    place of samples, so that a checkpoint may be written in any hook and in the handler of a signal. The
    weights are the means at all other times: in validation, when a task ends, after an exception, and for
    every hook except the two between forward and backward (``on_before_zero_grad`` and
    ``on_before_backward``).
    Under manual optimization they are samples throughout ``training_step``, except that weights which an
    optimizer has just stepped are the means until they are next used.

    Args:
        draws: number of samples of the weights for each micro-batch. The extra passes run ``training_step``
            again without logging, changes of buffers (such as BatchNorm's statistics) or metrics, or hooks;
            the gradient is the mean over the passes.

    Raises:
        MisconfigurationException: several ``draws`` under manual optimization.
    """

    def __init__(self, trainer: Trainer, pl_module: LightningModule, noise: WeightNoise, draws: int) -> None:
        if draws > 1 and not pl_module.automatic_optimization:
            raise MisconfigurationException(
                f"draws={draws} repeats the passes of a step, which under manual optimization are the "
                f"module's own: set draws=1, or use automatic optimization."
            )
        self.trainer, self.pl_module, self.noise, self.draws = trainer, pl_module, noise, draws
        self._arguments: tuple[Any, ...] = ()
        self._again = False
        noise.restart()
        self._reduce_before, noise.reduce = noise.reduce, self._reduce
        shadows: dict[str, Callable[..., Any]] = {
            "training_step": self._noisy_step,
            "backward": self._noisy_backward,
        }
        self._shadows = [ShadowMethod(pl_module, name, call) for name, call in shadows.items()]
        for shadow in self._shadows:
            shadow.attach()
        modules = pl_module.modules()
        self._hooks: list[Any] = [m.register_state_dict_post_hook(_means_in_place(noise)) for m in modules]
        if not pl_module.automatic_optimization:
            self._hooks += [m.register_forward_pre_hook(self._about_to_use) for m in pl_module.modules()]

    def detach(self) -> None:
        """Restores the means, and the module's own methods."""
        for shadow in self._shadows:
            shadow.detach()
        for hook in self._hooks:
            hook.remove()
        self.noise.reduce = self._reduce_before
        self.noise.end()

    def _about_to_use(self, module: torch.nn.Module, inputs: Any) -> None:
        self.noise.resume()

    def _noisy_step(self, training_step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._again:
            return training_step(*args, **kwargs)
        self._arguments = args
        output = None
        try:
            self.noise.begin(anew=self.draws > 1)
            output = training_step(*args, **kwargs)
        finally:
            if output is None or not self.pl_module.automatic_optimization:  # no backward will come
                self.noise.end()
        return output

    def _noisy_backward(self, backward: Callable[..., None], loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if not self.pl_module.automatic_optimization:
            return backward(loss, *args, **kwargs)
        try:
            backward(loss / self.draws if self.draws > 1 else loss, *args, **kwargs)
            for _ in range(self.draws - 1):
                self.noise.redraw()
                # Buffers are restored only after backward, which may use them.
                with Section(), unlogged(self.pl_module), unremembered(self.pl_module):
                    repeated = self._repeat()
                    if repeated is not None:
                        backward(repeated / self.draws, *args, **kwargs)
        finally:
            self._arguments = ()
            self.noise.end()

    def _repeat(self) -> Tensor | None:
        """Runs another pass over the current micro-batch, and returns its scaled loss."""
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

    def _reduce(self, gathered: Tensor) -> None:
        mean_of_processes_(self.trainer, gathered)
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None:  # `get_scale` would wait for the device
            gathered.div_(scaler.scale(gathered.new_ones(())))


def _means_in_place(noise: WeightNoise) -> Callable[..., None]:
    """A hook of ``state_dict`` that puts the means in the place of samples.

    A function, which copies of a module share: of their own weights there are no means, and they stay.
    """

    def put(module: torch.nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        for name, parameter in module._parameters.items():
            mean = None if parameter is None else noise.mean_of(parameter)
            if mean is not None and prefix + name in state:
                state[prefix + name] = mean

    return put
