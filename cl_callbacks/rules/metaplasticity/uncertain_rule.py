"""The base class of rules with a Gaussian distribution for each weight."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import Unpack

from cl_callbacks.gradients.model_outputs import as_pair
from cl_callbacks.gradients.modes import evaluation_mode
from cl_callbacks.guards.arguments import checked, fitted
from cl_callbacks.guards.bounds import AT_LEAST_ONE, NON_NEGATIVE, POSITIVE, Bounds
from cl_callbacks.guards.sound_state import COUNT, OF_SQUARES
from cl_callbacks.guards.waiting_signals import signals_wait
from cl_callbacks.rules.compatibility import refuse_own_fetching, warn_of_half_precision
from cl_callbacks.rules.compile_rules import compiles
from cl_callbacks.rules.rule_options import RuleOptions
from cl_callbacks.rules.synaptic_callback import SynapticCallback
from cl_callbacks.synapses.fan_in import weight_scale
from cl_callbacks.synapses.state import Fill, parameters_by_name
from cl_callbacks.synapses.step import Need, Step
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.synapses.weight_noise import WeightNoise
from cl_callbacks.tensors.finite import copy_each_
from cl_callbacks.training.model_outputs import OutputsOfBatch
from cl_callbacks.training.noisy_training import NoisyTraining
from cl_callbacks.training.process_sums import sum_of_processes
from cl_callbacks.training.quiet import quiet
from cl_callbacks.training.sample_count import SampleCount, agreed_samples


class UncertainRule(OutputsOfBatch, SynapticCallback):
    r"""Base of the rules that keep a mean and a standard deviation for each weight.

    The weights of the model are the means. During the forward and backward of a training step they are
    sampled from their distributions; the rule then replaces the optimizer's update by its own, computed from
    the gradient of the loss summed over the observations of the step. Gradient clipping and the learning
    rate have no influence on it; the optimizer still trains parameters that are not selected.

    Widths of layers differ, and with them the standard deviation that their weights bear. Where no absolute
    one is given, it is in units of :math:`1/\sqrt n`, with :math:`n` the number of inputs of each unit of
    the layer: see ``synapses/fan_in.py``.

    Args:
        initial_std: :math:`\sigma` at the start, above 0, of all weights alike; by default it is relative.
        relative_std: :math:`c`, above 0: without an absolute one the standard deviation of each weight is
            :math:`c/\sqrt n`; default: that of ``relative_defaults``.
        lr_scale: factor on the gradient's term of :math:`\Delta\mu`, above 0; default: 1, which is Bayes'
            rule, with an absolute ``initial_std``, and that of ``relative_defaults`` without.
        std_lr_scale: factor on the gradient's term of :math:`\Delta\sigma`, above 0: how much observations
            make a synapse certain; default: likewise.
        draws: number of samples of the weights per step, each of which costs a forward and a backward.
        antithetic: let every second draw mirror the one before it, also from step to step; this removes
            the mean gradient, most of the noise, from :math:`\mathbb E[g\epsilon]`.
        trust_region: largest change of :math:`\mu` and of :math:`\sigma` in one step, in units of
            :math:`\sigma`, above 0 and below 1; ``None`` for no limit, which diverges early in training
            where :math:`\sigma` is large.
        reduction: of the loss over a batch, ``"mean"`` or ``"sum"``.
        seed: of the samples.
        options: of every rule: see :class:`~cl_callbacks.SynapticCallback`. The
            optimizer trains excluded parameters.

    Raises:
        ValueError: an argument that cannot work, at construction.
    """

    relative_defaults: ClassVar[tuple[float, float, float]] = (0.5, 8.0, 80.0)
    """Default ``relative_std``, ``lr_scale`` and ``std_lr_scale`` without an absolute width, found on
    sequences of MNIST and of scikit-learn's digits."""
    needs: frozenset[Need] = frozenset({"before", "pulled", "noise_gradients"})
    state_bounds: Mapping[str, Bounds] = {
        **SynapticCallback.state_bounds,
        "synapses/std": OF_SQUARES,
        "draws": COUNT,
    }
    owns_update: ClassVar[bool] = True
    local: ClassVar[bool] = True

    @checked(
        initial_std=POSITIVE,
        relative_std=POSITIVE,
        lr_scale=POSITIVE,
        std_lr_scale=POSITIVE,
        draws=AT_LEAST_ONE,
        trust_region=Bounds(above=0, below=1),
        seed=NON_NEGATIVE,
    )
    def __init__(
        self,
        *,
        initial_std: float | None = None,
        relative_std: float | None = None,
        lr_scale: float | None = None,
        std_lr_scale: float | None = None,
        draws: int = 1,
        antithetic: bool = True,
        trust_region: float | None = 0.2,
        reduction: Literal["mean", "sum"] = "mean",
        seed: int = 0,
        **options: Unpack[RuleOptions],
    ) -> None:
        self.relative_std = relative_std
        if initial_std is None:
            self.dial = "relative_std"
        usual_std, *usual = self.relative_defaults
        self._relative_std = usual_std if relative_std is None else relative_std
        std: Fill = partial(weight_scale, factor=self._relative_std)
        if initial_std is not None:
            std, usual = initial_std, [1.0, 1.0]
        self.lr_scale, self.std_lr_scale = lr_scale, std_lr_scale
        given = {"lr_scale": lr_scale, "std_lr_scale": std_lr_scale}
        self._lr_scales = {
            name: default if value is None else value
            for (name, value), default in zip(given.items(), usual, strict=True)
        }
        self.fields: Mapping[str, Fill] = {"std": std, **self.fields}
        self.running = tuple(self.fields)
        super().__init__(**options)
        self.initial_std, self.trust_region = initial_std, trust_region
        self.draws, self.reduction = draws, reduction
        self.seed, self.antithetic = seed, antithetic
        self.weight_noise: WeightNoise = WeightNoise(seed, antithetic)
        self._training: NoisyTraining | None = None
        self._scales: dict[str, float] = {}
        self._samples = SampleCount(agreed_samples)
        self._counts: list[int] = []  # of observations in each micro-batch of the step, in this process
        self._scale: float | Tensor | None = None  # of the step: see `_summed_over_mean`
        self._micro_batches: int | None = None
        self._window_ended = False

    @property
    def strength_now(self) -> float | None:
        """The standard deviation that sets how far the rule lets weights move."""
        return self._relative_std if self.dial == "relative_std" else super().strength_now

    def replace_update(self, step: Step, scale: float | Tensor) -> None:
        """Applies the rule's equation, in place, to the state and to the weights, which are the means before.

        ``scale`` is the factor from the step's gradients, mean over the draws, to those of the summed loss.
        """
        raise NotImplementedError

    def std_of(self, synapses: SynapseView, absolute: float | None) -> float | list[float]:
        r"""An absolute standard deviation, or where there is none :math:`c/\sqrt n` of each tensor."""
        return [self._scales[name] for name in synapses.names] if absolute is None else absolute

    def measures(self, synapses: SynapseView, rates: list[float]) -> dict[str, list[Tensor]]:
        """Plasticity, and the standard deviation of each weight."""
        return super().measures(synapses, rates) | {"std": synapses["std"]}

    def observations(self, batch: Any) -> int:
        """Number of observations over which the loss of a batch is averaged: by default its samples.

        These are the rows of ``outputs``, for which the network is run now and then: see
        ``training/sample_count.py``. Override it for other units, such as the
        tokens of a language model, or for manual accumulation, to return the number in all batches of the
        step.
        """
        return self._samples(batch)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wraps the module so that training steps run at sampled weights."""
        refuse_own_fetching(self, pl_module)
        super().on_train_start(trainer, pl_module)
        warn_of_half_precision(self)
        self._counts, self._window_ended = [], False
        self._samples = SampleCount(lambda batch: self._rows(trainer, pl_module, batch))
        self.weight_noise.compiled, self.weight_noise.together = compiles(trainer), trainer.world_size > 1
        self._training = NoisyTraining(trainer, pl_module, self.weight_noise, self.draws)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Counts the observations of the next step, over micro-batches."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._window_ended:
            self._counts, self._window_ended = [], False
        self._counts.append(self._count(batch))
        self._micro_batches = trainer.accumulate_grad_batches if pl_module.automatic_optimization else None

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Ends the window of micro-batches, whether its step is then taken or skipped on an overflow."""
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        self._window_ended = True

    def begin_step(self) -> None:
        """Sums the observations of the step, over processes too, and ends the window of micro-batches.

        Also where Lightning does not know of the step.
        """
        self._window_ended = True
        self._scale = self._summed_over_mean() if self._counts else None

    def _count(self, batch: Any) -> int:
        """Number of observations of a micro-batch over which its loss is averaged."""
        if self.reduction == "sum":
            return 1
        found = self.observations(batch)
        if found < 1:
            raise ValueError(
                f"{type(self).__name__}: `observations` returned {found} for a {type(batch).__name__}, and a "
                f"batch has at least one: override `observations(batch)` of the rule to return their number."
            )
        return found

    def _summed_over_mean(self) -> float | Tensor:
        """Factor from the gradient that Lightning averages to that of the loss summed over observations."""
        if self._micro_batches is None:  # manual optimization: `observations` counts the whole step
            count = float(self._counts[-1])
        else:
            # Lightning divides by this number of micro-batches, also in a last window with fewer.
            count = sum(self._counts) * (self._micro_batches / len(self._counts))
        assert self._training is not None
        trainer = self._training.trainer
        if self.reduction == "sum":
            return trainer.world_size * count
        return sum_of_processes(trainer, count)  # they may have different numbers

    def _rows(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> int:
        """Number of rows of the outputs; where these cannot be read, that of entries of all tensors."""
        try:
            with quiet(trainer, pl_module), torch.no_grad():
                return len(self.read_batch(pl_module, batch)[0])
        except Exception as error:
            agreed = 0 if self.own_outputs else agreed_samples(batch)
            if agreed:  # the module's training_step reads its batches in a way of its own
                return agreed
            raise ValueError(
                f"{type(self).__name__} could not find the number of samples in a {type(batch).__name__}, a "
                f"training batch of {type(pl_module).__name__}: neither are there outputs of it ({error}), "
                f"nor do all of its tensors have one number of entries. Override `outputs(pl_module, batch)` "
                f"of the rule to return one row per sample, or `observations(batch)` to return their number."
            ) from error

    def rewrite(self, step: Step) -> None:
        """Replaces the optimizer's update by the rule's."""
        if self._scale is None:
            raise MisconfigurationException(
                f"{type(self).__name__} counts the observations of each training batch, and an optimizer has "
                f"stepped before the first one: let it step in `training_step` only."
            )
        copy_each_(step.synapses.parameters, step.before)
        self.replace_update(step, self._scale)

    def _place(self, pl_module: LightningModule, growing: bool = False) -> None:
        super()._place(pl_module, growing)
        view = self.synapses.view
        model = parameters_by_name(pl_module, view)
        self._scales = {name: weight_scale(name, model, self._relative_std) for name in view.names}
        self.weight_noise.place(view.parameters, view.fields["std"], view.load)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restores the means, and the module's own methods."""
        if self._training is not None:
            self._training.detach()
            self._training, self._samples = None, SampleCount(agreed_samples)
        super().teardown(trainer, pl_module, stage)

    @torch.no_grad()
    def predict_samples(self, pl_module: LightningModule, batch: Any, draws: int = 10) -> Tensor:
        """Outputs of the network at several samples of the weights, in evaluation mode.

        The mean of their softmax is the predictive distribution; their disagreement is the uncertainty of
        the network. The weights are the means again afterwards. The outputs of a batch are those of
        ``outputs``.

        Args:
            pl_module: the module that the rule has trained.
            batch: of inputs, with or without labels, on the module's device.
            draws: number of samples of the weights.

        Returns:
            Tensor of shape ``(draws, *outputs.shape)``; the same for the same seed.

        Raises:
            ValueError: the rule has not been trained, nor restored from a checkpoint.
        """
        draws = fitted("draws", draws, int, AT_LEAST_ONE)
        stds = self.synapses.state_dict()["std"]
        parameters = parameters_by_name(pl_module, self.synapses.view)
        known = [(p, stds[name]) for name, p in parameters.items() if name in stds]
        if not known:
            raise ValueError(
                f"{type(self).__name__} knows no standard deviation of a parameter of "
                f"{type(pl_module).__name__}: train with it first, or restore it from a checkpoint."
            )
        noise = WeightNoise(self.weight_noise.seed, self.weight_noise.antithetic)
        noise.place([p for p, _ in known], [std.to(p.device) for p, std in known])
        with signals_wait(), ExitStack() as stack:
            stack.enter_context(evaluation_mode(pl_module))
            self.weight_noise.pause()  # in case this is called from within a training step
            stack.callback(self.weight_noise.resume)
            stack.callback(noise.end)
            found = []
            for draw in range(draws):
                noise.end()
                noise.draws = draw
                noise.begin()
                found.append(as_pair(self.outputs(pl_module, batch))[0])
        return torch.stack(found)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Copies the means, since a thread may write the checkpoint when weights are drawn again."""
        drawn, saved = set(self.weight_noise.parameters), checkpoint["state_dict"]
        for name, parameter in pl_module.named_parameters():
            if parameter in drawn and name in saved:
                saved[name] = saved[name].detach().clone()

    def state_dict(self) -> dict[str, Any]:
        """Adds the number of draws, from which the noise continues."""
        return super().state_dict() | {"draws": self.weight_noise.next_draw}

    def restore(self, state_dict: dict[str, Any]) -> None:
        """Sets the state from a saved one."""
        super().restore(state_dict)
        self.weight_noise.go_on(state_dict["draws"])
