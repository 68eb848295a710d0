"""FIRE against singular value decompositions, and which matrices it takes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from cl_callbacks import FIRE, EpochBoundaries
from cl_callbacks.rules.renewal.layer_matrices import LayerMatrices
from tests.references.renewal import nearest_isometry
from tests.small import CLASSES, FEATURES, Net, fit_tasks, loader, make_trainer, plain_net, task


def renewed(net: nn.Module, rule: FIRE) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters before and after the beginning of a second task, in which the optimizer moves nothing."""
    model = Net(net.double(), lambda p: torch.optim.SGD(p, lr=0.0))
    before = {name: p.detach().clone() for name, p in model.net.named_parameters()}
    x, y = task(0)
    make_trainer(rule, EpochBoundaries(1), max_epochs=2).fit(model, loader(x.double(), y))
    return before, {name: p.detach() for name, p in model.net.named_parameters()}


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_linear_layers(share: float) -> None:
    before, after = renewed(plain_net(), FIRE(share, iterations=None))
    for name, outputs, inputs in (("0.weight", 8, FEATURES), ("2.weight", CLASSES, 8)):
        isometry = math.sqrt(outputs / inputs) * nearest_isometry(before[name])
        expected = share * isometry + (1 - share) * before[name]
        torch.testing.assert_close(after[name], expected, rtol=0, atol=1e-9)
    assert all(torch.equal(before[name], after[name]) for name in ("0.bias", "2.bias"))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)),
        nn.Conv2d(1, 4, (1, 2)),
        nn.Conv2d(4, 6, (2, 1), groups=2),
        nn.ConvTranspose2d(6, 4, (2, 2), groups=2),
        nn.Conv2d(4, 4, 1, groups=4),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(24, CLASSES),
    )


def test_each_place_of_a_kernel_and_each_group_has_its_matrix() -> None:
    torch.manual_seed(0)
    before, after = renewed(convolutions(), FIRE(iterations=None))
    scales = {"1": math.sqrt(4 / 1) / 2, "2": math.sqrt(3 / 2) / 2, "3": math.sqrt(2 / 3) / 4}
    for name, groups in (("1", 1), ("2", 2), ("3", 2)):
        old, new = before[f"{name}.weight"], after[f"{name}.weight"]
        for some, others in zip(old.chunk(groups), new.chunk(groups), strict=True):
            for i in range(old.shape[2]):
                for j in range(old.shape[3]):
                    expected = scales[name] * nearest_isometry(some[:, :, i, j])
                    torch.testing.assert_close(others[:, :, i, j], expected, rtol=0, atol=1e-9)
    untouched = [name for name in before if torch.equal(before[name], after[name])]
    assert untouched == [
        "1.bias", "2.bias", "3.bias", "4.weight", "4.bias", "5.weight", "5.bias", "7.bias",
    ]  # fmt: skip


class OwnAttention(nn.Module):
    """As many networks write it."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        if fused:
            self.qkv = nn.Linear(4, 12)
        else:
            self.to_q, self.key, self.v_proj = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.out = nn.Linear(4, 4)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.table.weight


class Adapted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base_layer, self.lora_A = nn.Linear(4, 4), nn.Linear(4, 2)


def taken(net: nn.Module, everything: bool = False) -> list[tuple[str, int, int]]:
    matrices = LayerMatrices(net, dict(net.named_parameters()), everything)
    for matrix in matrices.found:
        assert matrix.of(matrix.parameter.detach()).shape[-2:].numel() > 0
    names = {name for name, p in net.named_parameters() if p.ndim > 1}
    assert {m.name for m in matrices.found} | matrices.left_out.keys() == names
    return [(m.name, m.start, m.stop) for m in matrices.found]


@pytest.mark.parametrize(
    ("net", "found", "everything"),
    [
        (lambda: OwnAttention(False), ["to_q", "key"], ["to_q", "key", "v_proj", "out"]),
        (lambda: nn.MultiheadAttention(4, 2, kdim=3), ["q_proj_weight", "k_proj_weight"], None),
        (lambda: nn.Sequential(plain_net(), OwnAttention(False)), ["0.0", "0.2", "1.to_q", "1.key"], None),
        (lambda: torch.compile(OwnAttention(False)), ["_orig_mod.to_q", "_orig_mod.key"], None),
        (Tied, [], []),
        (Adapted, ["base_layer"], ["base_layer"]),
    ],
)
def test_queries_and_keys_of_attention(net: Any, found: list[str], everything: list[str] | None) -> None:
    assert [name.removesuffix(".weight") for name, _, _ in taken(net())] == found
    if everything is not None:
        assert [name.removesuffix(".weight") for name, _, _ in taken(net(), everything=True)] == everything


@pytest.mark.parametrize(
    ("net", "name"),
    [
        (lambda: nn.MultiheadAttention(4, 2), "in_proj_weight"),
        (lambda: OwnAttention(True), "qkv.weight"),
    ],
)
def test_queries_and_keys_that_share_a_parameter_are_two_matrices(net: Any, name: str) -> None:
    assert taken(net()) == [(name, 0, 4), (name, 4, 8)]
    assert taken(net(), everything=True)[:3] == [(name, 0, 4), (name, 4, 8), (name, 8, 12)]


def test_a_transformer_keeps_values_and_outputs() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(FEATURES, 2, 8, batch_first=True)
            self.head = nn.Linear(FEATURES, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x[:, None])[:, 0])

    before, after = renewed(Encoder(), FIRE(iterations=None))
    name, size = "layer.self_attn.in_proj_weight", FEATURES
    for part in range(2):
        rows = slice(part * size, (part + 1) * size)
        torch.testing.assert_close(after[name][rows], nearest_isometry(before[name][rows]), rtol=0, atol=1e-9)
    assert torch.equal(after[name][2 * size :], before[name][2 * size :])
    assert torch.equal(*(found["layer.self_attn.out_proj.weight"] for found in (before, after)))
    assert not torch.equal(*(found["layer.linear1.weight"] for found in (before, after)))


def test_names_select_as_everywhere() -> None:
    before, after = renewed(plain_net(), FIRE(exclude=r"2\."))
    assert [n for n in before if not torch.equal(before[n], after[n])] == ["0.weight"]


class Ends(Callback):
    def __init__(self) -> None:
        self.found: list[float] = []

    def on_task_end(self, trainer: Any, pl_module: Any, task: int) -> None:
        self.found.append(torch.linalg.svdvals(pl_module.net[0].weight.detach())[-1].item())


def test_the_last_task_ends_with_the_weights_that_have_learned_it() -> None:
    ends, model = Ends(), Net(plain_net())
    fit_tasks(model, FIRE(), ends, tasks=2)
    assert torch.linalg.svdvals(model.net[0].weight.detach())[-1].item() == ends.found[-1]


def test_a_network_without_matrices_is_refused() -> None:
    net = nn.Sequential(nn.Embedding(5, FEATURES), nn.Flatten())
    with pytest.raises(MisconfigurationException, match=r"none among .* net.0.weight \(not of a linear"):
        make_trainer(FIRE()).fit(Net(net), loader(*task(0)))


def test_what_is_left_alone_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    renewed(convolutions(), FIRE())
    said = [record.message for record in caplog.records if "leaves alone" in record.message]
    assert said == ["fire leaves alone net.4.weight (a depthwise convolution)"]
