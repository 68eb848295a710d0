"""The base class of rules that replace units of a network by new ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from typing_extensions import Unpack

from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import NON_NEGATIVE, Bounds
from cl_callbacks.guards.few import few, some
from cl_callbacks.guards.once import first_time
from cl_callbacks.guards.sound_state import COUNT, OF_SQUARES
from cl_callbacks.rules.renewal.activity import Activity, Heard, Measure
from cl_callbacks.rules.renewal.recycling import Recycling
from cl_callbacks.rules.renewal.unit_search import UnitSearch
from cl_callbacks.rules.renewal.unit_weights import UnitWeights
from cl_callbacks.rules.renewal.units import Units
from cl_callbacks.rules.rule_options import RuleOptions
from cl_callbacks.rules.synaptic_callback import SynapticCallback
from cl_callbacks.synapses.optimizers import with_inner
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.training import log_keys
from cl_callbacks.training.lightning_private import is_stepping_batch
from cl_callbacks.training.log import is_due, log
from cl_callbacks.training.process_sums import average_over_processes_, sum_of_processes
from cl_callbacks.training.progress import say


class UnitRule(SynapticCallback):
    r"""Base of the rules that override :meth:`choose`: after a step, some units are replaced by new ones.

    Units are the outputs of linear layers, the channels of convolutions and the heads of attention that
    only other such layers read. Layers whose outputs are added up or multiplied one by one, as in a residual
    stream or a gated layer, have theirs in common. They are found on the first batch of each task by running
    ``training_step`` once more, without a trace; the log says which were found, and which were left out and
    why. New units have random incoming weights and outgoing ones of 0; behind a LayerNorm they still are part
    of the mean and variance of the others. The optimizer's moments of these weights become 0, and **every
    rule of the Trainer forgets them**: importance, anchor, path, standard deviation and beakers are as for
    new weights, so that a rule that consolidates does not hold what was replaced. One number for a whole
    tensor, such as Adam's count of steps, stays: its first update of a new weight is
    :math:`(1-\beta_1)/\sqrt{1-\beta_2}` times as large as that of a new network, 3.2 with the usual values.

    With several processes all of them replace the same units, by the mean of their activities; where FSDP2
    shards weights by rows, each in its shard.

    Args:
        seed: of the new weights.
        options: of every rule: see :class:`~cl_callbacks.SynapticCallback`. Units of which some weight,
            coming in or going out, is not selected or not trained are left out.

    Raises:
        ValueError: an argument that cannot work, at construction.
        MisconfigurationException: before the first step, a network without units that could be replaced; a
            ``training_step`` that steps optimizers itself; a rule whose weights have only certain values,
            such as Cascade.
    """

    needed: ClassVar[tuple[Measure, ...]] = ()
    """What the rule needs of the activity of units."""
    of_units: ClassVar[tuple[str, ...]] = ()
    """Names of the state of each unit."""
    of_inputs: ClassVar[tuple[str, ...]] = ()
    """Names of the state of each input of the weights that read units."""
    local: ClassVar[bool] = True
    holds_weights: ClassVar[bool] = False
    renews: ClassVar[bool] = True
    shardable: ClassVar[bool] = True
    saved: ClassVar[tuple[str, ...]] = ("steps", "renewed", "readers")
    state_bounds: Mapping[str, Bounds] = {
        **SynapticCallback.state_bounds,
        "steps": COUNT,
        "renewed": COUNT,
        "readers": COUNT,
        "units": OF_SQUARES,
    }

    @checked(seed=NON_NEGATIVE)
    def __init__(self, *, seed: int = 0, **options: Unpack[RuleOptions]) -> None:
        super().__init__(**options)
        self.seed = seed
        self.steps = 0
        """Number of optimizer steps that were taken."""
        self.renewed = 0
        """Number of units that were replaced."""
        self.readers: dict[str, int] = {}
        """Columns of each unit, by the names of a layer and of a weight that reads it, with a space."""
        self.units: list[Units] = []
        """Those that the rule may replace; empty before the first batch."""
        self.unit_state: dict[str, dict[str, Tensor]] = {n: {} for n in (*self.of_units, *self.of_inputs)}
        """State of units, by name and layer; of inputs, by name and the weight that reads them."""
        self.samples: float | Tensor = 0.0
        """Number of samples of the latest step, over all processes."""
        self._activity: Activity | None = None
        self._recycling: Recycling | None = None
        self._new_readers: dict[str, int] = {}  # found, and no part of the state before a step
        self._search: UnitSearch | None = None
        self._trained: frozenset[str] = frozenset()
        self._task_is_new = True
        self._stepped = False  # in the present batch

    # -- what a rule overrides ---------------------------------------------------------------------

    def choose(self, units: Units, heard: Heard, weights: UnitWeights) -> Tensor | None:
        """Updates the state of a layer's units after a step, and returns the index of those to be replaced.

        Args:
            units: of the layer.
            heard: means over the batches of the step.
            weights: those that lead into the units and read them.

        Returns:
            ``(n,)``, on the device of the weights; ``None`` for none.
        """
        raise NotImplementedError

    def means(self, units: Units) -> Mapping[str, Tensor]:
        """Mean of the inputs of each reader with which its bias makes up for units; by its name."""
        return {}

    def begin_units(self, units: Units) -> None:
        """Prepares for the units of a layer, when a training or a task begins."""

    # -- hooks -------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses what no unit can be replaced beside."""
        super().on_train_start(trainer, pl_module)
        if not pl_module.automatic_optimization:
            raise MisconfigurationException(
                f"{type(self).__name__} runs `training_step` once more to see which weights read a unit, and "
                f"under manual optimization that steps the optimizers: use automatic optimization, where it "
                f"returns the loss."
            )
        rules = [c for c in trainer.callbacks if isinstance(c, SynapticCallback)]  # type: ignore[attr-defined]
        for rule in rules:
            if not rule.free_values:
                raise MisconfigurationException(
                    f"{type(self).__name__} gives some units new weights, of which those of "
                    f"{type(rule).__name__} can only have certain values: leave one of the two out."
                )
        self._recycling = Recycling(pl_module, with_inner(trainer.optimizers), rules, self.seed)
        self._task_is_new = True

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Has units be found anew on the next batch, since another head may read them."""
        super().on_task_start(trainer, pl_module, task)
        self._task_is_new = True

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Finds the units on the first batch, and begins to listen to them."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._task_is_new or self._activity is None:
            self._task_is_new = False
            self._search = self._search or UnitSearch(trainer, pl_module, self.seed)
            known = (name.removesuffix(".weight") for key in self.readers for name in key.split(" "))
            self._search.begin_task(batch, batch_idx, known)
            self._settle(trainer, pl_module, self._search)
        if self._activity is not None:
            self._activity.listening = True

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Stops listening: what runs after the forward is not the training's."""
        if self._activity is not None:
            self._activity.listening = False

    def end_step(self, synapses: SynapseView) -> None:
        """Notes that optimizers have stepped."""
        self._stepped = True

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Replaces units once all optimizers have stepped."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._activity is not None:
            self._activity.listening = False
            if self._stepped:
                self._after_step(trainer, pl_module, self._activity)
            elif is_stepping_batch(trainer):  # it was skipped, as on an overflow
                self._activity.take()
            if self._stepped and self._search and self._search.look_again(batch, batch_idx, self.steps):
                self._settle(trainer, pl_module, self._search)
            self._stepped = False
        if is_due(trainer):
            log(trainer, {log_keys.renewed(self.name): float(self.renewed)})

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stops listening."""
        super().teardown(trainer, pl_module, stage)
        self._stop_listening()
        if self._search is not None:
            self._search.end()
        self._recycling = self._search = None

    def _stop_listening(self) -> None:
        if self._activity is not None:
            self._activity.detach()
        self._activity = None

    def _after_step(self, trainer: Trainer, pl_module: LightningModule, activity: Activity) -> None:
        if self._new_readers:
            self.readers, self._new_readers = self.readers | self._new_readers, {}
            self._place_units(pl_module)
        self.steps += 1
        self.samples = sum_of_processes(trainer, float(activity.samples))
        found = activity.take(average_over_processes_ if trainer.world_size > 1 else None)
        for units in self.units:
            if units.layer in found:
                weights = UnitWeights(pl_module, units)
                index = self.choose(units, found[units.layer].to(weights.device), weights)
                if index is not None and len(index) and self._recycling is not None:
                    self._recycling.renew(units, index, self.steps, self.means(units), self._trained)
                    self.renewed += len(index)

    # -- the units ---------------------------------------------------------------------------------

    def _settle(self, trainer: Trainer, pl_module: LightningModule, search: UnitSearch) -> None:
        """Chooses among the units that were found, says which, and listens to them."""
        if self._step is not None and self._step.is_new:  # parameters may have been unfrozen
            self._place(pl_module, growing=True)
        self._trained = frozenset(self.synapses.view.names)
        found, left_out = search.found.units, dict(search.found.left_out)
        own = {
            f"{layer} {name}": units.columns
            for units in found
            for layer in units.layers
            for name in units.outgoing
        }
        chosen = []
        for units in found:
            readers = _readers_of(units, self.readers | own)
            units = replace(units, outgoing=tuple(readers))
            if not {*units.incoming, *units.outgoing} <= self._trained:
                left_out[units.layer] = "some of its weights are not trained, or not selected"
            elif len({*readers.values()}) > 1:
                left_out[units.layer] = "read as channels and as numbers"
            elif not UnitWeights(pl_module, units).have_whole_rows:
                left_out[units.layer] = "some of its weights are sharded, and not by rows"
            else:
                chosen.append(units)
        for layer in search.read_elsewhere(chosen):
            left_out[layer] = "read by something that torch cannot follow"
        self.units = [units for units in chosen if units.layer not in left_out]
        reasons = some([f"{layer} ({reason})" for layer, reason in left_out.items()])
        if not found and not self.steps:
            raise MisconfigurationException(
                f"{type(self).__name__} finds no units that it could replace in {type(pl_module).__name__}: "
                f"{reasons or 'it runs no linear or convolutional layer'}. Units are the outputs of a linear "
                f"or convolutional layer that only other such layers read."
            )
        self._new_readers = own
        self._stop_listening()
        # Readers of earlier tasks, such as other heads, are not listened to: their means stay.
        kept = {units.layer for units in self.units}
        self._activity = Activity(pl_module, [u for u in found if u.layer in kept], self.needed)
        number, layers = sum(units.number for units in self.units), few([units.layer for units in self.units])
        if not number:
            rank_zero_warn(f"{type(self).__name__} can replace no units in this task: {reasons}.")
        text = f"may replace {number} units, of {layers}{f'; no others: {reasons}' if reasons else ''}"
        if number and first_time(self, text):
            say(trainer, f"{self.name} {text}")

    def _place_units(self, pl_module: LightningModule) -> None:
        for units in self.units:
            weight = pl_module.get_parameter(units.incoming[0])
            kind: dict[str, Any] = {"device": weight.device}
            kind["dtype"] = torch.promote_types(weight.dtype, torch.float32)
            for name, state in self.unit_state.items():
                of_input = name in self.of_inputs
                size = units.number * (units.columns if of_input else 1)
                for key in units.outgoing if of_input else (units.layer,):
                    kept = state.get(key)
                    if kept is None or len(kept) != size:
                        kept = torch.zeros(size)
                    state[key] = kept.to(**kind)
            self.begin_units(units)

    # -- checkpoints -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The rule's state, with that of units."""
        return super().state_dict() | {
            "units": {name: dict(state) for name, state in self.unit_state.items()}
        }

    def restore(self, state_dict: dict[str, Any]) -> None:
        """Sets the state from a saved one."""
        super().restore(state_dict)
        self.unit_state = {
            name: {layer: t.detach().clone() for layer, t in state_dict["units"].get(name, {}).items()}
            for name in self.unit_state
        }


def _readers_of(units: Units, readers: Mapping[str, int]) -> dict[str, int]:
    """Columns that each reader has for a unit, those of earlier tasks among them, such as other heads."""
    found = {}
    for key, columns in readers.items():
        layer, reader = key.split(" ")
        if layer in units.layers:
            found[reader] = columns
    return found
