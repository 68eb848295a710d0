"""A callback that logs statistics over the synapses of all rules during training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer

from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import AT_LEAST_ONE, Bounds
from cl_callbacks.guards.once import first_time
from cl_callbacks.observation.histograms import log_histograms
from cl_callbacks.observation.pictures import log_figure
from cl_callbacks.observation.survey import ALL, RATIO, Statistics, Survey, read
from cl_callbacks.observation.survey_figures import FIGURES
from cl_callbacks.rules.synaptic_callback import SynapticCallback
from cl_callbacks.training import log_keys
from cl_callbacks.training.log import log, log_folder
from cl_callbacks.training.one_trainer import OfOneTrainer


class SynapseStatistics(OfOneTrainer):
    r"""Logs how plastic, how important and how far from their anchor the synapses of each rule are.

    It covers every rule of the Trainer and each of its measures (``plasticity``; ``importance`` and
    ``distance`` of rules with an anchor, once any importance is above 0; ``std``; ``level``;
    ``beaker_distance_1``, …): the mean over each layer and over all, quantiles over all, and the share of
    frozen synapses at the current learning rates. A layer is a module with parameters of its own. The keys:

    - ``cl_synapses/RULE/MEASURE/mean``, ``…/q05``, ``…/q25``, ``…/q50``, ``…/q75``, ``…/q95`` and
      ``cl_synapses/RULE/frozen_fraction/all``, over all synapses;
    - ``cl_synapses/RULE/MEASURE/LAYER`` and ``cl_synapses/RULE/frozen_fraction/LAYER``, where a layer that is
      itself called ``mean``, ``all`` or ``q05`` … is written with a dot behind it;
    - ``cl_synapses/RULE/pull_ratio/all`` and ``…/LAYER``, how strong the rule's pull is beside the task's
      gradient, as a ratio of norms, in the latest step that was measured: one that Lightning logs, or step 1,
      2, 4, 8, … of a task; ``update_ratio`` beside the update for a rule that changes that;
    - at the end of each task, histograms for W&B and TensorBoard: ``cl_synapses/RULE/MEASURE/histogram``; for
      importance, ``…/log10_histogram`` of the decimal logarithm where it is above 0;
    - at the end of training, figures of importance and plasticity by layer as of the end of the latest task:
      ``cl_synapses/RULE/importance_by_layer`` and ``…/plasticity_by_layer``.

    Plasticity is computed with the ``lr`` of the optimizer's parameter groups, which says little for an
    optimizer that scales its own steps, such as Adam: there real steps are larger and more synapses are
    frozen. Right after a task ``distance`` is 0 if a rule's anchor is at the latest weights; while all
    importance is 0, all plasticity is 1. Quantiles and histograms are taken over every n-th synapse, at most
    16,384 of a layer and of a network. All numbers of one step are read from the device at once. Training
    results are bit-identical with and without this callback, and it saves nothing in checkpoints. At the end
    of a task it runs after all rules have consolidated, whatever the order of callbacks.

    Args:
        every_n_steps: optimizer steps between measurements; ``None`` for the ends of tasks only.
        frozen_below: plasticity below which a synapse counts as frozen, above 0 and at most 1.
        by_layer: whether to log the layers too, and to draw the figures.
        histograms: whether to log histograms.

    Raises:
        ValueError: an invalid argument, at construction.

    Example:
        >>> from lightning import Trainer
        >>> from cl_callbacks import EWC
        >>> trainer = Trainer(
        ...     callbacks=[EWC(strength=70.0), SynapseStatistics(every_n_steps=100)],
        ...     logger=False, enable_checkpointing=False)
    """

    observes: ClassVar[bool] = True
    reads_task_data: ClassVar[bool] = False

    @checked(every_n_steps=AT_LEAST_ONE, frozen_below=Bounds(above=0, most=1))
    def __init__(
        self,
        every_n_steps: int | None = 500,
        *,
        frozen_below: float = 0.1,
        by_layer: bool = True,
        histograms: bool = True,
    ) -> None:
        super().__init__()
        self.every_n_steps, self.frozen_below = every_n_steps, frozen_below
        self.by_layer, self.histograms = by_layer, histograms
        self._latest: dict[str, Statistics] = {}
        self._of_task: dict[str, Statistics] = {}
        self._steps = 0

    @property
    def latest(self) -> dict[str, Statistics]:
        """The latest statistics: ``{rule: {measure: {layer or "all": {statistic: number}}}}``.

        Statistics are ``"mean"``, for plasticity ``"frozen_fraction"``, of ratios only ``"ratio"``, and
        ``"q05"`` … ``"q95"``, for layers at the ends of tasks only. Empty before the first measurement.
        """
        return self._latest

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Informs if the Trainer has no rule, and warns if two rules have the same name."""
        self._of_task = {}
        rules = _named_rules(trainer)
        if not rules:
            rank_zero_info(f"{type(self).__name__}: this Trainer has no rule, whose synapses it would show.")
        for key, rule in rules.items():
            if key != rule.name and first_time(self, key):
                rank_zero_warn(
                    f"{type(self).__name__}: two rules are called {rule.name!r}, and the second, a "
                    f"{type(rule).__name__}, is shown as {key!r}: give each a name of its own, with name=."
                )

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Stores the number of optimizer steps before the batch."""
        self._steps = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Measures and logs, if a measurement became due in this batch."""
        every = self.every_n_steps
        if every is not None and trainer.global_step // every > self._steps // every:
            self._look(trainer)

    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Measures and logs, with quantiles by layer and histograms."""
        self._of_task = self._look(trainer, thoroughly=True)

    def on_task_revised(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Measures and logs again, what rules have consolidated anew."""
        self.on_task_end(trainer, pl_module, task)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures and logs if no task has ended in this fit."""
        self._of_task = self._of_task or self._look(trainer, thoroughly=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the figures, when every task has ended."""
        if trainer.is_global_zero and log_folder(trainer) is not None:
            self._draw(trainer)

    def _look(self, trainer: Trainer, thoroughly: bool = False) -> dict[str, Statistics]:
        rates = _learning_rates(trainer.optimizers)
        with torch.no_grad():
            surveys = {
                key: Survey(rule, rates, self.frozen_below, by_layer=thoroughly and self.by_layer)
                for key, rule in _named_rules(trainer).items()
            }
        with_samples = thoroughly and self.histograms and bool(trainer.loggers)
        found, samples = read(surveys, with_samples)
        self._latest = {key: self._shown(measures) for key, measures in found.items()}
        if found:
            log(trainer, dict(_log_entries(self._latest)))
        log_histograms(trainer, dict(_histograms(samples)))
        return self._latest

    def _shown(self, found: Statistics) -> Statistics:
        if self.by_layer:
            return found
        return {measure: {ALL: layers[ALL]} for measure, layers in found.items()}

    def _draw(self, trainer: Trainer) -> None:
        for key, measures in self._of_task.items() if self.by_layer else ():
            for name, draw in FIGURES.items():
                try:
                    figure = draw(measures)
                except Exception as error:  # such as from a user's rule; it must not end the training
                    if first_time(self, f"{key}/{name}"):
                        rank_zero_warn(f"{type(self).__name__}, {key}: no figure: {error}")
                    continue
                if figure is not None:
                    log_figure(trainer, log_keys.synapses(key, name), figure)


