"""Isometric matrices before each new task."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from typing_extensions import Unpack

from cl_callbacks.functional.isometry import isometry_scale, nearest_isometry
from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import AT_LEAST_ONE, SHARE
from cl_callbacks.guards.few import few
from cl_callbacks.guards.once import first_time
from cl_callbacks.rules.renewal.boundary_renewal import BoundaryRenewal
from cl_callbacks.rules.renewal.layer_matrices import LayerMatrices, LayerMatrix
from cl_callbacks.rules.rule_options import RuleOptions
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.tensors.shards import distribute_like, full_tensor, held
from cl_callbacks.training.progress import say


class FIRE(BoundaryRenewal):
    r"""Frobenius-isometry reinitialisation: before a new task each matrix becomes the nearest isometric one.

    When a task begins, except for the first, each weight matrix becomes

    .. math:: W \leftarrow \sqrt{\frac{n_\text{out}}{n_\text{in}}}\; W(W^\top W)^{-1/2},

    found by the iteration of Newton and Schulz: its singular vectors stay, which is what was learned, and its
    singular values become alike, as in a network that was well initialised. What is measured, scored and
    saved at the end of a task is of the weights before.

    **Which matrices.** Those of ``Linear`` layers and of convolutions, where each place of the kernel has one
    of its own, divided by the number of places. Of attention only queries and keys, as in the paper's vision
    transformer: of ``nn.MultiheadAttention``, and of modules with ``Attention`` or ``Attn`` in the name of
    their class. What ``parameters`` names is all taken, values and outputs of attention included, as in the
    paper's language model. Embeddings, matrices that share their weights with one, factors of low-rank
    adapters and depthwise convolutions are left alone; a line in the log says what is.

    Biases, normalisation and running statistics stay, and so do the optimizer's moments: in the paper each
    task begins with a new optimizer, as each fit does. Under FSDP2 one parameter after the other is put
    together on every process. The rule has no state.

    Source: Han et al. 2026 (ICLR; arXiv 2602.08040).

    Args:
        share: how far the weights go there, from 0, which leaves training as it is, bit for bit, to 1.
        iterations: of Newton and Schulz, at least 1; ``None`` until they have converged. The paper finds 5
            enough, its code takes 10. With few, small singular values stay below 1: see
            :func:`~cl_callbacks.functional.nearest_isometry`.
        options: of every rule: see :class:`~cl_callbacks.SynapticCallback`.

    Raises:
        ValueError: an argument that cannot work, at construction.
        MisconfigurationException: before the first step, no such matrix, or a rule whose weights have only
            certain values, such as :class:`Cascade`.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[FIRE()], logger=False, enable_checkpointing=False)
    """

    matrices_only: ClassVar[bool] = True
    dial: str = "share"

    @checked(share=SHARE, iterations=AT_LEAST_ONE)
    def __init__(
        self, share: float = 1.0, *, iterations: int | None = 10, **options: Unpack[RuleOptions]
    ) -> None:
        super().__init__(**options)
        self.share, self.iterations = share, iterations

    @property
    def renews_at_boundaries(self) -> bool:
        """Whether the share is above 0."""
        return self.share > 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a network without a matrix, and says which parameters are none."""
        super().on_train_start(trainer, pl_module)
        matrices = self._matrices(pl_module, self.synapses.view)
        left_out = [f"{name} ({reason})" for name, reason in matrices.left_out.items()]
        if not matrices.found:
            raise MisconfigurationException(
                f"{type(self).__name__} makes matrices of linear layers and convolutions isometric, and "
                f"there is none among the parameters that it selects: {few(left_out)}."
            )
        if left_out and first_time(self, "left out"):
            say(trainer, f"{self.name} leaves alone {few(left_out)}")

    def renew(self, trainer: Trainer, pl_module: LightningModule, synapses: SynapseView) -> None:
        """Makes all matrices isometric, one after the other."""
        for matrix in self._matrices(pl_module, synapses).found:
            self._renew(matrix, together=trainer.world_size > 1)

    def _matrices(self, pl_module: LightningModule, synapses: SynapseView) -> LayerMatrices:
        selected = dict(zip(synapses.names, synapses.sources, strict=True))
        return LayerMatrices(pl_module, selected, everything=bool(self.parameters))

    def _renew(self, matrix: LayerMatrix, together: bool) -> None:
        whole = full_tensor(matrix.parameter.detach()).clone(memory_format=torch.contiguous_format)
        old = matrix.of(whole)
        new = isometry_scale(*matrix.sizes) * nearest_isometry(old, self.iterations)
        old.copy_(new if self.share == 1 else torch.lerp(old.to(new.dtype), new, self.share))
        if together:  # they may have multiplied in different order
            dist.broadcast(whole, src=0)
        held(matrix.parameter).copy_(held(distribute_like(whole, matrix.parameter)))
