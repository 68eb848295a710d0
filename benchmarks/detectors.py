"""Detectors of change on made-up losses, of which everything is known: false alarms and delays.

    python benchmarks/detectors.py --json detectors.json    # a minute and a half

False alarms: on 20 streams of 5,000 losses that fall without a change (with noise of four kinds, fast and
slowly), in all; and on losses at rest of three distributions, per 1,000. Delay: median number of losses after
a rise of their logarithm by 1, 2 and 4 standard deviations, 300 losses after the start. ``cusum, median/MAD``
reads deviations from the running median in units of the median absolute deviation, where all others read
normal scores.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from river import drift

from cl_callbacks.drift import CUSUM, RiseMonitor


class MedianMonitor:
    """The robust standardisation that needs a symmetric distribution."""

    def __init__(self, warm_up: int = 50, window: int = 200) -> None:
        self.warm_up, self.window = warm_up, window
        self.restart()

    def restart(self) -> None:
        self.recent: deque[float] = deque(maxlen=self.window)
        self.cusum, self.drift_detected = CUSUM(), False

    def update(self, x: float) -> None:
        x = math.log(x)
        if len(self.recent) >= self.warm_up:
            median = statistics.median(self.recent)
            spread = 1.4826 * statistics.median(abs(value - median) for value in self.recent)
            self.cusum.update(max(-5.0, min(5.0, (x - median) / max(spread, 0.02))))
            self.drift_detected = self.cusum.drift_detected
        self.recent.append(x)


MONITORS: dict[str, Callable[[], Any]] = {
    "cusum": RiseMonitor,
    "adwin": lambda: RiseMonitor(drift.ADWIN()),
    "kswin": lambda: RiseMonitor(drift.KSWIN(seed=0)),
    "page-hinkley": lambda: RiseMonitor(drift.PageHinkley(mode="up", delta=0.5, threshold=20.0)),
    "cusum, median/MAD": MedianMonitor,
}

NOISE: dict[str, Callable[[random.Random], float]] = {
    "log-normal": lambda numbers: math.exp(0.5 * numbers.gauss(0, 1)),
    "exponential": lambda numbers: numbers.expovariate(1.0),
    "a hard batch in ten": lambda numbers: (
        1.0 if numbers.random() < 0.1 else 0.01 * math.exp(0.5 * numbers.gauss(0, 1))
    ),
}


def falling(seed: int, steps: int) -> Iterator[float]:
    """From 2.35 to 0.05, fast or slowly."""
    numbers = random.Random(seed)
    for step in range(steps):
        level = 0.05 + 2.3 * math.exp(-step / (300 if seed % 2 else 1500))
        noise = numbers.gauss(0, 1)
        yield (
            level * math.exp(0.3 * noise),
            max(level + 0.02 * noise, 1e-4),
            level * numbers.expovariate(1.0),
            level * math.exp(0.8 * noise),
        )[seed % 4]


def rising(deviations: float, seed: int, before: int = 300, after: int = 600) -> Iterator[float]:
    numbers = random.Random(seed)
    for step in range(before + after):
        yield math.exp(numbers.gauss(deviations if step >= before else 0.0, 1))


def alarms(monitor: Any, losses: Iterator[float]) -> list[int]:
    found = []
    for step, loss in enumerate(losses):
        monitor.update(loss)
        if monitor.drift_detected:
            found.append(step)
            monitor.restart()
    return found


def delay(make: Callable[[], Any], deviations: float) -> float:
    """Infinite where more than half were not found."""
    delays = []
    for seed in range(40):
        after = [step for step in alarms(make(), rising(deviations, seed)) if step >= 300]
        delays.append(after[0] - 300 if after else math.inf)
    return statistics.median(delays)


def measure(make: Callable[[], Any], steps: int) -> dict[str, float]:
    found: dict[str, float] = {
        "falling": sum(len(alarms(make(), falling(seed, steps))) for seed in range(20))
    }
    for name, draw in NOISE.items():
        numbers = random.Random(0)
        at_rest = (draw(numbers) for _ in range(10 * steps))
        found[name] = 1000 * len(alarms(make(), at_rest)) / (10 * steps)
    return found | {f"delay, {d:g} sd": delay(make, d) for d in (1.0, 2.0, 4.0)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--monitors", nargs="+", choices=MONITORS, default=list(MONITORS))
    parser.add_argument("--steps", type=int, default=5000, help="of a falling stream, a tenth of one at rest")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = {name: measure(MONITORS[name], args.steps) for name in args.monitors}
    table = Table(title="alarms in 20 falling streams; false alarms per 1,000 losses at rest; delays")
    for column in ("detector", *next(iter(results.values()))):
        table.add_column(column, justify="left" if column == "detector" else "right")
    for name, result in results.items():
        table.add_row(name, *(f"{value:g}" for value in result.values()))
    Console(width=120).print(table)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