def _named_rules(trainer: Trainer) -> dict[str, SynapticCallback]:
    """The rules by name; a name that is taken gets a number as suffix."""
    found: dict[str, SynapticCallback] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, SynapticCallback):
            key, number = callback.name, 2
            while key in found:
                key, number = f"{callback.name}-{number}", number + 1
            found[key] = callback
    return found


def _learning_rates(optimizers: Iterable[Optimizer]) -> dict[int, float]:
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return {id(p): float(group.get("lr", 1.0)) for group in groups for p in group["params"]}


def _histograms(samples: dict[str, dict[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    for key, arrays in samples.items():
        for measure, array in arrays.items():
            if measure == "importance":  # spans orders of magnitude
                yield log_keys.synapses(key, measure, "log10_histogram"), np.log10(array[array > 0])
            else:
                yield log_keys.synapses(key, measure, "histogram"), array


def _log_entries(found: dict[str, Statistics]) -> Iterator[tuple[str, float]]:
    for key, measures in found.items():
        for measure, layers in measures.items():
            for layer, values in layers.items():
                for statistic, value in values.items():
                    if statistic == "frozen_fraction":
                        yield log_keys.synapses(key, "frozen_fraction", layer), value
                    elif statistic == RATIO:
                        yield log_keys.synapses(key, measure, layer), value
                    elif layer == ALL:
                        yield log_keys.synapses(key, measure, statistic), value
                    elif statistic == "mean":
                        yield log_keys.synapses(key, measure, layer), value
