"""Progress bars and messages in the terminal that do not disturb Lightning's progress bar."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities import rank_zero_info
from rich.markup import escape

from cl_callbacks.training.lightning_private import (
    add_line,
    has_training_line,
    is_live,
    progress_bar_metrics,
    start_bar,
    stop_bar,
)
from cl_callbacks.training.one_line import keep_on_one_line

Advance = Callable[[int], None]


@contextmanager
def progress(trainer: Trainer, what: str, total: int | None = None) -> Iterator[Advance]:
    """Shows a bar below Lightning's own during a long operation inside a hook.

    Shows nothing without a progress bar, or with one that is neither Rich nor TQDM, or that is disabled, as
    on all processes but the first. The two libraries decide how often to write to the terminal.

    Args:
        trainer: that is in a hook.
        what: short description of the operation.
        total: number of steps (samples, batches); ``None`` if unknown.

    Returns:
        ``advance(n)``, to be called after ``n`` further steps.

    Example:
        >>> with progress(Trainer(logger=False, enable_progress_bar=False), "EWC: task 3", 500) as advance:
        ...     advance(32)
    """
    bar = _shown_bar(trainer)
    if isinstance(bar, RichProgressBar):
        with _rich(bar, trainer, what, total) as advance:
            yield advance
    elif isinstance(bar, TQDMProgressBar):
        with _tqdm(bar, what, total) as advance:
            yield advance
    else:
        yield lambda n: None


def say(trainer: Trainer, text: str) -> None:
    """Prints one line on rank zero: above the progress bar where there is one, else in Lightning's log.

    Example:
        >>> say(Trainer(logger=False, enable_progress_bar=False), "task 3 has ended")
    """
    text = text.encode("utf-8", "backslashreplace").decode()  # names may hold what no terminal can show
    bar = _shown_bar(trainer)
    if isinstance(bar, TQDMProgressBar):
        Tqdm.write(text, file=sys.stdout)  # the bar's own print shows nothing before and after it runs
    elif isinstance(bar, RichProgressBar):
        if is_live(bar):
            assert bar.progress is not None
            bar.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            rank_zero_info(text)
    elif bar is not None:
        bar.print(text)
    elif trainer.is_global_zero:
        rank_zero_info(text)


def show_in_progress_bar(trainer: Trainer, values: Mapping[str, str]) -> None:
    """Adds strings to the metrics of the progress bar, until the fit ends.

    A number that the user logs under the same key replaces them; here numbers would get decimal places.
    """
    shown, bar = progress_bar_metrics(trainer), trainer.progress_bar_callback
    for key, value in values.items():
        if isinstance(shown.get(key, ""), str):
            shown[key] = value
    if isinstance(bar, RichProgressBar):
        keep_on_one_line(bar)


def _shown_bar(trainer: Trainer) -> ProgressBar | None:
    bar = trainer.progress_bar_callback
    disabled = bar is None or not trainer.is_global_zero or getattr(bar, "is_disabled", False)
    return None if disabled else bar


@contextmanager
def _rich(bar: RichProgressBar, trainer: Trainer, what: str, total: int | None) -> Iterator[Advance]:
    started = not is_live(bar)
    if started:  # a boundary before the training, or after it
        start_bar(bar, trainer)
    live = bar.progress
    assert live is not None
    line = add_line(bar, escape(what), math.inf if total is None else total)

    def advance(n: int) -> None:
        live.update(line, advance=n)
        bar.refresh()

    try:
        yield advance
    finally:
        live.update(line, visible=False)  # not removed: Lightning indexes lines by id
        live.refresh()
        if started:
            stop_bar(bar)


@contextmanager
def _tqdm(bar: TQDMProgressBar, what: str, total: int | None) -> Iterator[Advance]:
    with Tqdm(
        desc=what,
        total=total,
        position=2 * bar.process_position + has_training_line(bar),
        leave=False,
        dynamic_ncols=True,
        file=sys.stdout,
        bar_format=bar.BAR_FORMAT,
    ) as line:
        yield line.update
