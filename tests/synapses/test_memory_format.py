"""Weights in the layout `torch.channels_last`: what is computed together has the same strides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cl_callbacks import EWC, SynapticCallback, SynapticIntelligence
from cl_callbacks.compiled.memory_order import in_memory_order, is_dense
from cl_callbacks.tensors import blocks
from cl_callbacks.tensors.blocks import spans
from cl_callbacks.tensors.flat import flat_zeros
from tests.every_rule import every_rule, make
from tests.small import CLASSES, FEATURES, Net, fit_tasks

IMAGE = (3, 1, FEATURES // 3)


def images(layout: torch.memory_format = torch.channels_last) -> Net:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Unflatten(1, IMAGE),
        nn.Conv2d(3, 5, (1, 2), padding=(0, 1)),
        nn.Tanh(),
        nn.Conv2d(5, 4, (1, 2)),
        nn.Flatten(),
        nn.Linear(4 * IMAGE[2], CLASSES),
    )
    return Net(net.to(memory_format=layout))


class ForeachStrides(TorchDispatchMode):
    """Collects operations on aligned lists whose tensors have the same shape and other strides."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.apart = 0, set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "_foreach" in str(func):
            lists = [a for a in args if isinstance(a, list | tuple) and a and isinstance(a[0], Tensor)]
            self.calls += 1
            if any(len({t.stride() for t in aligned}) > 1 for aligned in zip(*lists, strict=True)):
                self.apart.add(str(func))
        return func(*args, **(kwargs or {}))


@every_rule
def test_all_that_is_computed_together_has_the_strides_of_the_weight(rule: str) -> None:
    """Otherwise torch takes its operations on several tensors apart into one for each."""
    model, seen = images(), ForeachStrides()
    assert not model.net[1].weight.is_contiguous()
    with seen:
        fit_tasks(model, make(rule), tasks=2)
    assert seen.calls > 0 or rule == "er joined"  # which computes nothing itself
    assert not seen.apart


def test_state_from_a_contiguous_network_gets_the_strides_of_the_weight() -> None:
    """As from a checkpoint that was written before the layout was changed."""
    before, after = EWC(1.0), EWC(1.0)
    fit_tasks(images(torch.contiguous_format), before, tasks=1)
    saved = before.state_dict()
    after.load_state_dict(saved)
    model = images()
    fit_tasks(model, after, tasks=1)
    for field in after.synapses.view.fields.values():
        assert [t.stride() for t in field] == [p.stride() for p in model.parameters()]
    assert all(t.is_contiguous() for t in saved["synapses"]["importance"].values())


def test_placing_again_leaves_state_where_it_is() -> None:
    model, rule = images(), SynapticIntelligence(1.0)
    fit_tasks(model, rule, tasks=1)
    first = list(rule.synapses.view.fields["path"])
    rule._place(model)
    assert all(a is b for a, b in zip(first, rule.synapses.view.fields["path"], strict=True))


class Taking(SynapticCallback):
    """Looks at all that a step has, of gradients with NaN in them."""

    needs = frozenset({"gradients", "pulled", "before", "updates"})
    local = True
    looked = 0

    def observe(self, step: Any) -> None:
        self.looked += 1
        for kept in (step.gradients, step.pulled, step.updates):
            assert all(t.isfinite().all() for t in kept)
            assert [t.stride() for t in kept] == [p.stride() for p in step.synapses.parameters]
        assert all((t == 0).any() for t in step.gradients)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("elements", [2**17, 4])
def test_gradients_that_are_not_finite_are_0_in_any_layout(
    transposed: bool, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the rows of a block have gaps in memory, as those of a transposed weight."""
    monkeypatch.setattr(blocks, "ELEMENTS_ON_CPU", elements)
    model = images()
    if transposed:
        model.net[5].weight = nn.Parameter(model.net[5].weight.detach().t().contiguous().t())

    def spoil(grad: Tensor) -> Tensor:
        grad = grad.clone()
        grad[:, ..., 0] = torch.nan
        return grad

    for p in model.parameters():
        if p.ndim > 1:
            p.register_hook(spoil)
        else:
            p.requires_grad_(False)
    taking = Taking()
    fit_tasks(model, taking, tasks=1)
    assert taking.looked >= 3


def test_flat_memory_has_views_of_any_strides() -> None:
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    like = [image, image.permute(3, 0, 2, 1), image[:, :2], torch.zeros(0, 3), torch.tensor(1.0)]
    (flat,), views = flat_zeros(like)
    flat.copy_(torch.arange(len(flat)))
    for view, t in zip(views, like, strict=True):
        assert view.shape == t.shape
        assert is_dense(view)
        assert view.stride() == t.stride() or not is_dense(t)
    assert torch.cat([v.flatten() for v in views]).sort()[0].equal(flat)


def test_spans_cover_every_element_once() -> None:
    image = torch.randn(4, 3, 4, 5).to(memory_format=torch.channels_last)
    _, (a, b, c) = flat_zeros([image, image, torch.randn(6, 5).t()])
    some = [a, b[1:3], c[2:4]]
    for t in spans(some):
        t.add_(1)
    assert all((t == 1).all() for t in some)
    assert sum(int(t.sum()) for t in (a, b, c)) == sum(t.numel() for t in some)
    assert len(spans([a, b])) == 1
    assert in_memory_order(a).shape == (240,)
