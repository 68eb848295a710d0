"""Pretrained transformers in a sequence of tasks, with and without a rule that remembers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from cl_callbacks import (
    EWC,
    MAS,
    Distillation,
    EpochBoundaries,
    ExperienceReplay,
    KFACLaplace,
    RWalk,
    SequentialFineTuner,
    SynapticIntelligence,
    TextTasks,
)
from cl_callbacks.functional.fisher import fisher_cotangents
from cl_callbacks.gradients.per_sample import PerSampleGradients
from tests.small import make_trainer
from tests.tiny_transformers import requests, tagged_words, tiny_encoder, tiny_language_model

RULES: dict[str, Any] = {
    "none": lambda: [],
    "ewc": lambda: [EWC(10.0, estimator="sampled")],
    "si": lambda: [SynapticIntelligence(1.0)],
    "mas": lambda: [MAS(1.0)],
    "rwalk": lambda: [RWalk(1.0)],
    "kfac": lambda: [KFACLaplace(1.0)],
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(1)
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(1)
    return tiny_language_model(tmp_path_factory.mktemp("language_model"))


def intents(folder: str, **options: Any) -> TextTasks:
    settings = {"tokenizer": folder, "label_column": "intent", "task_column": "domain", "batch_size": 8}
    return TextTasks(requests(), **(settings | {"epochs_per_task": 1} | options))


def tags(folder: str, **options: Any) -> TextTasks:
    return TextTasks(
        tagged_words(), tokenizer=folder, kind="token_classification", text_column="tokens",
        label_column="tags", task_column="domain", epochs_per_task=1, **options,
    )  # fmt: skip


def texts(folder: str) -> TextTasks:
    return intents(folder, kind="causal_lm", scenario="domain")


def fit(model: SequentialFineTuner, data: TextTasks, *callbacks: Callback, **options: Any) -> Trainer:
    seed_everything(0, verbose=False)
    epochs = data.epochs_per_task or 1
    settings = {"max_epochs": epochs * len(data), "reload_dataloaders_every_n_epochs": 1}
    trainer = make_trainer(
        *callbacks, EpochBoundaries(epochs), num_sanity_val_steps=0, **(settings | options)
    )
    trainer.fit(model, data)
    return trainer


def values(model: SequentialFineTuner) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.network.named_parameters()}


def moved(before: dict[str, Tensor], model: SequentialFineTuner) -> set[str]:
    return {name for name, value in values(model).items() if not torch.equal(value, before[name])}


class Before(Callback):
    """The weights at the start of each task."""

    def __init__(self) -> None:
        self.tasks: list[dict[str, Tensor]] = []

    def on_task_start(self, trainer: Trainer, pl_module: Any, task: int) -> None:
        self.tasks.append(values(pl_module))


# -- every kind, with every rule -------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_a_batch_trains_its_own_head_alone(encoder: str, rule: str) -> None:
    model, before = SequentialFineTuner(encoder, num_labels=[2, 2], lr=1e-2), Before()
    trainer = fit(model, intents(encoder), *RULES[rule](), before)
    first, second = ({f"heads.{k}.weight", f"heads.{k}.bias"} for k in (0, 1))
    after_first = {n for n, value in before.tasks[1].items() if not torch.equal(value, before.tasks[0][n])}
    assert first <= after_first
    assert not second & after_first
    in_second = moved(before.tasks[1], model)
    assert second <= in_second
    assert not first & in_second
    assert "encoder.encoder.layer.0.attention.self.query.weight" in in_second
    assert {"val_acc/dataloader_idx_0", "val_acc/dataloader_idx_1"} <= set(trainer.callback_metrics)


@pytest.mark.parametrize(("scenario", "rule"), [("task", "none"), ("task", "ewc"), ("class", "mas")])
def test_words_with_labels(encoder: str, scenario: Any, rule: str) -> None:
    data = tags(encoder, scenario=scenario)
    model = SequentialFineTuner(encoder, kind="token_classification", lr=1e-2)
    trainer = fit(model, data, *RULES[rule]())
    assert model.heads == ([3, 3] if scenario == "task" else [3])
    assert 0 <= trainer.callback_metrics["val_acc/dataloader_idx_1"] <= 1


@pytest.mark.parametrize("rule", ["none", "ewc"])
def test_language_models(language_model: str, rule: str) -> None:
    model = SequentialFineTuner(language_model, kind="causal_lm", lr=1e-2)
    untrained = make_trainer().validate(model, texts(language_model), verbose=False)
    trained = fit(model, texts(language_model), *RULES[rule]()).callback_metrics
    for k in (0, 1):
        name = f"val_perplexity/dataloader_idx_{k}"
        assert 1 < trained[name] < untrained[k][name]


@pytest.mark.parametrize("rule", ["ewc"])
def test_the_head_that_transformers_gives_a_model(encoder: str, language_model: str, rule: str) -> None:
    for folder, name in [(encoder, "classifier.weight"), (language_model, "score.weight")]:
        model = SequentialFineTuner(folder, lr=1e-2)
        fit(model, intents(folder, scenario="class"), *RULES[rule]())
        assert dict(model.network.named_parameters())[name].shape == (4, 16)


def test_a_strong_rule_keeps_the_answers_of_the_first_task(encoder: str) -> None:
    data = intents(encoder, epochs_per_task=3)
    batch = {k: v for k, v in next(iter(data.val_dataloader()[0])).items() if k != "labels"}

    class Answers(Callback):
        def on_task_start(self, trainer: Trainer, pl_module: Any, task: int) -> None:
            self.at_start = pl_module(**batch).logits.detach()

    def distance(*rules: Callback) -> Tensor:
        model, answers = SequentialFineTuner(encoder, num_labels=[2, 2], lr=1e-2), Answers()
        fit(model, data, *rules, answers)
        return (model(**batch).logits - answers.at_start).norm()

    assert distance(EWC(1e6, estimator="sampled", proximal=True)) < 0.5 * distance()


class OfTheFirstHead(Distillation):
    """What there is to compare in the second of two tasks."""

    def outputs(self, pl_module: Any, batch: Any) -> Any:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return pl_module(**inputs | {"task_id": 0}).logits, batch["labels"]


@pytest.mark.parametrize("kind", ["sequence_classification", "token_classification"])
def test_distillation_compares_the_heads_of_earlier_tasks(encoder: str, kind: Any) -> None:
    """One of which, the known or the new one, has more classes; in texts of several lengths."""
    texts = kind == "sequence_classification"
    data = intents(encoder, batch_size=3) if texts else tags(encoder, batch_size=1)

    def learned(*rules: Callback) -> dict[str, Tensor]:
        seed_everything(0, verbose=False)
        model = SequentialFineTuner(encoder, kind=kind, num_labels=[2, 5] if texts else [7, 3], lr=1e-2)
        fit(model, data, *rules)
        return values(model)

    found, wanted, without = learned(Distillation()), learned(OfTheFirstHead()), learned()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert max((found[n] - without[n]).abs().max() for n in found) > 1e-3


def test_the_outputs_of_all_heads(encoder: str) -> None:
    model = SequentialFineTuner(encoder, num_labels=[2, 3])
    batch = next(iter(intents(encoder).val_dataloader()[0]))
    outputs, labels = model.outputs_of_all_heads(batch)
    first = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    assert outputs.shape == (len(first), 2, 3)
    torch.testing.assert_close(outputs[:, 0, :2], first)
    assert (outputs[:, 0, 2] == -1e4).all()
    assert torch.equal(labels, batch["labels"][:, None, None].expand(-1, 2, 1))
    assert SequentialFineTuner(encoder, num_labels=2).outputs_of_all_heads(batch) is None


def test_each_sample_may_have_a_head_of_its_own(encoder: str) -> None:
    model = SequentialFineTuner(encoder, num_labels=[2, 3, 2]).eval()
    inputs = dict(next(iter(intents(encoder).val_dataloader()[0])))
    inputs.pop("labels"), inputs.pop("task_id")
    own = [model(task_id=k, **inputs).logits for k in range(3)]
    numbers = [i % 2 * 2 for i in range(len(own[0]))]
    found = model(task_id=numbers, **inputs).logits
    torch.testing.assert_close(found, torch.stack([own[k][i] for i, k in enumerate(numbers)]))
    found = model(task_id=[0, *[1] * (len(numbers) - 1)], **inputs).logits
    torch.testing.assert_close(found[1:], own[1][1:])
    assert (found[0, 2] == -1e4) and torch.equal(found[0, :2], own[0][0])
    assert torch.equal(model(task_id=[1] * len(numbers), **inputs).logits, own[1])


@pytest.mark.parametrize("joined", [False, True])
def test_texts_of_all_tasks_are_rehearsed_in_one_batch(encoder: str, joined: bool) -> None:
    class Counting(SequentialFineTuner):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            of_each = batch["task_id"]
            seen.append({of_each} if isinstance(of_each, int) else set(of_each))
            return super().training_step(batch, batch_idx)

    seen: list[set[int]] = []
    model, data = Counting(encoder, num_labels=[2, 2]), intents(encoder, batch_size=2)
    trainer = fit(model, data, ExperienceReplay(50, batch_size=6, joined=joined))
    steps = trainer.global_step
    assert len(seen) == 1 + (steps if joined else 2 * steps - 1)  # the first batch is tried, and alone
    assert {0, 1} in seen


def test_the_fisher_of_an_encoder_with_heads_is_that_of_single_samples(encoder: str) -> None:
    model = SequentialFineTuner(encoder, num_labels=[2, 2]).eval()
    data = intents(encoder)
    data.current_task = 1
    batch = next(iter(data.train_dataloader()))
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad and "heads.0" not in n}
    rule = EWC(1.0)
    found, n = PerSampleGradients(model, trained, lambda b: rule.outputs_and_labels(model, b)).sums(
        batch, lambda outputs, labels: fisher_cotangents(outputs, labels, estimator="empirical")
    )
    assert n == 8
    expected = [torch.zeros_like(p) for p in trained.values()]
    for i in range(n):
        sample = {k: v if k == "task_id" else v[i : i + 1] for k, v in batch.items()}
        logits = model(**{k: v for k, v in sample.items() if k != "labels"}).logits
        loss = F.cross_entropy(logits, sample["labels"])
        for total, g in zip(expected, torch.autograd.grad(loss, list(trained.values())), strict=True):
            total.add_(g.square())
    for name, a, b in zip(trained, found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-8, msg=name)


# -- measures --------------------------------------------------------------------------------------


def test_accuracy_is_the_share_of_right_labels_of_each_loader(encoder: str) -> None:
    data = intents(encoder, eval_batch_size=3)
    model = SequentialFineTuner(encoder, num_labels=data.num_labels).eval()
    found = make_trainer().test(model, data, verbose=False)
    for k, loader in enumerate(data.test_dataloader()):
        right = [
            (model(**{n: v for n, v in b.items() if n != "labels"}).logits.argmax(1) == b["labels"]).tolist()
            for b in loader
        ]
        flat = [one for batch in right for one in batch]
        assert found[k][f"test_acc/dataloader_idx_{k}"] == pytest.approx(sum(flat) / len(flat))


def test_perplexity_and_loss_are_those_of_transformers(language_model: str) -> None:
    data = texts(language_model)
    model = SequentialFineTuner(language_model, kind="causal_lm").eval()
    batch = next(iter(data.val_dataloader()[0]))
    loss = model.network(**batch).loss
    assert torch.allclose(model.training_step(batch, 0), loss)
    found = make_trainer().validate(model, data, verbose=False)
    assert found[0]["val_perplexity/dataloader_idx_0"] == pytest.approx(loss.exp().item(), rel=1e-4)


# -- what is trained, and how fast -----------------------------------------------------------------


def test_frozen_parameters_stay_and_others_move(encoder: str) -> None:
    model = SequentialFineTuner(encoder, num_labels=[2, 2], freeze=["embeddings", r"layer\.0"], lr=1e-2)
    before = values(model)
    fit(model, intents(encoder))
    frozen = {n for n in before if "embeddings" in n or "layer.0" in n or "pooler" in n}
    assert not any(p.requires_grad for n, p in model.network.named_parameters() if n in frozen)
    # What a softmax does not see: a shift of all keys alike.
    assert moved(before, model) | {"encoder.encoder.layer.1.attention.self.key.bias"} == set(
        before
    ) - frozen | {"encoder.encoder.layer.1.attention.self.key.bias"}


@pytest.mark.parametrize("num_labels", [[2, 2], 4])
def test_a_frozen_encoder_is_read_and_no_more(encoder: str, num_labels: Any) -> None:
    """In evaluation mode and without a graph, whatever sets the module to training."""
    model = SequentialFineTuner(encoder, num_labels=num_labels, freeze="encoder")
    network: Any = model.network
    modes, graphs = set(), set()

    def look(module: Any, args: Any, output: Any) -> None:
        modes.add(module.training)
        graphs.add(output.last_hidden_state.requires_grad)

    network.encoder.register_forward_hook(look)
    before = values(model)
    data = intents(encoder, scenario="task" if isinstance(num_labels, list) else "class", epochs_per_task=2)
    fit(model.train(), data, EWC(), Distillation(), ExperienceReplay(20))
    assert (modes, graphs) == ({False}, {False})
    assert model.training and network.heads.training and not network.encoder.training
    assert moved(before, model) == {name for name in before if name.startswith("heads")}
    assert network.pooling == "mean"


def test_an_encoder_is_frozen_for_labels_on_words_too(encoder: str) -> None:
    model = SequentialFineTuner(encoder, kind="token_classification", freeze="encoder")
    fit(model, tags(encoder))
    assert {name.partition(".")[0] for name, p in model.network.named_parameters() if p.requires_grad} == {
        "heads"
    }


def test_the_learning_rate_goes_with_what_is_trained(encoder: str, tmp_path: Path) -> None:
    ways: list[tuple[dict[str, Any], float]] = [
        ({}, 5e-5),
        ({"freeze": ["embeddings"]}, 5e-5),
        ({"lora_rank": 2}, 1e-3),
        ({"freeze": "encoder"}, 1e-2),
        ({"freeze": "encoder", "lr": 0.5}, 0.5),
    ]
    for options, lr in ways:
        model = SequentialFineTuner(encoder, num_labels=[2, 2], **options)
        assert model.configure_optimizers().param_groups[0]["lr"] == model.hparams["lr"] == lr
    trainer = make_trainer()
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = SequentialFineTuner.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert loaded.frozen_encoder and loaded.lr == 0.5


@pytest.mark.parametrize("rule", ["none", "ewc"])
def test_low_rank_adapters_and_heads_are_all_that_moves(encoder: str, rule: str) -> None:
    model = SequentialFineTuner(encoder, num_labels=[2, 2], lora_rank=2, lora_targets="all-linear", lr=1e-2)
    before = values(model)
    fit(model, intents(encoder, epochs_per_task=2), *RULES[rule]())
    changed = moved(before, model)
    assert all("lora_" in name or "heads" in name for name in changed)
    assert any("lora_A" in name for name in changed)
    assert {"heads.0.weight", "heads.1.weight"} <= changed


def test_low_rank_adapters_of_other_kinds(encoder: str, language_model: str) -> None:
    one_head = SequentialFineTuner(encoder, num_labels=4, lora_rank=2)
    fit(one_head, intents(encoder, scenario="class"), EWC(1.0))
    language = SequentialFineTuner(language_model, kind="causal_lm", lora_rank=2)
    fit(language, texts(language_model), EWC(1.0, estimator="sampled"))
    for model in (one_head, language):
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        assert any("lora_A" in name for name in trained)
        assert all("lora_" in name or "classifier" in name for name in trained)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_gradients_are_the_same_when_activations_are_computed_again(encoder: str, lora_rank: int) -> None:
    batch = next(iter(intents(encoder).train_dataloader()))

    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = SequentialFineTuner(
            encoder, num_labels=[2, 2], freeze=["embeddings"], lora_rank=lora_rank,
            gradient_checkpointing=checkpointing,
        )  # fmt: skip
        assert model.network.encoder.is_gradient_checkpointing == checkpointing
        F.cross_entropy(*model._logits_and_labels(batch)).backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    kept, again = gradients(False), gradients(True)
    assert kept.keys() == again.keys()
    for name, gradient in kept.items():
        assert torch.allclose(gradient, again[name], atol=1e-7), name


def test_dropout_is_on_in_training_only(encoder: str, tmp_path: Path) -> None:
    model = SequentialFineTuner(tiny_encoder(tmp_path, hidden_dropout_prob=0.5), num_labels=[2, 2])
    modes = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            modes.append(all(m.training for m in model.network.modules()))

        def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
            modes.append(any(m.training for m in model.network.modules()))

    fit(model, intents(encoder), Watch())
    assert modes == [True, False, False] * 2


def test_the_learning_rate_warms_up_in_each_task(encoder: str) -> None:
    rates = []

    class Rates(Callback):
        def on_before_zero_grad(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
            rates.append({group["lr"] for group in optimizer.param_groups})

    model = SequentialFineTuner(encoder, num_labels=[2, 2], lr=1e-2, warmup_steps=2)
    fit(model, intents(encoder, batch_size=3, epochs_per_task=1), Rates())
    assert rates == [{0.005}, {0.01}, {0.01}] * 2


def test_biases_do_not_decay(encoder: str) -> None:
    model = SequentialFineTuner(encoder, num_labels=[2, 2], weight_decay=0.3)
    groups = model.configure_optimizers().param_groups
    assert [(group["weight_decay"], {p.ndim for p in group["params"]}) for group in groups] == [
        (0.3, {2}),
        (0.0, {1}),
    ]


# -- pooling ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_padding_does_not_change_what_a_text_is(encoder: str, pooling: Any) -> None:
    model = SequentialFineTuner(encoder, num_labels=3, pooling=pooling).eval()
    data = intents(encoder, scenario="class")
    rows = [data.tasks[0]["train"][i] for i in (0, 3)]
    together = {k: v for k, v in data.collate_fn(rows).items() if k != "labels"}
    alone = {k: v for k, v in data.collate_fn(rows[:1]).items() if k != "labels"}
    assert together["input_ids"].shape[1] > alone["input_ids"].shape[1]
    assert torch.allclose(model(**together).logits[0], model(**alone).logits[0], atol=1e-6)


# -- checkpoints -----------------------------------------------------------------------------------


class InOrder(TextTasks):
    """Unshuffled: Lightning's checkpoints hold no random numbers."""

    def train_dataloader(self) -> DataLoader:
        shuffled = super().train_dataloader()
        return DataLoader(shuffled.dataset, self.batch_size, collate_fn=self.collate_fn)


