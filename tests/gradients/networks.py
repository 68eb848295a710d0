"""Small networks with one difficulty each for per-sample gradients; all take a batch of ``N``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

Make = Callable[[], nn.Module]
N, CLASSES = 6, 4


class TransformerBlock(nn.Module):
    """Packed attention projections are used outside any Linear's forward."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=batch_first)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.block(x) if self.batch_first else self.block(x.transpose(0, 1)).transpose(0, 1)
        return self.head(h.mean(1))


class TiedLanguageModel(nn.Module):
    """One matrix is both the embedding and the output projection."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(CLASSES, 5, padding_idx=0)
        self.inner = nn.Linear(5, 5)
        self.functional = functional
        self.project = nn.Linear(5, CLASSES)
        self.project.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = torch.tanh(self.inner(self.embed(tokens)))
        return F.linear(h, self.embed.weight) if self.functional else self.project(h)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5, batch_first=True)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Positions(nn.Module):
    """A position table is looked up once and broadcast over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.table(torch.arange(x.shape[1]))).tanh().mean(1))


class Vision(nn.Module):
    """Tables that are plain parameters, as in a vision transformer, and one looked up with a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, 1, 3))
        self.places = nn.Parameter(torch.randn(1, 6, 3))
        self.columns = nn.Parameter(torch.randn(6, 3))
        self.rows = nn.Embedding(6, 3)
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.start.expand(len(x), -1, -1), self.body(x)], 1) + self.places
        x = (x + self.rows(torch.arange(6)[None])).tanh()
        x = (torch.add(x, self.columns) + self.columns).tanh()  # used twice
        return self.head(x.mean(1))


class Amplified(nn.Module):
    """Shared tensors whose sums do not hold their cotangents, one of them nearly."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.gate = nn.Embedding(5, 3), nn.Embedding(5, 3)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.shift = nn.Parameter(torch.randn(N, 3))
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        where = torch.arange(5)
        x = torch.add(x, self.table(where), alpha=1.001) + self.scale
        x = (x * self.gate(where)).tanh().mean(1)
        return self.head((x * self.shift.sum(0)).tanh())


class SelfAttention(nn.Module):
    """With masks of padding and of scores, for all alike or one for each head of each sample."""

    def __init__(self, per_head: bool = True, use_weights: bool = False, **how: bool) -> None:
        super().__init__()
        self.per_head = per_head
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **how)
        self.head, self.use_weights = nn.Linear(8, CLASSES), use_weights

    def forward(self, x: Tensor) -> Tensor:
        padding = torch.arange(x.shape[1]) >= 2 + (x[:, :1, 0] > 0).long()  # depends on the sample
        scores = torch.linspace(-1, 1, 4 * x.shape[1] ** 2, dtype=x.dtype).view(4, x.shape[1], -1)
        kinds = (x[:, 0, 1] > 0).long()[:, None] * 2 + torch.arange(2)
        scores = scores[kinds].flatten(0, 1) if self.per_head else scores[0]
        y, weights = self.attention(x, x, x, padding, attn_mask=scores)
        return self.head((y.tanh() + (weights.square().sum(2)[..., None] if self.use_weights else 0)).mean(1))


class CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x[:, :2], x[:, :2], need_weights=False)[0].tanh().mean(1))


class Shared(nn.Module):
    """One layer called twice: its per-sample gradients add before they are squared."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).relu_())


class Branching(nn.Module):
    """Python control flow on values: vmap cannot follow it. The scale has no layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, CLASSES)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale
        return self.head(x) if x.sum().item() > -1e9 else -self.head(x)


class Scaled(nn.Module):
    """A module of the user's own, with a keyword."""

    def __init__(self, branching: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.branching = branching

    def forward(self, x: Tensor, *, shift: Tensor) -> Tensor:
        if self.branching and x.sum().item() > 1e9:
            return x
        return (x * self.scale + shift).sin()


class Custom(nn.Module):
    def __init__(self, branching: bool = False) -> None:
        super().__init__()
        self.inner = Scaled(branching)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.inner(x, shift=x), shift=torch.ones(4, dtype=x.dtype)))


class TimeFirst(nn.Module):
    """As many steps as samples, time first, and the final state is what is read."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 5, num_layers=2)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x.transpose(0, 1))[1][-1])


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, stride=2, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, (3, 2), groups=2, dilation=(1, 2), padding="same", padding_mode="circular"),
        nn.GroupNorm(3, 6),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(6 * 9, CLASSES),
    )


def synchronised() -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(convolutional())


def with_instance_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, stride=2, bias=False),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4 * 9, CLASSES),
    )


def one_dimensional() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 4, 3, stride=2),
        nn.BatchNorm1d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.LayerNorm(8),
        nn.Linear(8, CLASSES),
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Linear(7, CLASSES))


def sequence_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm((5, 4)), nn.Flatten(), nn.Linear(20, CLASSES))


class Ids(nn.Module):
    """One index per sample, without a dimension for time."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids))


