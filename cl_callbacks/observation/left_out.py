"""What the figures of a task matrix need of its rows that are not kept whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


class LeftOut:
    """The few scores of each row left out on which figures and checks depend, so that they stay exact.

    These are the scores of the tasks learned just before and after the row; those of the loaders that
    improved most to or from it, by which another order of the tasks is noticed; the best score of each
    loader since its task was learned; and the range of all scores.

    Args:
        higher_is_better: whether higher scores are better.

    Attributes:
        parts: score by loader, by number of tasks learned.
        best: for each loader, the row with the best score among rows left out, and this score.
        range: least and greatest finite score; empty before any.
        loaders: the number of loaders, as far as known; 0 before any.
    """

    def __init__(self, higher_is_better: bool) -> None:
        self.higher_is_better = higher_is_better
        self.parts: dict[int, dict[int, float]] = {}
        self.best: dict[int, tuple[int, float]] = {}
        self.range: list[float] = []
        self.loaders = 0

    def take(
        self,
        learned: int,
        scores: Sequence[float],
        before: Mapping[int, float],
        after: Mapping[int, float],
        begun: Sequence[int | None],
    ) -> None:
        """Takes over a row, of the scores after ``learned`` tasks.

        Args:
            learned: the number of tasks learned.
            scores: the scores by loader.
            before: what is known of the scores in the row before, by loader; empty without one.
            after: likewise in the row after.
            begun: the loader of each task.
        """
        self.loaders = max(self.loaders, len(scores))
        measured = {loader: score for loader, score in enumerate(scores) if not math.isnan(score)}
        needed = {loader for loader in begun[max(learned - 1, 0) : learned + 1] if loader is not None}
        sign = 1 if self.higher_is_better else -1
        for row, direction in ((after, sign), (before, -sign)):
            gains = {loader: direction * (row[loader] - s) for loader, s in measured.items() if loader in row}
            if gains:
                needed.add(max(gains, key=gains.__getitem__))
        self.parts[learned] = {loader: measured[loader] for loader in sorted(needed) if loader in measured}
        for loader in dict.fromkeys(begun[:learned]):
            if loader is not None and loader in measured:
                known = self.best.get(loader)
                if known is None or sign * measured[loader] > sign * known[1]:
                    self.best[loader] = (learned, measured[loader])
        finite = [*filter(math.isfinite, measured.values()), *self.range]
        self.range = [min(finite), max(finite)] if finite else []

    def rows(self) -> dict[int, dict[int, float]]:
        """All scores that are known, by number of tasks learned and by loader."""
        found = {learned: dict(part) for learned, part in self.parts.items()}
        for loader, (learned, score) in self.best.items():
            found[learned][loader] = score
        return found

    def state_dict(self) -> dict[str, Any]:
        """Numbers only."""
        parts = {learned: dict(part) for learned, part in self.parts.items()}
        kept = {"parts": parts, "best": dict(self.best), "range": list(self.range)}
        return kept | {"loaders": self.loaders}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores the state that :meth:`state_dict` returned."""
        self.parts = {learned: dict(part) for learned, part in state["parts"].items()}
        self.best = {loader: (row, score) for loader, (row, score) in state["best"].items()}
        self.range, self.loaders = list(state["range"]), int(state["loaders"])