@pytest.mark.parametrize("stop", [1, 2])  # in mid-task, and between tasks
def test_a_resumed_sequence_goes_on_bit_for_bit(encoder: str, tmp_path: Path, stop: int) -> None:
    def run(**options: Any) -> SequentialFineTuner:
        seed_everything(0, verbose=False)
        model = SequentialFineTuner(encoder, lr=1e-2, warmup_steps=3)
        data = InOrder(
            requests(), tokenizer=encoder, label_column="intent", task_column="domain", batch_size=3,
            epochs_per_task=2,
        )  # fmt: skip
        saves = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
        trainer = make_trainer(
            EWC(10.0, estimator="sampled"), EpochBoundaries(2), saves,
            enable_checkpointing=True, reload_dataloaders_every_n_epochs=1, max_epochs=4,
        )  # fmt: skip
        trainer.fit(model, data, **options)
        return model

    whole = values(run())
    resumed = run(ckpt_path=tmp_path / f"epoch={stop - 1}.ckpt")
    assert not moved(whole, resumed)


def test_a_checkpoint_loads_without_the_data_that_said_how_many_labels_there_are(
    encoder: str, tmp_path: Path
) -> None:
    model = SequentialFineTuner(encoder, lr=1e-2)
    trainer = fit(model, intents(encoder))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = SequentialFineTuner.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert again.heads == [2, 2]
    assert not moved(values(model), again)


