"""The networks that the benchmarks of cost share, as modules for a Trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Classifier(LightningModule):
    """A network trained by AdamW."""

    def __init__(self, net: nn.Module, lr: float = 1e-5) -> None:
        super().__init__()
        self.net, self.lr = net, lr

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class Transformer(nn.Module):
    """An encoder of texts with learned positions, mean-pooled; by default of the shape of MiniLM-L6."""

    def __init__(
        self, width: int = 384, layers: int = 6, heads: int = 12, words: int = 30522, classes: int = 10
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.positions = nn.Embedding(512, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.layers(self.words(tokens) + self.positions(positions)).mean(1))


class Residual(nn.Module):
    """Two convolutions with normalisation and a way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in range(2))
        self.around = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](self.first(x)).relu()
        return (self.norms[1](self.second(y)) + self.around(x)).relu()


def resnet(classes: int = 10) -> nn.Module:
    """Of the shape of ResNet-18, for small images."""
    widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
    pairs = pairwise(widths)
    blocks = [Residual(a, b, 1 if a == b else 2) for a, b in pairs]
    stem = nn.Conv2d(3, 64, 3, 1, 1)
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


def mlp(width: int = 700, inputs: int = 784, classes: int = 10) -> nn.Module:
    """Three layers."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)
    )


@dataclass(frozen=True)
class Case:
    """A network and the inputs of one batch."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    batch_size: int
    shape: str

    def loader(self, batches: int) -> DataLoader:
        """The same random samples in each batch."""
        x, y = self.inputs(self.batch_size), torch.randint(10, (self.batch_size,))
        data = TensorDataset(x.repeat(batches, *[1] * (x.ndim - 1)), y.repeat(batches))
        return DataLoader(data, self.batch_size)


def texts(length: int, words: int = 30522) -> Callable[[int], Tensor]:
    return lambda samples: torch.randint(words, (samples, length))


CASES = {
    "mlp": Case("MLP", mlp, lambda n: torch.randn(n, 784), 128, "128"),
    "cnn": Case("CNN like ResNet-18", resnet, lambda n: torch.randn(n, 3, 32, 32), 32, "32 × 32×32"),
    "transformer": Case("transformer like MiniLM-L6", Transformer, texts(64), 16, "16 × 64 tokens"),
    "distilbert": Case(
        "transformer like DistilBERT", lambda: Transformer(768), texts(64), 16, "16 × 64 tokens"
    ),
    "transformer-large-batch": Case(
        "transformer like DistilBERT", lambda: Transformer(768), texts(128), 32, "32 × 128 tokens"
    ),
    "small-transformer": Case(
        "small transformer", lambda: Transformer(256, 2, 4, 1000), texts(32, 1000), 16, "16 × 32 tokens"
    ),
}
