"""A LightningModule that fine-tunes a pretrained network of transformers on a sequence of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

from cl_callbacks.fine_tuning.pretrained import Kind, LowRank, freeze, pretrained
from cl_callbacks.fine_tuning.task_heads import Pooling
from cl_callbacks.fine_tuning.warmup import TaskWarmup
from cl_callbacks.guards.arguments import check_arguments
from cl_callbacks.guards.bounds import AT_LEAST_ONE, MAY_BE_EMPTY, NON_NEGATIVE, POSITIVE, Bounds

_BOUNDS = {
    "num_labels": AT_LEAST_ONE,
    "lr": POSITIVE,
    "weight_decay": NON_NEGATIVE,
    "warmup_steps": NON_NEGATIVE,
    "freeze": MAY_BE_EMPTY,
    "lora_rank": NON_NEGATIVE,
    "lora_alpha": POSITIVE,
    "lora_dropout": Bounds(least=0, below=1),
}


class SequentialFineTuner(LightningModule):
    """Fine-tunes a pretrained network of ``transformers`` on one task after the other, with AdamW.

    For data such as :class:`~cl_callbacks.TextTasks` and :class:`~cl_callbacks.VisionTasks`: batches are
    dicts of the network's inputs, with ``labels``, and with ``task_id`` where each task has a head of its
    own. It is independent of the rules, which are callbacks and work with any other module too. It logs
    ``train_loss``, and for each validation or test loader the accuracy (``val_acc``, ``test_acc``) or, for a
    language model, the perplexity (``val_perplexity``, ``test_perplexity``).

    With a head for each task, a batch trains the head of its own task and no other. Under DDP this needs
    ``Trainer(strategy="ddp_find_unused_parameters_true")``.

    Args:
        model: the name of a model on the hub, or its folder.
        kind: ``"sequence_classification"``, ``"token_classification"``, ``"causal_lm"`` or
            ``"image_classification"``.
        num_labels: a number for one head over all labels; a list of numbers for a linear head for each task;
            ``None`` for the ``num_labels`` of the Trainer's data module.
        pooling: how a text becomes one vector for a linear head: the ``"mean"`` of its tokens (sentence
            encoders), the ``"first"`` or the ``"last"`` of them. For an image, the mean or the first of its
            tokens, or the pooled feature map of a convolutional network. ``None`` for the head that
            ``transformers`` gives the model, and for the mean where there is a head for each task, or where
            the encoder is frozen.
        lr: learning rate. By default 5e-5 where the network's weights are trained, 1e-3 with low-rank
            adapters and 1e-2 for heads alone. All weights together move the outputs far, and at a higher rate
            each task is learned a little better at the price of the tasks before; adapters start from zero
            and have to move far themselves (at 3e-4 rank 8 does not learn CLINC150 in three epochs); heads
            are a convex problem, which only a low rate keeps from its solution.
        weight_decay: weight decay of matrices; biases and normalisation have none.
        warmup_steps: number of steps at the start of each task in which the learning rate grows linearly.
        freeze: ``"encoder"`` for the whole pretrained network: heads alone are trained, on vectors that it
            makes in evaluation mode (of which Lightning warns) and without a graph, at the cost of a forward
            pass. Or regular expressions, searched in the names of parameters, of those not to train, such as
            ``["embeddings"]``.
        lora_rank: rank of low-rank adapters (LoRA), which are trained in place of the network's own weights;
            0 for none. Heads are trained in any case.
        lora_alpha: scale of the adapters; default: twice the rank.
        lora_dropout: dropout of the adapters' inputs.
        lora_targets: names of the modules that get an adapter, or ``"all-linear"``; default: those that
            ``peft`` knows for the architecture, which has to be one for texts.
        gradient_checkpointing: whether to recompute activations in the backward pass, to save memory.

    Raises:
        ValueError: invalid arguments.
        ImportError: ``transformers`` or ``peft`` is not installed.
        MisconfigurationException: in ``fit``, a data module whose tasks need more outputs than there are.

    Example:
        >>> module = SequentialFineTuner("bert-base-uncased", num_labels=[15] * 10, freeze=["embeddings"],
        ...     lr=1e-4, warmup_steps=10)  # doctest: +SKIP
    """

    one_per_sample: ClassVar[tuple[str, ...]] = ("task_id",)
    """Entries of a batch that may also be lists with a value for each sample, as rehearsal makes them."""

    def __init__(
        self,
        model: str,
        *,
        kind: Kind = "sequence_classification",
        num_labels: int | Sequence[int] | None = None,
        pooling: Pooling | None = None,
        lr: float | None = None,
        weight_decay: float = 0.01,
        warmup_steps: int = 0,
        freeze: str | Sequence[str] = (),
        lora_rank: int = 0,
        lora_alpha: float | None = None,
        lora_dropout: float = 0.0,
        lora_targets: str | Sequence[str] | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        # Not `checked`: between this constructor and that of a subclass, Lightning would find its frame, and
        # save the arguments of this class alone.
        raw = dict(locals())
        given = check_arguments(type(self), SequentialFineTuner.__init__, raw, _BOUNDS)
        if pooling is not None and kind not in ("sequence_classification", "image_classification"):
            raise ValueError(f"pooling makes one vector of a text or an image: it is not for kind={kind!r}")
        if pooling == "last" and kind == "image_classification":
            raise ValueError("the last token of an image is not special: use 'mean' or 'first'")
        if kind == "causal_lm" and num_labels is not None:
            raise ValueError("a causal language model's outputs are its tokens: leave num_labels out")
        self.frozen_encoder = freeze == "encoder"
        if self.frozen_encoder and kind == "causal_lm":
            raise ValueError("freeze='encoder' trains heads, and a causal language model has none")
        if self.frozen_encoder and lora_rank:
            raise ValueError(f"freeze='encoder' trains heads alone: leave lora_rank={lora_rank} out")
        if lr is None:
            given["lr"] = 1e-2 if self.frozen_encoder else 1e-3 if lora_rank else 5e-5
        self.model, self.kind, self.pooling = model, kind, pooling
        self.num_labels: int | Sequence[int] | None = given["num_labels"]
        self.lr: float = given["lr"]
        self.weight_decay: float = given["weight_decay"]
        self.warmup_steps: int = given["warmup_steps"]
        self.frozen = () if self.frozen_encoder else (freeze,) if isinstance(freeze, str) else freeze
        self.lora_rank: int = given["lora_rank"]
        self.lora_alpha: float | None = given["lora_alpha"]
        self.lora_dropout: float = given["lora_dropout"]
        self.lora_targets, self.gradient_checkpointing = lora_targets, given["gradient_checkpointing"]
        self.save_hyperparameters()
        self.hparams.update({name: new for name, new in given.items() if self.hparams.get(name) is raw[name]})
        self.network: nn.Module | None = None
        self.metrics = nn.ModuleList()
        if kind == "causal_lm" or num_labels is not None:
            self.configure_model()

    def configure_model(self) -> None:
        """Builds the network, with ``num_labels`` of the data module if that was not given."""
        if self.network is not None:
            return
        if self.num_labels is None and self.kind != "causal_lm":
            data = None if self._trainer is None else self.trainer.datamodule  # type: ignore[attr-defined]
            found = getattr(data, "num_labels", None)
            if not found:
                raise MisconfigurationException(
                    "SequentialFineTuner does not know how many labels there are: give it num_labels, a "
                    "number or a list with one for each task, or train it on a data module that has "
                    "`num_labels`"
                )
            self.num_labels = list(found)
            self.hparams["num_labels"] = self.num_labels  # so that a checkpoint loads without the data
        low_rank = None
        if self.lora_rank:
            alpha = 2.0 * self.lora_rank if self.lora_alpha is None else self.lora_alpha
            low_rank = LowRank(self.lora_rank, alpha, self.lora_dropout, self.lora_targets)
        self.network = pretrained(
            self.model,
            self.kind,
            self.heads,
            self.pooling,
            low_rank,
            self.gradient_checkpointing,
            self.frozen_encoder,
        )
        freeze(self.network, self.frozen)

    def setup(self, stage: str) -> None:
        """Refuses data whose labels need more outputs than there are."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        needed = getattr(data, "num_labels", None)
        if self.num_labels is None or not isinstance(needed, list | tuple) or not needed:
            return
        if len(self.heads) == 1:  # for all tasks
            fits = max(needed) <= self.heads[0]
        elif len(needed) == 1:
            return  # batches have no `task_id`, which is said when one comes
        else:
            pairs = zip(needed, self.heads, strict=False)
            fits = len(needed) <= len(self.heads) and all(labels <= outputs for labels, outputs in pairs)
        if not fits:
            raise MisconfigurationException(
                f"SequentialFineTuner has num_labels={self.num_labels}, and the tasks of "
                f"{type(data).__name__} need {list(needed)}: leave num_labels out to take these"
            )

    @property
    def heads(self) -> list[int]:
        """Number of outputs of each head; empty for a language model."""
        if self.num_labels is None:
            return []
        return [self.num_labels] if isinstance(self.num_labels, int) else list(self.num_labels)

    def forward(self, **inputs: Any) -> Any:
        """Returns the network's output, with ``logits`` ``(N, C)``, or ``(N, T, C)`` for tokens.

        Args:
            inputs: inputs of the network; ``task_id`` selects the head where there are several: one number,
                or a list with one for each sample.
        """
        assert self.network is not None, "the network is built by num_labels, or by trainer.fit"
        if len(self.heads) < 2:
            inputs.pop("task_id", None)
        return self.network(**inputs)

    def outputs_of_all_heads(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
        """Outputs of all heads with the labels of the batch, for :class:`~cl_callbacks.Distillation`.

        Returns:
            Outputs ``(N, H, C)`` and labels ``(N, H, 1)``, with all tokens of all texts as rows if these have
            a label each; ``None`` if there are not several heads.
        """
        if len(self.heads) < 2:
            return None
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        outputs = self(**inputs | {"task_id": "all"}).logits.flatten(0, -3)
        labels = batch["labels"].reshape(-1, 1, 1)
        return outputs, labels.expand(-1, outputs.shape[1], 1)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Cross-entropy, averaged over the labels that are not -100."""
        logits, labels = self._logits_and_labels(batch)
        loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten())
        self.log("train_loss", loss, batch_size=len(labels))
        return loss

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logs the accuracy, or the perplexity of a language model."""
        self._evaluate("val", batch, batch_idx, dataloader_idx)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logs the accuracy, or the perplexity of a language model."""
        self._evaluate("test", batch, batch_idx, dataloader_idx)

    def _evaluate(self, stage: str, batch: Mapping[str, Any], batch_idx: int, loader: int) -> None:
        logits, labels = self._logits_and_labels(batch)
        if batch_idx == 0:
            with torch.inference_mode(False):  # inference tensors of `validate` could not be updated in `fit`
                while len(self.metrics) <= loader:
                    self.metrics.append(self._metric().to(self.device))
                cast(Metric, self.metrics[loader]).reset()
        metric = cast(Metric, self.metrics[loader])
        metric.update(logits if self.kind == "causal_lm" else logits.argmax(-1), labels)
        name = f"{stage}_perplexity" if self.kind == "causal_lm" else f"{stage}_acc"
        # Lightning caches the attribute names of metrics, and would not find one that was added since.
        self.log(name, metric, on_epoch=True, batch_size=len(labels), metric_attribute=f"metrics.{loader}")

    def _metric(self) -> Metric:
        if self.kind == "causal_lm":
            return Perplexity(ignore_index=-100)
        return MulticlassAccuracy(max(2, *self.heads, 2), average="micro", ignore_index=-100)

    def _logits_and_labels(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        logits = self(**{name: value for name, value in batch.items() if name != "labels"}).logits
        if self.kind == "causal_lm":  # position t predicts token t + 1
            return logits[:, :-1], batch["labels"][:, 1:]
        return logits, batch["labels"]

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Restarts the warm-up of the learning rate."""
        warmup = self.lr_schedulers()
        if isinstance(warmup, TaskWarmup):
            warmup.restart()

    def configure_optimizers(self) -> Any:
        """Returns AdamW, with a warm-up at the start of each task if ``warmup_steps`` is above 0."""
        trained = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=self.lr)
        if not self.warmup_steps:
            return optimizer
        warmup = {"scheduler": TaskWarmup(optimizer, self.warmup_steps), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": warmup}