# -- what cannot work ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "regression"}, "kind must be 'sequence_classification'"),
        ({"pooling": "max"}, "pooling must be 'mean'"),
        ({"kind": "token_classification", "pooling": "mean"}, "not for kind='token_classification'"),
        ({"kind": "causal_lm", "num_labels": 3}, "leave num_labels out"),
        ({"lr": 0.0}, "lr must be a finite number above 0"),
        ({"warmup_steps": -1}, "warmup_steps must be a whole number, at least 0"),
        ({"num_labels": 2, "freeze": ["nothing"]}, "'nothing' is in no parameter's name"),
        ({"num_labels": 2, "freeze": "."}, "leaves nothing to train"),
        ({"num_labels": 2, "freeze": "encoder", "lora_rank": 4}, "heads alone: leave lora_rank=4 out"),
        ({"kind": "causal_lm", "freeze": "encoder"}, "a causal language model has none"),
    ],
)
def test_what_cannot_work_is_said(encoder: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SequentialFineTuner(encoder, **options)


def test_who_does_not_know_the_labels_says_what_to_do(encoder: str) -> None:
    with pytest.raises(MisconfigurationException, match="give it num_labels"):
        make_trainer().fit(SequentialFineTuner(encoder), intents(encoder).train_dataloader())


def test_several_heads_need_to_know_the_task(encoder: str) -> None:
    model = SequentialFineTuner(encoder, num_labels=[2, 2])
    with pytest.raises(ValueError, match="the batch has no `task_id`"):
        fit(model, intents(encoder, scenario="class"))
    with pytest.raises(ValueError, match="of task 2, and the network has 2 heads"):
        model(task_id=2, input_ids=torch.ones(1, 3, dtype=torch.long))


@pytest.mark.parametrize(
    ("num_labels", "scenario", "fits"),
    [(1, "task", False), (2, "task", True), ([2, 1], "task", False), ([2, 3, 1], "task", True),
     ([2], "class", False), (3, "class", False), (4, "class", True)],
)  # fmt: skip
def test_labels_without_an_output_are_refused_before_the_first_step(
    encoder: str, num_labels: Any, scenario: Any, fits: bool
) -> None:
    model = SequentialFineTuner(encoder, num_labels=num_labels, lr=1e-2)
    if fits:
        fit(model, intents(encoder, scenario=scenario))
        return
    with pytest.raises(MisconfigurationException, match=r"the tasks of TextTasks need \["):
        fit(model, intents(encoder, scenario=scenario))
    assert model.trainer.global_step == 0


def test_a_configuration_file_builds_it(encoder: str) -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser()
    parser.add_subclass_arguments(SequentialFineTuner, "model")
    settings = {"model": encoder, "num_labels": [2, 3], "freeze": ["embeddings"], "lora_rank": 2}
    config = parser.parse_object(
        {"model": {"class_path": "cl_callbacks.SequentialFineTuner", "init_args": settings}}
    )
    model = parser.instantiate_classes(config).model
    assert model.heads == [2, 3]
