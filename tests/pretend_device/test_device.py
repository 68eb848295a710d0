"""What the pretend device has to notice, since every other test relies on it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.pretend_device.device import DEVICE, races, waits


def ones(size: int = 8, index: int = 0) -> Tensor:
    return torch.ones(size, device=f"{DEVICE}:{index}")


def test_tensors_of_two_devices_are_refused() -> None:
    for other in (torch.ones(8), ones(index=1)):
        with pytest.raises(RuntimeError, match="at least two devices"):
            ones() + other
        with pytest.raises(RuntimeError, match="at least two devices"):
            torch._foreach_add_([ones()], [other])


def test_numbers_without_a_dimension_may_stay_on_the_host() -> None:
    before = waits()
    ones().mul_(torch.tensor(2.0))
    assert waits() == before


@pytest.mark.parametrize(
    "wait",
    [
        lambda t: t.sum().item(),
        lambda t: bool(t.any()),
        lambda t: t.cpu(),
        lambda t: t.tolist(),
        lambda t: t.nonzero(),
        lambda t: t[t > 0],
        lambda t: torch.tensor([1.0, 2.0], device=t.device),
        lambda t: torch.ones(3).to(t.device),
        lambda t: t.unique(),
        lambda t: torch.linalg.eigvalsh(t.outer(t)),
    ],
)
def test_the_host_waits(wait: object) -> None:
    tensor, before = ones(), waits()
    wait(tensor)  # type: ignore[operator]
    assert waits() > before


def test_computing_and_pinned_copies_do_not_make_the_host_wait() -> None:
    pinned, before = torch.ones(8).pin_memory(), waits()
    tensor = pinned.to(DEVICE, non_blocking=True) * 2
    tensor[torch.arange(3).to(DEVICE, non_blocking=True)] = 0.0
    pinned.copy_(tensor, non_blocking=True)
    assert waits() == before


def test_pinned_memory_that_is_read_too_early_is_nan() -> None:
    pinned = torch.zeros(8).pin_memory()
    pinned.copy_(ones(), non_blocking=True)
    assert pinned.isnan().all()
    torch.accelerator.synchronize(0)
    assert (pinned == 1).all()


def test_an_event_is_done_when_the_host_has_waited_for_it() -> None:
    pinned, event = torch.zeros(8).pin_memory(), torch.Event(DEVICE)
    pinned.copy_(ones(), non_blocking=True)
    event.record()
    assert not event.query()
    event.synchronize()
    assert event.query() and (pinned == 1).all()


def test_pinned_memory_that_the_host_changes_too_early_is_a_race() -> None:
    source, target = torch.zeros(8).pin_memory(), torch.zeros(8).pin_memory()
    source.to(DEVICE, non_blocking=True)
    source.add_(1)
    target.copy_(ones(), non_blocking=True)
    target.fill_(0)
    torch.accelerator.synchronize(0)
    assert [what.split("while ")[1] for what in races()] == [
        "a copy from it was queued",
        "a copy to it was queued",
    ]


def test_streams_that_do_not_wait_for_each_other_race() -> None:
    tensor, stream = ones(), torch.Stream(DEVICE)
    with stream:
        tensor.add_(1)
    assert races()
    stream.wait_stream(torch.accelerator.current_stream())
    with stream:
        tensor.add_(1)
    assert not races()
    tensor.add_(1)
    assert races()


def test_memory_that_is_freed_while_another_stream_uses_it_is_a_race() -> None:
    stream = torch.Stream(DEVICE)
    for told in (False, True):
        tensor = ones()
        stream.wait_stream(torch.accelerator.current_stream())
        with stream:
            tensor.add_(1)
        if told:
            tensor.record_stream(stream)
        del tensor
        assert bool(races()) is not told


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.LSTM(6, 5, num_layers=2, batch_first=True), (4, 3, 6)),
        (nn.GRU(6, 5, batch_first=True), (4, 3, 6)),
        (nn.Conv2d(3, 4, 3, groups=1), (2, 3, 8, 8)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 8, 8)),
        (nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), (2, 5, 8)),
        (nn.BatchNorm1d(6), (4, 6)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_compute_what_the_cpu_does(module: nn.Module, shape: tuple[int, ...]) -> None:
    def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
        out = module(x)
        out = out[0] if isinstance(out, tuple) else out
        out.square().sum().backward()
        return [out, *(p.grad for p in module.parameters() if p.grad is not None), *module.buffers()]

    x = torch.randn(shape)
    expected = gradients(copy.deepcopy(module), x)
    for a, b in zip(gradients(module.to(DEVICE), x.to(DEVICE)), expected, strict=True):
        torch.testing.assert_close(a.cpu(), b)


def test_autocast_runs_linear_layers_in_half_precision_and_losses_in_float32() -> None:
    layer = nn.Linear(8, 3).to(DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        out = layer(ones()[None])
        loss = nn.functional.cross_entropy(out, torch.zeros(1, dtype=torch.long, device=DEVICE))
    loss.backward()
    assert layer.weight.grad is not None
    assert (out.dtype, loss.dtype, layer.weight.grad.dtype) == (torch.bfloat16, torch.float32, torch.float32)


def test_each_device_has_random_numbers_of_its_own() -> None:
    torch.manual_seed(3)
    first = torch.rand(4, device=DEVICE)
    torch.rand(4)
    assert not torch.equal(torch.rand(4, device=DEVICE).cpu(), first.cpu())
    torch.manual_seed(3)
    torch.rand(4, device=f"{DEVICE}:1")
    assert torch.equal(torch.rand(4, device=DEVICE).cpu(), first.cpu())
