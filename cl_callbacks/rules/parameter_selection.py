"""Selects the parameters of a module that a rule works on."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from cl_callbacks.guards.few import few
from cl_callbacks.guards.parameters import SPARSE_GRADIENT, parameter_fault
from cl_callbacks.rules.rule_options import Patterns


def patterns_of(name: str, given: Patterns) -> tuple[str, ...]:
    """Tuple of the regular expressions in an argument that takes one, several or ``None``.

    Raises:
        ValueError: an invalid regular expression.

    Example:
        >>> patterns_of("exclude", "bias")
        ('bias',)
    """
    patterns = (given,) if isinstance(given, str) else tuple(given or ())
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{name}: {pattern!r} is not a regular expression: {error}") from error
    return patterns


def wants_name(name: str, parameters: tuple[str, ...], exclude: tuple[str, ...]) -> bool:
    """Whether a name has one of the patterns, if there are any, and none of those to exclude.

    Example:
        >>> wants_name("net.0.bias", (), ("bias",))
        False
    """
    included = not parameters or any(re.search(p, name) for p in parameters)
    return included and not any(re.search(p, name) for p in exclude)


def stepped_by(
    optimizers: Iterable[Optimizer], model: Mapping[str, Tensor], names: Iterable[str]
) -> list[str]:
    """Names of parameters that an optimizer steps: others have no update that a rule could replace."""
    stepping = {id(p) for o in optimizers for g in o.param_groups for p in g["params"]}
    return [name for name in names if id(model[name]) in stepping]


class ParameterSelection(NamedTuple):
    """Selects parameters by name and shape for a rule; errors name the rule.

    Attributes:
        rule: name of the rule's class, for errors.
        parameters: regular expressions, searched in names, of those to include; empty for all.
        exclude: regular expressions of those to leave out.
        matrices_only: whether one-dimensional parameters are left out if ``parameters`` is empty.
        stepping_only: whether ``trainable`` has only parameters that an optimizer steps, for errors.
    """

    rule: str
    parameters: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    matrices_only: bool = False
    stepping_only: bool = False

    def select(
        self, pl_module: LightningModule, model: Mapping[str, Tensor], trainable: Collection[str]
    ) -> list[str]:
        """Names of the trainable parameters that are selected, in the order of the module.

        Raises:
            MisconfigurationException: none is trainable or none is left, a pattern matches none, or one that
                is selected cannot have a state.
        """
        module = type(pl_module).__name__
        if not trainable:
            raise MisconfigurationException(
                f"{self.rule}: no parameter of {module} requires a gradient"
                f"{' and is in an optimizer' if self.stepping_only else ''}, "
                f"so there is no synapse to consolidate; unfreeze some before training."
            )
        for pattern in self.parameters + self.exclude:
            if not any(re.search(pattern, name) for name in model):
                raise MisconfigurationException(
                    f"{self.rule}: the pattern {pattern!r} matches no parameter of {module}; its parameters "
                    f"are {few(list(model))}"
                )
        selected = [name for name in trainable if self._wants(name, model[name])]
        if not selected:
            raise MisconfigurationException(
                f"{self.rule}: parameters={self.parameters} and exclude={self.exclude} leave nothing to it "
                f"of the trainable parameters {few(list(trainable))}"
            )
        self._refuse_faults(pl_module, {name: model[name] for name in selected})
        return selected

    def _wants(self, name: str, parameter: Tensor) -> bool:
        if self.matrices_only and not self.parameters and not is_lazy(parameter) and parameter.ndim < 2:
            return False
        return wants_name(name, self.parameters, self.exclude)

    def _refuse_faults(self, pl_module: LightningModule, parameters: Mapping[str, Tensor]) -> None:
        tables = (m for m in pl_module.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag))
        sparse = {id(table.weight) for table in tables if table.sparse}
        faults: dict[str, list[str]] = {}
        for name, p in parameters.items():
            fault = parameter_fault(p) or (SPARSE_GRADIENT if id(p) in sparse else None)
            if fault is not None:
                faults.setdefault(fault, []).append(name)
        if faults:
            found = "; ".join(f"{few(names)} {fault}" for fault, names in faults.items())
            raise MisconfigurationException(
                f"{self.rule} cannot keep a state for all parameters that it selects: {found}. Or leave them "
                f"out with exclude."
            )
