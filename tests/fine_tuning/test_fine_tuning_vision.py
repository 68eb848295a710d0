"""Pretrained vision models in a sequence of tasks, with and without a rule that remembers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor
from torch.nn import functional as F

from cl_callbacks import (
    EWC,
    MAS,
    EpochBoundaries,
    KFACLaplace,
    SequentialFineTuner,
    SynapticIntelligence,
    VisionTasks,
)
from cl_callbacks.functional.fisher import fisher_cotangents
from cl_callbacks.gradients.per_sample import PerSampleGradients
from tests.small import make_trainer
from tests.tiny_vision import four_digits, tiny_resnet, tiny_vit

RULES: dict[str, Any] = {
    "none": lambda: [],
    "ewc": lambda: [EWC(10.0)],
    "si": lambda: [SynapticIntelligence(1.0)],
    "mas": lambda: [MAS(1.0)],
    "kfac": lambda: [KFACLaplace(1.0)],
}
HEADS = [{f"heads.{k}.weight", f"heads.{k}.bias"} for k in (0, 1)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.manual_seed(1)
    return {
        "vit": tiny_vit(tmp_path_factory.mktemp("vit")),
        "resnet": tiny_resnet(tmp_path_factory.mktemp("resnet")),
    }


def digits(folder: str, **options: Any) -> VisionTasks:
    settings = {"processor": folder, "task_column": "side", "batch_size": 4, "epochs_per_task": 1}
    return VisionTasks(four_digits(), **(settings | options))


def tuner(folder: str, **options: Any) -> SequentialFineTuner:
    return SequentialFineTuner(folder, kind="image_classification", **({"lr": 1e-2} | options))


def fit(model: SequentialFineTuner, data: VisionTasks, *callbacks: Callback) -> Trainer:
    seed_everything(0, verbose=False)
    epochs = data.epochs_per_task or 1
    trainer = make_trainer(
        *callbacks, EpochBoundaries(epochs), num_sanity_val_steps=0, max_epochs=epochs * len(data),
        reload_dataloaders_every_n_epochs=1,
    )  # fmt: skip
    trainer.fit(model, data)
    return trainer


def values(model: SequentialFineTuner) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.network.named_parameters()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


class Before(Callback):
    """The weights at the start of each task."""

    def __init__(self) -> None:
        self.tasks: list[dict[str, Tensor]] = []

    def on_task_start(self, trainer: Trainer, pl_module: Any, task: int) -> None:
        self.tasks.append(values(pl_module))


def inputs(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name != "labels"}


# -- with every rule -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rule"),
    [("vit", rule) for rule in RULES] + [("resnet", "none"), ("resnet", "ewc"), ("resnet", "si")],
)
def test_a_batch_trains_its_own_head_alone(models: dict[str, str], name: str, rule: str) -> None:
    model, before = tuner(models[name]), Before()
    trainer = fit(model, digits(models[name]), *RULES[rule](), before)
    in_first, in_second = moved(*before.tasks), moved(before.tasks[1], values(model))
    assert HEADS[0] <= in_first
    assert not HEADS[1] & in_first
    assert HEADS[1] <= in_second
    assert not HEADS[0] & in_second
    patches, layer = "encoder.embeddings.patch_embeddings.projection.weight", "encoder.embeddings.cls_token"
    if name == "resnet":
        patches = layer = "encoder.embedder.embedder.convolution.weight"
    assert {patches, layer} <= in_second
    assert {"val_acc/dataloader_idx_0", "val_acc/dataloader_idx_1"} <= set(trainer.callback_metrics)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_the_head_that_transformers_gives_a_model(models: dict[str, str], name: str, tmp_path: Path) -> None:
    model = tuner(models[name])
    fit(model, digits(models[name], scenario="class"), EWC(1.0))
    heads = {n: p for n, p in model.network.named_parameters() if n.startswith("classifier") and p.ndim == 2}
    assert [p.shape[0] for p in heads.values()] == [4]
    model.network.save_pretrained(tmp_path)
    assert tuner(str(tmp_path), num_labels=7).network.config.num_labels == 7  # a head of other labels


def test_a_strong_rule_keeps_the_answers_of_the_first_task(models: dict[str, str]) -> None:
    data = digits(models["vit"], epochs_per_task=3)
    batch = inputs(next(iter(data.val_dataloader()[0])))

    class Answers(Callback):
        def on_task_start(self, trainer: Trainer, pl_module: Any, task: int) -> None:
            self.at_start = pl_module(**batch).logits.detach()

    def distance(*rules: Callback) -> Tensor:
        model, answers = tuner(models["vit"], num_labels=[2, 2]), Answers()
        fit(model, data, *rules, answers)
        return (model(**batch).logits - answers.at_start).norm()

    assert distance(EWC(1e6, proximal=True)) < 0.5 * distance()


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_the_fisher_is_that_of_single_images(models: dict[str, str], name: str) -> None:
    model = tuner(models[name], num_labels=[2, 2]).eval()
    data = digits(models[name])
    data.current_task = 1
    batch = next(iter(data.train_dataloader()))
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad and "heads.0" not in n}
    rule = EWC(1.0)
    found, n = PerSampleGradients(model, trained, lambda b: rule.outputs_and_labels(model, b)).sums(
        batch, lambda outputs, labels: fisher_cotangents(outputs, labels, estimator="exact")
    )
    assert n == 4
    expected = [torch.zeros_like(p) for p in trained.values()]
    for i in range(n):
        sample = {k: v if k == "task_id" else v[i : i + 1] for k, v in batch.items()}
        log_p = F.log_softmax(model(**inputs(sample)).logits[0], -1)
        for one in log_p:
            gradients = torch.autograd.grad(one, list(trained.values()), retain_graph=True)
            for total, g in zip(expected, gradients, strict=True):
                total.add_(one.exp().detach() * g.square())
    for parameter, a, b in zip(trained, found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-8, msg=parameter)


# -- vectors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_tokens_become_their_mean_or_the_first_of_them(models: dict[str, str], pooling: Any) -> None:
    model = tuner(models["vit"], num_labels=3, pooling=pooling).eval()
    batch = inputs(next(iter(digits(models["vit"], scenario="class").train_dataloader())))
    states = model.network.encoder(**batch).last_hidden_state
    vector = states.mean(1) if pooling == "mean" else states[:, 0]
    torch.testing.assert_close(model(**batch).logits, model.network.heads[0](vector))


def test_a_map_becomes_what_the_network_makes_of_it(models: dict[str, str]) -> None:
    model = tuner(models["resnet"], num_labels=3, pooling="mean").eval()
    batch = inputs(next(iter(digits(models["resnet"], scenario="class").train_dataloader())))
    vector = model.network.encoder(**batch).pooler_output.flatten(1)
    assert vector.shape == (4, 12)
    torch.testing.assert_close(model(**batch).logits, model.network.heads[0](vector))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("vit", {"pooling": "last"}, "use 'mean' or 'first'"),
        ("resnet", {"pooling": "first", "num_labels": 3}, "is for tokens, and this network makes a map"),
    ],
)
def test_pooling_that_cannot_work_is_said(
    models: dict[str, str], name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        tuner(models[name], **options)


# -- low-rank adapters -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "targets"), [("vit", ["q_proj", "v_proj"]), ("vit", "all-linear"), ("resnet", ["convolution"])]
)
@pytest.mark.parametrize("scenario", ["task", "class"])
def test_low_rank_adapters_and_heads_are_all_that_moves(
    models: dict[str, str], name: str, targets: Any, scenario: Any
) -> None:
    model, before = tuner(models[name], lora_rank=2, lora_targets=targets), Before()
    fit(model, digits(models[name], scenario=scenario, epochs_per_task=2), EWC(1.0), before)
    changed = moved(before.tasks[0], values(model))
    assert all("lora_" in n or "heads" in n or "classifier" in n for n in changed)
    assert any("lora_A" in n for n in changed)
    assert any("heads.1" in n if scenario == "task" else "classifier" in n for n in changed)


def test_gradients_are_the_same_when_activations_are_computed_again(models: dict[str, str]) -> None:
    batch = next(iter(digits(models["vit"]).train_dataloader()))

    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = tuner(models["vit"], num_labels=[2, 2], gradient_checkpointing=checkpointing)
        assert model.network.encoder.is_gradient_checkpointing == checkpointing
        F.cross_entropy(*model._logits_and_labels(batch)).backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    kept, again = gradients(False), gradients(True)
    assert kept.keys() == again.keys()
    for name, gradient in kept.items():
        assert torch.allclose(gradient, again[name], atol=1e-7), name
