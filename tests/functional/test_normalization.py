"""Units of importance."""

from __future__ import annotations

import torch

from cl_callbacks.functional import sum_and_number


def test_parts_of_a_network_add_up() -> None:
    parts = [[torch.rand(3, 4), torch.rand(5)], [torch.rand(2, 2), torch.empty(0)]]
    everything = torch.cat([t.flatten() for part in parts for t in part]).double()
    found = sum(map(sum_and_number, parts))
    torch.testing.assert_close(found, torch.stack([everything.sum(), torch.tensor(21.0).double()]))


def test_half_the_synapses_may_be_a_millionth_of_the_rest() -> None:
    small = torch.full((1_000_000,), 1e-8)
    found = sum_and_number([torch.full((1,), 1e3), small])
    torch.testing.assert_close(found[0].item(), 1e3 + 1e6 * small[0].item(), rtol=1e-12, atol=0.0)
