"""Mixed precision, fused optimizers, and switches for arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from networks import Transformer
from torch import Tensor, nn

from cl_callbacks import EWC, EpochBoundaries, SynapseStatistics
from cl_callbacks.functional import fisher_cotangents
from cl_callbacks.gradients import PerSampleGradients
from gpu_checks.check import Skip, each, needs_cuda
from gpu_checks.place import Place
from gpu_checks.rules import RULES
from gpu_checks.training import data_for, fit, flat, model, plain, sgd, task, weights

SCALE = 2.0**12


def unnormalised() -> nn.Module:
    """Without running statistics, into which a batch that overflows would go for good."""
    return nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3))


def sixteen(place: Place, scaler: torch.amp.GradScaler) -> MixedPrecision:
    """16-mixed also on the CPU, where ``precision=`` would take bfloat16 instead."""
    return MixedPrecision("16-mixed", place.device, scaler=scaler)


def overflow_under_16_mixed(place: Place) -> str:
    """A step that overflows under a real GradScaler leaves all rules finite, and halves the scale once."""
    x, y = task()
    x[32:48] = 1e6  # one batch of each epoch

    def overflow(name: str, make: Any) -> None:
        scaler = torch.amp.GradScaler(place.device, init_scale=SCALE)
        rule, module = make(), model(unnormalised)
        data = data_for(module, x, y)
        fit(place, rule, module=module, data=data, epochs=2, plugins=[sixteen(place, scaler)])
        assert weights(module).isfinite().all(), "weights are not finite"
        state = flat(rule.state_dict())
        broken = [key for key, t in state.items() if not t.isfinite().all()]
        assert not broken, f"state is not finite: {broken[:3]}"
        assert scaler.get_scale() == SCALE / 4, f"the scale is {scaler.get_scale()} after two overflows"

    return each(place.of(RULES), overflow)


def adamw(**options: Any) -> Any:
    return lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, **options)


def fused_optimizer(place: Place) -> str:
    """AdamW(fused=True): as fused=False to 1 %, works in bf16-mixed, and is refused in 16-mixed."""
    if place.device == "pretend":
        raise Skip("there are no fused optimizers for the device")

    def compare(name: str, make: Any) -> float:
        without, fused = (
            weights(fit(place, make(), module=model(plain, adamw(fused=on)))) for on in (False, True)
        )
        apart = ((fused - without).abs().max() / without.abs().max()).item()
        assert apart < 1e-2, f"differs by {apart:.1e}"
        mixed = fit(place, make(), module=model(plain, adamw(fused=True)), precision="bf16-mixed")
        assert weights(mixed).isfinite().all(), "not finite in bf16-mixed"
        return apart

    # Cascade's transitions are drawn: a weight that differs by rounding may take another one.
    said = each({name: make for name, make in place.of(RULES).items() if name != "Cascade"}, compare)
    try:
        scaler = torch.amp.GradScaler(place.device)
        fit(place, EWC(1.0), module=model(plain, adamw(fused=True)), plugins=[sixteen(place, scaler)])
    except MisconfigurationException as refused:
        assert "fused=False" in str(refused), refused
    else:
        raise AssertionError("16-mixed with a fused optimizer is not refused")
    return f"{said}; refused in 16-mixed"


def deterministic(place: Place) -> str:
    """Trainer(deterministic=True): no rule uses an operation that has no deterministic form."""
    try:
        return each(
            place.of(RULES),
            lambda name, make: fit(place, make(), SynapseStatistics(3), deterministic=True) and None,
        )
    finally:
        torch.use_deterministic_algorithms(False)


def matmul_precision(place: Place) -> str:
    """At float32_matmul_precision highest, high and medium no layer falls back from its closed form."""
    width = 256 if place.device == "cuda" else 32
    torch.manual_seed(0)
    net = Transformer(width, 2, 4, 1000).eval().to(place.device)
    tokens = torch.randint(1000, (16, 12)).to(place.device)

    def cotangents(outputs: Tensor, labels: Tensor | None) -> list[Tensor]:
        return list(fisher_cotangents(outputs, labels, estimator="exact"))

    found = {}
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(precision)
            gradients = PerSampleGradients(net, dict(net.named_parameters()), lambda x: (net(x), None))
            for _ in range(4):  # the first batch and the fourth are checked
                gradients.sums(tokens, cotangents)
            found[precision] = sorted(gradients.fallback)
    finally:
        torch.set_float32_matmul_precision(before)
    assert not any(found.values()), f"fall back: { {k: v[:3] for k, v in found.items() if v} }"
    return f"{len(gradients.parameters)} parameters, none falls back"


class Ends(EpochBoundaries):
    """Notes the most memory that training and the end of a task have taken."""

    training = ending = 0

    def end(self, trainer: Any, *args: Any, **options: Any) -> None:
        self.training = max(self.training, torch.cuda.max_memory_allocated())
        torch.cuda.reset_peak_memory_stats()
        super().end(trainer, *args, **options)
        self.ending = max(self.ending, torch.cuda.max_memory_allocated())
        torch.cuda.reset_peak_memory_stats()


def memory_of_a_measurement(place: Place) -> str:
    """bf16-mixed: EWC's pass at the end of a task takes at most twice the memory of a training step."""
    needs_cuda(place)
    torch.manual_seed(0)
    module = model(lambda: Transformer(512, 6, 8, 1000), sgd(1e-4))
    data = torch.utils.data.TensorDataset(torch.randint(1000, (64, 256)), torch.randint(10, (64,)))
    ends = Ends(1)
    torch.cuda.reset_peak_memory_stats()
    loader = torch.utils.data.DataLoader(data, 32)
    rule = EWC(1.0, estimator="sampled", samples=64)
    fit(place, rule, module=module, data=loader, epochs=2, boundaries=ends, precision="bf16-mixed")
    said = f"training {ends.training / 2**20:.0f} MiB, measurement {ends.ending / 2**20:.0f} MiB"
    assert ends.ending <= 2 * ends.training, said
    return said
