"""How far the features of a batch lie from where they usually are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_FLOOR = 1e-2  # of the mean variance: features that hardly ever vary count for less
_LIMIT = 2.0  # standard deviations by which one batch counts at most


class FeatureShift:
    r"""Distance of a batch's mean features from their running mean, in their running variance.

    .. math:: d = \frac1D \sum_{i=1}^D \frac{(\bar\phi_i-m_i)^2}{v_i+\bar v/100}, \qquad
              m \leftarrow m + (1-\gamma)\,\psi, \quad v \leftarrow \gamma\,(v + (1-\gamma)\,\psi^2),

    the diagonal Mahalanobis distance, about 1 as long as nothing changes. The averages take in a deviation
    :math:`\psi = \bar\phi-m` of at most :math:`2\sqrt{v_i+\bar v/100}`, with the mean :math:`\bar v` over
    features, so that a change is not usual after a few batches; features that hardly ever vary count for
    less. The distance sees sudden shifts of the input that the loss misses. It misses those that leave the
    features where they are, such as permuted labels, and gradual ones, which the averages follow.

    Args:
        decay: :math:`\gamma`, share of the averages that each batch keeps, 0 to below 1. Long averages take
            the drift of features that are being learned for a change.

    Raises:
        ValueError: a decay that is none.

    Example:
        >>> shift = FeatureShift()
        >>> batches = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
        >>> usual = [shift.update(batch) for batch in batches]
        >>> shift.update(batches[0] + 5.0) > 10 * torch.stack(usual).mean()
        tensor(True)
    """

    def __init__(self, decay: float = 0.9) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is the share that the averages keep, 0 to below 1; got {decay}")
        self.decay = decay
        self.seen = 0
        self.mean = self.variance = torch.zeros(0)

    def update(self, features: Tensor) -> Tensor:
        """The distance of mean features ``(D,)`` of a batch, a scalar; the averages then take them in."""
        features = features.float()
        if not self.seen:
            self.mean, self.variance = torch.zeros_like(features), torch.zeros_like(features)
        self.mean, self.variance = self.mean.to(features), self.variance.to(features)
        apart = features - self.mean
        smallest = _FLOOR * self.variance.mean() + torch.finfo(torch.float32).tiny
        distance = (apart.square() / (self.variance + smallest)).mean()
        kept = min(self.decay, self.seen / (self.seen + 1))  # plain averages at first
        if kept == self.decay:
            bound = _LIMIT * (self.variance + smallest).sqrt()
            apart = apart.clamp(-bound, bound)
        self.mean = self.mean + (1 - kept) * apart
        self.variance = kept * (self.variance + (1 - kept) * apart.square())
        self.seen += 1
        return distance if self.seen > 2 else torch.ones_like(distance)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and a number."""
        return {"mean": self.mean, "variance": self.variance, "seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where the state was taken."""
        self.mean, self.variance = state_dict["mean"], state_dict["variance"]
        self.seen = state_dict["seen"]