class Ungated(nn.Module):
    """A parameter that lies on a layer and is used by the module around it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, CLASSES)
        self.layer.gate = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.layer.gate


def with_more(make: Make, change: Callable[[nn.Module], object]) -> Make:
    """A network with more parameters on its first layer than the class of that layer has."""

    def build() -> nn.Module:
        net = make()
        change(net[0])
        return net

    return build


def pruned(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", 0.4)
    prune.random_unstructured(layer, "bias", 0.4)


def gain_on_outputs(layer: nn.Module) -> None:
    layer.gain = nn.Parameter(torch.rand(7) + 0.5)
    layer.register_forward_hook(lambda module, inputs, outputs: outputs * module.gain)


def scale_of_inputs(layer: nn.Module) -> None:
    layer.scale = nn.Parameter(torch.rand(5) + 0.5)
    layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] * module.scale,))


def pruned_attention() -> nn.Module:
    net = SelfAttention(False)
    prune.l1_unstructured(net.attention, "in_proj_weight", 0.4)
    return net


def normalized_lstm() -> nn.Module:
    net = Recurrent()
    weight_norm(net.lstm, "weight_hh_l0")
    return net


def pruned_table() -> nn.Module:
    net = Ids()
    prune.l1_unstructured(net.table, "weight", 0.4)
    return net


def images() -> Tensor:
    return torch.randn(N, 2, 6, 6)


def tokens() -> Tensor:
    return torch.randint(CLASSES, (N, 5))


NETWORKS = {
    "mlp": (mlp, lambda: torch.randn(N, 5)),
    "cnn": (convolutional, lambda: torch.randn(N, 2, 6, 6)),
    "cnn, synchronised": (synchronised, images),
    "cnn, channels last": (lambda: convolutional().to(memory_format=torch.channels_last), images),
    "cnn, instance norm": (with_instance_norm, images),
    "cnn1d": (one_dimensional, lambda: torch.randn(N, 3, 5)),
    "sequence norm": (sequence_norm, lambda: torch.randn(N, 5, 3)),
    "transformer": (TransformerBlock, lambda: torch.randn(N, 5, 8)),
    # As many positions as samples: a mix-up of the two would not show in any shape.
    "transformer, time first": (lambda: TransformerBlock(False), lambda: torch.randn(N, N, 8)),
    "lstm": (Recurrent, lambda: torch.randn(N, 5, 3)),
    "gru, time first": (TimeFirst, lambda: torch.randn(N, 5, 3)),
    "gru, square": (TimeFirst, lambda: torch.randn(N, N, 3)),
    "custom": (Custom, lambda: torch.randn(N, 4)),
    "branching submodule": (lambda: Custom(True), lambda: torch.randn(N, 4)),
    "ids": (Ids, lambda: torch.randint(7, (N,))),
    "positions": (Positions, lambda: torch.randn(N, 5, 3)),
    "positions, square": (Positions, lambda: torch.randn(N - 1, N - 1, 3)),
    "vision": (Vision, lambda: torch.randn(N, 5, 3)),
    "vision, one sample": (Vision, lambda: torch.randn(1, 5, 3)),
    "amplified": (Amplified, lambda: torch.randn(N, 5, 3)),
    "attention, masked": (SelfAttention, lambda: torch.randn(N, 5, 8)),
    "attention, bare": (lambda: SelfAttention(bias=False), lambda: torch.randn(N, 5, 8)),
    "attention, weights": (lambda: SelfAttention(False, True), lambda: torch.randn(N, 5, 8)),
    "attention, more keys": (
        lambda: SelfAttention(False, add_bias_kv=True, add_zero_attn=True),
        lambda: torch.randn(N, 5, 8),
    ),
    "attention, crossed": (CrossAttention, lambda: torch.randn(N, 5, 8)),
    "shared layer": (Shared, lambda: torch.randn(N, 4)),
    "branching": (Branching, lambda: torch.randn(N, 4)),
    "pruned": (with_more(mlp, pruned), lambda: torch.randn(N, 5)),
    "pruned, convolution": (with_more(convolutional, lambda conv: prune.identity(conv, "weight")), images),
    "pruned, table": (pruned_table, lambda: torch.randint(7, (N,))),
    "pruned, attention": (pruned_attention, lambda: torch.randn(N, 5, 8)),
    "weight norm": (with_more(mlp, weight_norm), lambda: torch.randn(N, 5)),
    "weight norm, lstm": (normalized_lstm, lambda: torch.randn(N, 5, 3)),
    "weight norm, parametrized": (
        with_more(mlp, parametrizations.weight_norm),
        lambda: torch.randn(N, 5),
    ),
    "spectral norm": (with_more(mlp, spectral_norm), lambda: torch.randn(N, 5)),
    "spectral norm, convolution": (with_more(convolutional, spectral_norm), images),
    "spectral norm, parametrized": (
        with_more(mlp, parametrizations.spectral_norm),
        lambda: torch.randn(N, 5),
    ),
    "gain on outputs": (with_more(mlp, gain_on_outputs), lambda: torch.randn(N, 5)),
    "scale of inputs": (with_more(mlp, scale_of_inputs), lambda: torch.randn(N, 5)),
    "gate on a layer": (Ungated, lambda: torch.randn(N, 5)),
    "tied embedding": (lambda: TiedLanguageModel(False), tokens),
    "tied, functional": (lambda: TiedLanguageModel(True), tokens),
}
