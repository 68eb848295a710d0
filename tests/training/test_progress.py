"""What the terminal shows while a run trains."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rich
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from rich.console import Console

from cl_callbacks import (
    EWC,
    BatchBoundaries,
    DriftBoundaries,
    EpochBoundaries,
    FitBoundaries,
    PlateauBoundaries,
    SynapticCallback,
)
from cl_callbacks.drift import Plateau
from cl_callbacks.training.lightning_private import progress_bar_metrics
from cl_callbacks.training.progress import progress, say
from cl_callbacks.training.quiet_validation import quiet_validation
from tests.processes import train_together
from tests.small import Net, fit_tasks, loader, make_trainer, task, weights

BARS = [RichProgressBar, TQDMProgressBar]
both = pytest.mark.parametrize("kind", BARS)
SHOWING = {"enable_progress_bar": True}
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """All that was written to it, in lines without control sequences."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys, self._written = capsys, ""

    def bar(self, kind: type[ProgressBar], **options: Any) -> Any:
        if kind is TQDMProgressBar:
            return TQDMProgressBar(**options)
        return RichProgressBar(console_kwargs={"force_terminal": True, "width": 120}, **options)

    @property
    def lines(self) -> list[str]:
        """Rich parts what it draws over by line feeds and carriage returns, as TQDM does."""
        self._written += self._capsys.readouterr().out
        return [line.strip() for line in re.split(r"[\r\n]", CONTROL.sub("", self._written))]

    def said(self) -> list[str]:
        return [line for line in self.lines if " ended at " in line]


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str]) -> Iterator[Terminal]:
    yield Terminal(capsys)
    rich._console = None  # Lightning has changed the console of all
    for line in list(Tqdm._instances):
        line.close()


class Seen(Callback):
    """The metrics that a bar shows, whenever it asks for them."""

    def __init__(self, *keys: str) -> None:
        self.keys = keys
        self.found: list[Any] = []

    def look(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        shown = trainer.progress_bar_callback.get_metrics(trainer, pl_module)
        self.found.append(tuple(shown.get(key) for key in self.keys))

    on_train_batch_end = on_validation_end = on_train_epoch_end = look


class Validated(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx), prog_bar=True)


def fit(*callbacks: Callback, model: Any = None, data: Any = None, val: Any = None, **options: Any) -> Any:
    trainer = make_trainer(*callbacks, **(SHOWING | options))
    trainer.fit(model or Net(), data or loader(*task(0)), val)
    return trainer


@both
def test_the_bar_shows_the_task_through_epochs_validation_and_fits(kind: Any, terminal: Terminal) -> None:
    seen, model = Seen("task"), Validated()
    data = loader(*task(0), batch_size=24)
    trainer = make_trainer(
        EpochBoundaries(2), seen, terminal.bar(kind), max_epochs=3, num_sanity_val_steps=1, **SHOWING
    )
    trainer.fit(model, data, data)
    # In each epoch after the batch, the validation and the epoch, all of which have the epoch's task.
    assert seen.found == [(None,)] + [("0",)] * 6 + [("1",)] * 3  # None while Lightning checks the sanity
    trainer.fit_loop.max_epochs += 1
    trainer.fit(model, data, data)  # Lightning clears the bar, and no task begins
    assert seen.found[10:] == [(None,)] + [("1",)] * 3


def test_each_fit_shows_its_own_task(terminal: Terminal) -> None:
    seen = Seen("task")
    fit_tasks(Net(), FitBoundaries(), seen, terminal.bar(TQDMProgressBar), tasks=2, **SHOWING)
    assert seen.found == [("0",)] * 4 + [("1",)] * 4


def test_a_number_of_the_batches_is_shown(terminal: Terminal) -> None:
    x, y = task(0)
    seen = Seen("task")
    data = loader(x, y, torch.full((24,), 7))
    fit(BatchBoundaries(key=2), seen, terminal.bar(TQDMProgressBar), data=data)
    assert seen.found == [("7",)] * 4


@both
def test_a_resumed_task_is_shown(kind: Any, terminal: Terminal, tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, save_last=True)
    fit(EpochBoundaries(2), save, terminal.bar(kind), max_epochs=3, enable_checkpointing=True)
    seen = Seen("task")
    trainer = make_trainer(EpochBoundaries(2), seen, terminal.bar(kind), max_epochs=4, **SHOWING)
    trainer.fit(Net(), loader(*task(0)), ckpt_path=tmp_path / "last.ckpt")
    assert seen.found == [("1",)] * 4


