"""What the rules that measure a Fisher information have in common: how outputs, labels and loss are read."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from cl_callbacks.functional.fisher import Estimator
from cl_callbacks.functional.likelihood import Likelihood
from cl_callbacks.gradients.fisher_reader import FisherReader
from cl_callbacks.gradients.graph import graph_nodes
from cl_callbacks.training.drawn_samples import DrawsSamples

_OF_CLASSES = ("LogSoftmax", "Softmax", "Logsumexp", "NllLoss")
_OF_OTHERS = {
    "MseLoss": "gaussian",
    "SmoothL1Loss": "gaussian",
    "HuberLoss": "gaussian",
    "BinaryCrossEntropy": "bernoulli",
    # Distances between embeddings.
    "LinalgVectorNorm": "gaussian",
    "NormBackward": "gaussian",
    "Cdist": "gaussian",
}
"""Beginnings of the names of autograd's nodes: a loss of classes has one of the former."""


class MeasuresFisher(DrawsSamples):
    """Mixin of the rules that measure a Fisher information at the end of a task."""

    def read_as(
        self,
        estimator: Estimator,
        likelihood: Likelihood | None,
        class_dim: int | None,
        ignore_index: int,
    ) -> None:
        """Sets how outputs and labels are read, or raises a ``ValueError`` for what cannot work together."""
        self.reader = FisherReader(estimator, likelihood, class_dim, ignore_index)
        self.estimator, self.likelihood = estimator, likelihood
        self.class_dim, self.ignore_index = class_dim, ignore_index

    def check_outputs(self, outputs: Tensor, labels: Tensor | None) -> None:
        """Decides how outputs and labels are read, or raises if they contradict the arguments."""
        self.reader.decide(outputs, labels)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Schedules the check of the loss, which manual optimization may compute in several parts."""
        super().on_train_start(trainer, pl_module)
        self._loss_checked = self.likelihood is not None or not pl_module.automatic_optimization

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Refuses the first loss if it is one of numbers, although the labels are classes."""
        super().on_before_backward(trainer, pl_module, loss)
        if not self._loss_checked:
            refuse_loss(loss, type(pl_module).__name__)
            self._loss_checked = True


def refuse_loss(loss: Tensor, module: str) -> None:
    """Raises a ``ValueError`` for a loss that is made by an equation for numbers, without one for classes.

    The labels of an autoencoder's data are classes as well, but its outputs are no logits of these.

    Args:
        loss: with its graph.
        module: name of what computed it.

    Example:
        >>> import torch
        >>> logits, labels = torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 1])
        >>> refuse_loss(torch.nn.functional.cross_entropy(logits, labels), "Net")
        >>> refuse_loss(torch.nn.functional.mse_loss(logits, torch.zeros(2, 3)), "Net")
        Traceback (most recent call last):
        ValueError: the labels are classes, and the loss of Net is computed by MseLoss, without a softmax: ...
    """
    names = [node.name() for node in graph_nodes(loss)]
    # What is compiled may hold a softmax.
    if any(name.startswith(_OF_CLASSES) or "Compiled" in name for name in names):
        return
    for kind, likelihood in _OF_OTHERS.items():
        if any(name.startswith(kind) for name in names):
            raise ValueError(
                f"the labels are classes, and the loss of {module} is computed by {kind}, without a softmax: "
                f"give likelihood={likelihood!r} and let `outputs` return the outputs alone, or with the "
                f"loss's targets; or give likelihood='categorical' if they are logits of these classes"
            )
