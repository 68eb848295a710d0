"""Every rule on unusual batches and parameters does what the table declares."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cl_callbacks import EWC, EpochBoundaries
from tests.every_rule import COUNTING_TASKS, DISTILLING, MATRICES_ONLY, RECYCLING, REHEARSING, RULES
from tests.odd.__main__ import PAGE, page
from tests.odd.batches import OWN, loader_of, odd, reading
from tests.odd.modules import MORE
from tests.odd.table import NO_UNITS, ROWS, Row
from tests.references.rows import exact_scores, mean_over_rows
from tests.small import make_trainer, weights

# Passes that are repeated cannot be those of manual optimization, which are the module's own.
CELLS = [
    pytest.param(row, rule, id=f"{row.kind}-{rule}")
    for row in ROWS
    for rule in RULES
    if not ((rule == "mesu draws" or rule in {*REHEARSING, *DISTILLING, *RECYCLING}) and row.refused)
]


@pytest.mark.parametrize(("row", "rule"), CELLS)
def test_the_outcome_is_as_declared(row: Row, rule: str) -> None:
    model, batches, memory = row.build(rule)
    seed_everything(0, verbose=False)
    trainer = make_trainer(memory, EpochBoundaries(1), max_epochs=2)
    refused = row.refused_for(rule)
    if refused is not None:
        with pytest.raises((MisconfigurationException, ValueError), match=refused) as error:
            trainer.fit(model, batches)
        assert type(memory).__name__ in str(error.value)
        assert row.batch or "exclude" in str(error.value) or refused == NO_UNITS
        assert trainer.global_step == 0
        return
    trainer.fit(model, batches)
    view = memory.synapses.view
    tensors = [*model.parameters(), *(t for field in view.fields.values() for t in field)]
    assert all(t.isfinite().all() for t in tensors)
    assert memory.tasks == (2 if rule in COUNTING_TASKS else 0)
    if rule not in MATRICES_ONLY:
        assert view.names == [name for name, p in model.named_parameters() if p.requires_grad]
    plain, batches, _ = row.build(rule)
    seed_everything(0, verbose=False)
    make_trainer(max_epochs=2).fit(plain, batches)
    assert not torch.equal(weights(model), weights(plain))


@pytest.mark.parametrize("kind", MORE)
@pytest.mark.parametrize("name", OWN)
def test_unusual_layers_on_unusual_batches_equal_a_loop_over_rows(name: str, kind: str) -> None:
    model, batches = odd(name)
    MORE[kind][0](model.first)
    rule = reading(EWC)(1.0, samples=None, normalize=None)
    make_trainer(rule).fit(model, loader_of(batches))
    model.eval()
    outputs, _ = model(batches[0])
    wanted = mean_over_rows(outputs, dict(model.named_parameters()), exact_scores, torch.square)
    found = dict(zip(rule.synapses.view.names, rule.synapses.view["importance"], strict=True))
    largest = max(float(value.max()) for value in wanted.values())
    assert found.keys() == wanted.keys() and largest > 0
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-5 * largest, msg=key)


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "write it again: python -m tests.odd"
