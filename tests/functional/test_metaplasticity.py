"""The metaplastic gate: its values, and against a plain loop."""

from __future__ import annotations

import pytest
import torch

from cl_callbacks.functional.metaplasticity import metaplastic_gate, resist_shrinking_
from tests.references.metaplasticity import gated


def test_values_of_the_gate() -> None:
    (gate,) = metaplastic_gate([torch.tensor([0.0, 1.0, -1.0, 10.0], dtype=torch.float64)], 1.35)
    assert gate[0] == 1
    assert gate[1].item() == gate[2].item() == pytest.approx(0.236, abs=5e-4)
    assert gate[3] == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("steepness", [0.0, 0.7, 1.35, 20.0])
def test_equals_a_plain_loop(steepness: float) -> None:
    torch.manual_seed(0)
    before = [torch.randn(4, 3, dtype=torch.float64), torch.randn(7, dtype=torch.float64)]
    before[1][:2] = 0
    after = [b + 0.3 * torch.randn_like(b) for b in before]
    weights = [a.clone() for a in after]
    resist_shrinking_(weights, before, steepness)
    for found, b, a in zip(weights, before, after, strict=True):
        torch.testing.assert_close(found, gated(b, a, steepness), rtol=0, atol=1e-14)
        grows = (a - b) * b >= 0
        assert torch.equal(found[grows], a[grows])
        if steepness == 0:
            assert torch.equal(found, a)
        else:
            assert ((found - a)[~grows] != 0).all()
