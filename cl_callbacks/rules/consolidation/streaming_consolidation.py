"""Consolidation without task boundaries."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from cl_callbacks.functional.averaging import average_, average_square_, newest_share
from cl_callbacks.functional.path_integral import add_path_, add_path_pull_, path_importance
from cl_callbacks.rules.consolidation.anchored_rule import AnchoredRule
from cl_callbacks.rules.synaptic_callback import Patterns
from cl_callbacks.synapses.step import Need, Step
from cl_callbacks.synapses.view import SynapseView

Importance = Literal["fisher", "sensitivity", "path"]


class StreamingConsolidation(AnchoredRule):
    r"""A running importance and a running anchor: consolidation that needs no task boundary.

    In every step each weight is pulled towards the average of its own recent past,

    .. math:: g \leftarrow g + \kappa\,\Omega\,(\theta - \bar\theta),

    as strongly as it mattered. Averages are exponential and corrected for their start:

    =================  ================================================================  ===========
    ``importance``     :math:`\Omega`                                                    rule
    =================  ================================================================  ===========
    ``"fisher"``       average of :math:`g^2`                                            streaming EWC
    ``"sensitivity"``  average of :math:`|g|`                                            streaming MAS
    ``"path"``         :math:`\max(0, \omega) / ((\theta - \bar\theta)^2 + \xi)` with         streaming SI
                       :math:`\omega \leftarrow \beta\omega - g\,\delta\theta`
    =================  ================================================================  ===========

    The gradients are those of batches, so the first two measure a quantity that falls with the batch's
    size. An average reaches back about :math:`1/(1-\beta)` steps; with :math:`\beta=1` it is the mean (for
    ``"path"`` the sum) of all steps, and nothing fades. Importance is best remembered for long and the
    anchor for a part of a task. Memory is two tensors per parameter, and no data are read again.

    Sources: Elsayed & Mahmood 2024, baselines (arXiv 2404.00781), whose released path forms differ from
    their equations: here it is synaptic intelligence, with a path that may fade.

    Args:
        strength: :math:`\kappa`, at least 0; 0 leaves training as it is, bit for bit.
        importance: what is averaged, as above; on the permuted digits ``"path"`` is the best by far.
        importance_decay: :math:`\beta` of the importance, from 0 to 1.
        anchor_decay: :math:`\beta` of the anchor :math:`\bar\theta`, likewise.
        damping: :math:`\xi` of ``"path"``, in units of squared weights, above 0.
        proximal: apply the pull as a proximal step after each optimizer step, which is stable for any
            strength, instead of adding it to the gradient; it wants another strength.
        max_importance: the largest importance that a synapse may have; ``None`` for no limit.
        parameters: regular expressions of parameter names to include; default: all trainable ones.
        exclude: regular expressions of names to leave out.
        state_dtype: of the state, at least float32; default that, or wider where the parameter is.
        state_device: where the state lives, such as ``"cpu"``, from where it comes to the parameters while
            the rule works on it; default: beside each parameter.
        strict: whether state of parameters that the model no longer has is an error.
        name: of this instance in logs and checkpoints; needed for two on the same parameters.

    Raises:
        ValueError: an argument that cannot work, at construction.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(
        ...     callbacks=[StreamingConsolidation(strength=1.0)], logger=False, enable_checkpointing=False)
    """

    running = ("importance", "anchor")
    local: ClassVar[bool] = True

    def __init__(
        self,
        strength: float,
        *,
        importance: Importance = "path",
        importance_decay: float = 1.0,
        anchor_decay: float = 0.995,
        damping: float = 1e-3,
        proximal: bool = False,
        max_importance: float | None = None,
        parameters: Patterns = None,
        exclude: Patterns = None,
        state_dtype: torch.dtype | str | None = None,
        state_device: str | None = None,
        strict: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(
            strength,
            proximal=proximal,
            max_importance=max_importance,
            parameters=parameters,
            exclude=exclude,
            state_dtype=state_dtype,
            state_device=state_device,
            strict=strict,
            name=name,
        )
        if importance not in get_args(Importance):
            raise ValueError(f"importance={importance!r} is not one of {get_args(Importance)}")
        for decay in (importance_decay, anchor_decay):
            if not 0 <= decay <= 1:
                raise ValueError(f"a decay is the share that each step keeps, 0 to 1; got {decay}")
        if not damping > 0:
            raise ValueError(f"damping must be positive, or a weight that rests divides by 0; got {damping}")
        self.importance, self.damping = importance, damping
        self.importance_decay, self.anchor_decay = importance_decay, anchor_decay
        self.needs: frozenset[Need] = frozenset(
            {"gradient", "undo"} if importance == "path" else {"gradient"}
        )
        self.steps: dict[str, int] = {}
        """How many optimizer steps each synapse has taken; averages are corrected for their start."""

    @property
    def remembers(self) -> bool:
        """From the second step on."""
        return bool(self.steps)

    def effective_importance(self, synapses: SynapseView) -> list[Tensor]:
        r""":math:`\Omega` as the pull uses it."""
        found = synapses["importance"]
        if self.importance == "path":
            found = path_importance(found, synapses.parameters, synapses["anchor"], self.damping)
        if self.max_importance is not None:
            found = list(torch._foreach_clamp_max(found, self.max_importance))
        return found

    def pull(self, synapses: SynapseView, gradients: list[Tensor]) -> None:
        """Adds the gradient of the penalty."""
        if self.importance != "path" or self.proximal or not self.anchored:
            super().pull(synapses, gradients)
            return
        add_path_pull_(
            gradients,
            synapses.parameters,
            synapses["importance"],
            synapses["anchor"],
            self.stiffness,
            self.damping,
            self.max_importance,
        )

    def observe(self, step: Step) -> None:
        """Takes the step into the averages."""
        synapses, running = step.synapses, step.synapses["importance"]
        if self.importance == "fisher":
            average_square_(running, step.gradients, self._shares(synapses.names, self.importance_decay))
        elif self.importance == "sensitivity":
            sizes = torch._foreach_abs(step.gradients)
            average_(running, sizes, self._shares(synapses.names, self.importance_decay))
        else:
            add_path_(running, step.gradients, step.undo, self.importance_decay)
        average_(synapses["anchor"], synapses.parameters, self._shares(synapses.names, self.anchor_decay))

    def end_step(self, synapses: SynapseView) -> None:
        """Counts."""
        self.steps.update((name, self.steps.get(name, 0) + 1) for name in synapses.names)

    def _shares(self, names: list[str], decay: float) -> list[float]:
        return [newest_share(decay, self.steps.get(name, 0) + 1) for name in names]

    def state_dict(self) -> dict[str, Any]:
        """With the numbers of steps."""
        return super().state_dict() | {"steps": dict(self.steps)}

    def restore(self, state_dict: dict[str, Any]) -> None:
        """Takes over a state."""
        super().restore(state_dict)
        self.steps = dict(state_dict["steps"])
