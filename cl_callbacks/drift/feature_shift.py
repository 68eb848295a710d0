"""Distance of a batch's mean features from their running mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cl_callbacks.guards.arguments import checked
from cl_callbacks.guards.bounds import Bounds

_FLOOR = 1e-2  # share of the mean variance that is added to each: features that hardly vary count for less
_LIMIT = 2.0  # largest deviation of a batch that enters the averages, in standard deviations


class FeatureShift:
    r"""Distance of a batch's mean features from their running mean, in their running variance.

    .. math:: d = \frac1D \sum_{i=1}^D \frac{(\bar\phi_i-m_i)^2}{v_i+\bar v/100}, \qquad
              m \leftarrow m + (1-\gamma)\,\psi, \quad v \leftarrow \gamma\,(v + (1-\gamma)\,\psi^2),

    the diagonal Mahalanobis distance, about 1 as long as nothing changes; :math:`\bar v` is the mean of
    :math:`v` over features. The deviation :math:`\psi = \bar\phi-m` that enters the averages is clipped to
    :math:`\pm2\sqrt{v_i+\bar v/100}`, so that they adapt to a change only after many batches. The distance
    finds sudden shifts of the input that the loss misses. It misses shifts that do not move the features,
    such as permuted labels, and gradual ones, which the averages follow.

    Args:
        decay: :math:`\gamma`, share of the averages that is kept per batch, 0 to below 1. With long averages
            features that move because they are being learned look like a change.

    Raises:
        ValueError: a decay outside that range.

    Example:
        >>> shift = FeatureShift()
        >>> batches = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
        >>> usual = [shift.update(batch) for batch in batches]
        >>> shift.update(batches[0] + 5.0) > 10 * torch.stack(usual).mean()
        tensor(True)
    """

    @checked(decay=Bounds(least=0, below=1))
    def __init__(self, decay: float = 0.9) -> None:
        self.decay = decay
        self.seen = 0
        self.mean = self.variance = torch.zeros(0)

    def update(self, features: Tensor) -> Tensor:
        """Returns the distance, a scalar, of a batch's mean features ``(D,)``, and updates the averages."""
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
        """Running mean and variance, ``(D,)`` each, and the number of batches seen."""
        return {"mean": self.mean, "variance": self.variance, "seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state that :meth:`state_dict` returned."""
        self.mean, self.variance = state_dict["mean"], state_dict["variance"]
        self.seen = state_dict["seen"]
