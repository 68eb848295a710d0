"""What the checks train, and how far apart two trainings are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from cl_callbacks import EpochBoundaries
from gpu_checks.place import Place

FEATURES, CLASSES, SAMPLES, BATCH = 6, 3, 96, 16


class Net(LightningModule):
    def __init__(self, net: nn.Module, optimizer: Callable[[Iterable[Tensor]], Any]) -> None:
        super().__init__()
        self.net, self.optimizer = net, optimizer

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


def normalised() -> nn.Module:
    """With buffers that a pass at the end of a task must leave as they are."""
    return nn.Sequential(*plain()[:3], nn.Dropout(0.1), nn.Linear(32, CLASSES))


def plain() -> nn.Module:
    """Without random numbers or a bias whose gradient is mere rounding, so that devices can be compared."""
    first = nn.Linear(FEATURES, 32, bias=False)
    return nn.Sequential(first, nn.BatchNorm1d(32), nn.Tanh(), nn.Linear(32, CLASSES))


def large(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, width), nn.Linear(width, width), nn.Linear(width, CLASSES))


def sgd(lr: float = 0.05) -> Callable[[Iterable[Tensor]], Any]:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def model(
    make: Callable[[], nn.Module] = plain, optimizer: Callable[[Iterable[Tensor]], Any] | None = None
) -> Net:
    """Always with the same weights, on the CPU."""
    torch.manual_seed(0)
    return Net(make(), optimizer or sgd())


def task(seed: int = 0, samples: int = SAMPLES) -> tuple[Tensor, Tensor]:
    """Inputs in double precision, and labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, FEATURES, generator=generator, dtype=torch.float64)
    return x, (x @ torch.randn(FEATURES, CLASSES, generator=generator, dtype=torch.float64)).argmax(1)


def loader(*tensors: Tensor, batch_size: int = BATCH) -> DataLoader:
    return DataLoader(TensorDataset(*tensors), batch_size)


def data_for(module: LightningModule, *tensors: Tensor, batch_size: int = BATCH) -> DataLoader:
    """Batches of these tensors, by default of a task, in the precision of the module."""
    x, *others = tensors or task()
    return loader(x.to(next(module.parameters()).dtype), *others, batch_size=batch_size)


def fit(
    place: Place,
    rule: Any,
    *others: Callback,
    module: LightningModule | None = None,
    data: DataLoader | None = None,
    epochs: int = 3,
    boundaries: Callback | None = None,
    ckpt_path: Any = None,
    **options: Any,
) -> LightningModule:
    """Trains with a rule, or with none; each epoch is a task unless ``boundaries`` say otherwise."""
    module = module or model()
    rules = [] if rule is None else [rule]
    trainer = place.trainer(*rules, boundaries or EpochBoundaries(1), *others, max_epochs=epochs, **options)
    torch.manual_seed(0)
    trainer.fit(module, data or data_for(module), ckpt_path=ckpt_path, weights_only=True)
    return module


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().cpu().flatten() for p in module.parameters()])


def flat(tree: Any, path: str = "") -> dict[str, Tensor]:
    """All tensors and numbers in nested containers, on the CPU, by their path."""
    if isinstance(tree, dict | list | tuple):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {key: t for name, inner in items for key, t in flat(inner, f"{path}/{name}").items()}
    return {path: torch.as_tensor(tree).detach().cpu()} if isinstance(tree, int | float | Tensor) else {}


def outcome(module: nn.Module, rule: Any) -> dict[str, Tensor]:
    """Weights, buffers and the rule's state."""
    return flat({"module": dict(module.state_dict()), "rule": {} if rule is None else rule.state_dict()})


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference in any tensor, relative to that tensor's largest entry."""
    assert a.keys() == b.keys(), f"only one has {sorted(a.keys() ^ b.keys())[:3]}"
    return max((_distance(a[key].double(), b[key].double()) for key in a if a[key].numel()), default=0.0)


def _distance(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape, f"shapes {tuple(a.shape)} and {tuple(b.shape)}"
    if torch.equal(a, b):
        return 0.0
    return ((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item()


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert a.keys() == b.keys(), f"only one has {sorted(a.keys() ^ b.keys())[:3]}"
    apart = [key for key in a if not torch.equal(a[key], b[key])]
    assert not apart, f"{len(apart)} of {len(a)} tensors differ, such as {apart[:3]}"
