"""Optimizers as people write them: those that wrap others, and those that torch's hooks do not reach."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Closure = Callable[[], Any] | None


def parameters(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


class Sam(Optimizer):
    """Sharpness-aware minimisation: steps from the weights by the gradient at others, higher up."""

    def __init__(self, params: Any, base: Any, rho: float = 0.05, **options: Any) -> None:
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        norm = torch.stack([p.grad.norm() for p in parameters(self) if p.grad is not None]).norm()
        for p in parameters(self):
            if p.grad is not None:
                self.state[p]["lower"] = p.data.clone()
                p.add_(p.grad * (self.param_groups[0]["rho"] / norm))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for p in parameters(self):
            if p.grad is not None:
                p.data = self.state[p]["lower"]
        self.base_optimizer.step()

    def step(self, closure: Closure = None) -> Any:  # type: ignore[override]
        """The closure is that of the second gradient; without a first one it is called twice."""
        assert closure is not None
        if all(p.grad is None for p in parameters(self)):
            closure()
        self.first_step()
        loss = closure()
        self.second_step()
        self.zero_grad()
        return loss


class Lookahead(Optimizer):
    """Goes back half of the way after every third step; does not call ``super().__init__``."""

    def __init__(self, base: Optimizer) -> None:
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
        self._base_optimizer, self.param_groups, self.defaults = base, base.param_groups, base.defaults
        self.state: Any = defaultdict(dict)
        self.slow = [p.detach().clone() for p in parameters(base)]
        self.steps = 0

    def step(self, closure: Closure = None) -> Any:  # type: ignore[override]
        loss = self._base_optimizer.step(closure)  # type: ignore[arg-type]
        self.steps += 1
        if self.steps % 3 == 0:
            with torch.no_grad():
                torch._foreach_lerp_(self.slow, [p.detach() for p in parameters(self)], 0.5)
                torch._foreach_copy_(parameters(self), self.slow)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._base_optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return self._base_optimizer.state_dict()

    def load_state_dict(self, state_dict: Any) -> None:
        self._base_optimizer.load_state_dict(state_dict)
        self.param_groups = self._base_optimizer.param_groups


class Delegating:
    """Has what Lightning asks of an optimizer, and steps another one."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner, self.param_groups = inner, inner.param_groups
        self.defaults, self.state = inner.defaults, inner.state

    def step(self, closure: Closure = None) -> Any:
        return self.inner.step(closure)  # type: ignore[arg-type]

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: Any) -> None:
        self.inner.load_state_dict(state_dict)


class Evaluating(Delegating):
    """Calls the closure itself before it steps the other one."""

    def step(self, closure: Closure = None) -> Any:
        loss = None if closure is None else closure()
        self.inner.step()
        return loss


class Plain:
    """Gradient descent with momentum in an object of its own, without torch's hooks."""

    def __init__(self, params: Any, lr: float = 0.1, momentum: float = 0.9) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": list(params), "lr": lr, "momentum": momentum}]
        self.defaults: dict[str, Any] = {}
        self.state: Any = defaultdict(dict)

    def step(self, closure: Closure = None) -> Any:
        loss = None if closure is None else closure()
        group = self.param_groups[0]
        with torch.no_grad():
            for p in group["params"]:
                if p.grad is not None:
                    before = self.state[p].get("momentum_buffer")
                    new = p.grad.clone() if before is None else before.mul_(group["momentum"]).add_(p.grad)
                    self.state[p]["momentum_buffer"] = new
                    p.add_(new, alpha=-group["lr"])
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p in self.param_groups[0]["params"]:
            p.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: Any) -> None:
        pass


class WithoutSuper(Plain, Optimizer):
    """Is an Optimizer by its type alone."""


class Sealed(Plain):
    """Its ``step`` cannot be replaced."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "step":
            raise AttributeError(name)
        super().__setattr__(name, value)


class Projecting:
    """Gradient surgery around an optimizer that is somebody else's: no optimizer itself."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    def backward(self, losses: list[Tensor]) -> None:
        weights = parameters(self._optimizer)
        parts = [torch.autograd.grad(loss, weights, retain_graph=True) for loss in losses]
        for p, *own in zip(weights, *parts, strict=True):
            p.grad = torch.stack(own).sum(0)

    def step(self) -> None:
        self._optimizer.step()