@both
def test_a_metric_of_the_same_name_wins(kind: Any, terminal: Terminal) -> None:
    class Logs(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("task", 42.0, prog_bar=True)
            return super().training_step(batch, batch_idx)

    class AtStart(Seen):
        on_task_start = Seen.look

    seen = AtStart("task")
    boundaries = EpochBoundaries(1)
    fit(boundaries, seen, terminal.bar(kind), model=Logs(), max_epochs=2)
    assert boundaries.task == 2
    assert seen.found == [("0",)] + [(42.0,)] * 9  # nothing was logged yet when the first task began


def test_evidence_for_a_change_is_shown_in_per_cent_of_an_alarm(terminal: Terminal) -> None:
    class Rises(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return loss * 0 + (1.0 if batch_idx < 80 else 3.0) + 0.1 * (batch_idx % 7)

    seen = Seen("task", "drift")
    boundaries = DriftBoundaries(min_task_batches=50, check_every_n_batches=1)
    data = loader(*task(0, samples=200), batch_size=2)
    fit(boundaries, seen, terminal.bar(TQDMProgressBar), model=Rises(), data=data)
    (found,) = boundaries.found
    shares = [int(drift.rstrip("%")) for _, drift in seen.found]
    rising = shares[found.onset : found.batch]
    assert rising == sorted(set(rising)) and rising[0] > 0 and rising[-1] <= 100
    assert shares[found.batch + 1] == 0 and seen.found[found.batch + 1][0] == "1"
    assert f"data changed near batch {found.onset}, found {found.delay} later" in terminal.said()[-1]


def test_nearness_to_a_plateau_is_shown(terminal: Terminal) -> None:
    class Falls(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * 0 + (4.0 if batch_idx < 10 else 1.0)

    seen = Seen("plateau")
    boundaries = PlateauBoundaries(Plateau(window=2), check_every_n_batches=1)
    fit(
        boundaries,
        seen,
        terminal.bar(TQDMProgressBar),
        model=Falls(),
        data=loader(*task(0, 40), batch_size=2),
    )
    # Half of 4 is low enough, and a mean of 4 is twice that; the first value makes no window.
    assert [found for (found,) in seen.found[:10]] == ["0%"] + ["50%"] * 9
    assert seen.found[-1] == ("reached",)
    assert boundaries.task == 1


@both
def test_a_pass_has_a_bar_of_its_own_and_a_line_ends_each_task(kind: Any, terminal: Terminal) -> None:
    fit(EWC(1.0, samples=500), EpochBoundaries(1), terminal.bar(kind), max_epochs=2)
    said = terminal.said()
    assert [re.sub(r"\d+ ms|\d\.\d s|0\.\d+(?= of)", "T", line) for line in said] == [
        "task 0 ended at step 3 · consolidation T on 24 samples",  # the task has no more
        "task 1 ended at step 6 · consolidation T on 24 samples · ewc pulled with up to T of the gradient",
    ]
    lines = terminal.lines
    passes = [i for i, line in enumerate(lines) if line.startswith("EWC: task 0") and "/24" in line]
    assert passes and passes[-1] < lines.index(said[0])
    end = lines.index(said[0])
    assert any(line.startswith("Epoch 0") for line in lines[:end])
    assert not any(line.startswith("Epoch 1") for line in lines[:end])


@both
def test_a_pass_knows_how_far_it_is(kind: Any, terminal: Terminal) -> None:
    counts: list[Any] = []

    class Long(Callback):
        def on_task_end(self, trainer: Any, pl_module: Any, task: int) -> None:
            for total in (6, None):
                with progress(trainer, "long [bold]", total) as advance:
                    for n in (1, 2):
                        advance(n)
                    counts.append(self._state(trainer.progress_bar_callback))

        def _state(self, bar: Any) -> Any:
            if isinstance(bar, RichProgressBar):
                line = bar.progress.tasks[-1]
                return line.completed, line.total, line.visible
            (line,) = [line for line in Tqdm._instances if line.desc.startswith("long")]
            assert abs(line.pos) == 1  # a line below that of the training
            return line.n, line.total or float("inf"), not line.leave

    fit(Long(), EpochBoundaries(1), terminal.bar(kind))
    assert counts == [(3, 6, True), (3, float("inf"), True)]
    assert any(line.startswith("long [bold]") for line in terminal.lines)


def test_lines_of_lightning_are_found_after_a_pass(terminal: Terminal) -> None:
    found = []

    class Look(Callback):
        def on_validation_batch_end(self, trainer: Any, *args: Any) -> None:
            found.append(trainer.progress_bar_callback.val_progress_bar.description)

    data = loader(*task(0))
    options = {"model": Validated(), "data": data, "val": data, "num_sanity_val_steps": 0, "max_epochs": 2}
    fit(EWC(1.0), EpochBoundaries(1), Look(), terminal.bar(RichProgressBar), **options)
    assert found == ["Validation"] * 6


@both
def test_an_exception_within_a_pass_closes_its_bar(kind: Any, terminal: Terminal) -> None:
    class Fails(EWC):
        def outputs(self, pl_module: Any, batch: Any) -> Any:
            if pl_module.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
                raise KeyError("in the pass")
            return super().outputs(pl_module, batch)

    bar = terminal.bar(kind)
    with pytest.raises(KeyError, match="in the pass"):
        fit(Fails(1.0), bar)
    assert any(line.startswith("Fails: task 0") for line in terminal.lines)
    if kind is RichProgressBar:
        assert [line.description for line in bar.progress.tasks if line.visible] == ["Epoch 0/0 "]
        assert not bar.progress.live.is_started
    else:
        assert not [line for line in Tqdm._instances if line.desc.startswith("Fails")]


@both
@pytest.mark.parametrize("first", [True, False])
def test_a_task_that_only_the_end_of_the_fit_ends_has_its_line(
    kind: Any, first: bool, terminal: Terminal
) -> None:
    x, y = task(0)
    data = loader(x, y, torch.zeros(24, dtype=torch.long))

    class First(EWC):
        def outputs(self, pl_module: Any, batch: Any) -> Any:
            return super().outputs(pl_module, batch[:2])

    rules = [First(1.0), BatchBoundaries(key=2)]
    bar = terminal.bar(kind)
    fit(*([bar, *rules] if first else [*rules, bar]), data=data)
    assert [line[:33] for line in terminal.said()] == ["task 0 ended at step 3 · consolid"]
    assert any(line.startswith("First: task 0") and "/500" in line for line in terminal.lines)


@pytest.mark.slow
@both
def test_a_quiet_validation_has_a_bar_of_its_own(kind: Any, terminal: Terminal) -> None:
    class Slow(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            time.sleep(0.3)  # Rich redraws ten times a second, in a thread

    class Looking(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            quiet_validation(trainer, "all tasks")

    bar, data = terminal.bar(kind, refresh_rate=10), loader(*task(0), batch_size=12)
    fit(Looking(), bar, model=Slow(), data=data, val=data, limit_val_batches=2, num_sanity_val_steps=0)
    lines = terminal.lines
    assert any(line.startswith("all tasks") and "1/" in line for line in lines)
    # Lightning's own bar is of the Trainer's own validation, which comes last.
    own = next(i for i, line in enumerate(lines) if line.startswith("Validation"))
    assert not any(line.startswith("all tasks") for line in lines[own:])
    assert not [name for name in vars(bar) if name.startswith("on_validation")]


def test_a_pass_before_rich_is_live_starts_it_for_a_while(terminal: Terminal) -> None:
    class Before(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            with progress(trainer, "before", 2) as advance:
                advance(2)
            say(trainer, "said")

    bar = terminal.bar(RichProgressBar)
    fit(Before(), bar)
    assert any(line.startswith("before") for line in terminal.lines)
    assert any(line.startswith("Epoch 0") for line in terminal.lines)


def test_without_a_bar_the_line_goes_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        fit(EWC(1.0), EpochBoundaries(1), max_epochs=1, enable_progress_bar=False)
    assert caplog.messages[-2].split(" · ")[0] == "task 0 ended at step 3"


@both
def test_a_disabled_bar_shows_nothing(
    kind: Any, terminal: Terminal, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        fit(EWC(1.0), terminal.bar(kind, refresh_rate=0))
    assert not any(terminal.lines)
    assert "task 0 ended at step 3" in caplog.text


def test_a_bar_of_another_kind_prints_the_line(terminal: Terminal) -> None:
    class Own(ProgressBar):
        def disable(self) -> None: ...

    fit(EWC(1.0), Own())
    assert [line[:22] for line in terminal.said()] == ["task 0 ended at step 3"]


def test_callbacks_add_to_the_line_in_their_order(terminal: Terminal) -> None:
    class Adds(Callback):
        def __init__(self, words: str | None) -> None:
            self.words = words

        def task_summary(self, task: int) -> str | None:
            return self.words and f"{self.words} {task}"

    fit(Adds("first"), Adds(None), Adds("second"), EpochBoundaries(1), terminal.bar(RichProgressBar))
    assert terminal.said() == ["task 0 ended at step 3 · first 0 · second 0"]


def test_the_seconds_of_all_rules_are_told(terminal: Terminal) -> None:
    class Sleeps(SynapticCallback):
        def consolidate(self, trainer: Any, pl_module: Any, synapses: Any, task: int) -> bool:
            time.sleep(0.55)
            return True

    one, two = Sleeps(name="one"), Sleeps(name="two")
    assert one.seconds == 0.0
    fit(one, two, EpochBoundaries(1), terminal.bar(TQDMProgressBar))
    assert 0.55 <= one.seconds < 5.0
    assert terminal.said() == [
        f"task 0 ended at step 3 · consolidation {one.seconds + two.seconds:.1f} s",
    ]


def test_seconds_are_of_the_last_task_alone() -> None:
    class Breaks(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            if trainer.current_epoch == 1:
                with torch.no_grad():
                    pl_module.net[0].weight.fill_(torch.nan)

    found = []

    class Look(Callback):
        def on_train_epoch_end(self, *args: Any) -> None:
            found.append(rule.seconds)

    rule = EWC(1.0)
    with pytest.warns(UserWarning, match="not finite"):
        fit(rule, EpochBoundaries(1), Breaks(), Look(), max_epochs=2, enable_progress_bar=False)
    assert found[0] > 0.0 and found[1] == 0.0


@both
def test_training_is_the_same_with_and_without_a_bar(kind: Any, terminal: Terminal) -> None:
    found = []
    for options in ({"enable_progress_bar": False}, {}):
        torch.manual_seed(0)
        model = Net()
        bars = [] if options else [terminal.bar(kind)]
        data = loader(*task(0), shuffle=True)
        fit(EWC(10.0), EpochBoundaries(1), *bars, model=model, data=data, max_epochs=3, **options)
        found.append(weights(model))
    assert torch.equal(*found)


def together(rank: int, folder: Path) -> None:
    for kind in BARS:
        with (folder / f"{kind.__name__}{rank}").open("w") as file:
            sys.stdout = sys.stderr = file
            bar = kind(**({"console_kwargs": {"file": file}} if kind is RichProgressBar else {}))
            options = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": True, "max_epochs": 2}
            fit(EWC(1.0), EpochBoundaries(1), bar, data=loader(*task(0), shuffle=True), **options)
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__


def test_of_two_processes_one_speaks(tmp_path: Path) -> None:
    train_together(2, together, tmp_path)
    for kind in BARS:
        first, second = ((tmp_path / f"{kind.__name__}{rank}").read_text() for rank in (0, 1))
        assert first.count("task 1 ended at step 4") == 1
        assert "Epoch" not in second and "task" not in second and "EWC" not in second
        assert kind is RichProgressBar or "/12 [" in first  # its share of the samples


def test_what_is_said_on_a_console_is_taken_as_it_is(terminal: Terminal) -> None:
    class Says(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            say(trainer, "[red]" + "x" * 150)

    fit(Says(), terminal.bar(RichProgressBar))
    assert isinstance(rich.get_console(), Console)
    assert terminal.lines.count("[red]" + "x" * 150) == 3


def test_rich_keeps_to_one_line_of_eighty_columns(terminal: Terminal) -> None:
    class Numbered(Net):  # as by a logger whose runs have names of letters
        def on_train_batch_start(self, *args: Any) -> None:
            progress_bar_metrics(self.trainer).setdefault("v_num", "jhe9")

    bar = RichProgressBar(console_kwargs={"force_terminal": True, "width": 80})
    data = loader(*task(0, 200), batch_size=4)
    fit(DriftBoundaries(), bar, model=Numbered(), max_epochs=3, data=data)
    shown = [line for line in terminal.lines if line.startswith("Epoch ") and "v_num: jhe9" in line]
    assert shown and all(
        len(line) <= 80 and "it/s task: " in line and "% v_num: jhe9" in line for line in shown
    )
    assert all("━" in line for line in shown)
