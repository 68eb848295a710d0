"""Slow metrics of a sequence of tasks, from lists of lists of scores; tasks are counted as in the papers.

``scores[k][i - 1]`` is the paper's R_{k,i}: the score on task i after k tasks, k = 0 being before any.
"""

from __future__ import annotations

import math

Scores = list[list[float]]


def mean(values: list[float]) -> float:
    """Average the values that are not NaN; NaN if there are none."""
    there = [value for value in values if not math.isnan(value)]
    return sum(there) / len(there) if there else math.nan


def learned(scores: Scores) -> int:
    """Return T, the index of the last row in which anything was measured."""
    last = 0
    for k in range(len(scores)):
        for score in scores[k]:
            if not math.isnan(score):
                last = k
    return last


def average_accuracy(scores: Scores) -> float:
    """Average accuracy: 1/T sum_{i=1}^T R_{T,i}."""
    t = learned(scores)
    return mean([scores[t][i - 1] for i in range(1, t + 1)])


def last_tasks_accuracy(scores: Scores, last: int) -> float:
    """Mean of R_{T,i} over the last tasks i <= T."""
    t = learned(scores)
    return mean([scores[t][i - 1] for i in range(1, t + 1) if i > t - last])


def learning_accuracy(scores: Scores) -> float:
    """Learning accuracy: 1/T sum_{i=1}^T R_{i,i}."""
    return mean([scores[i][i - 1] for i in range(1, learned(scores) + 1)])


def forgetting_per_task(scores: Scores) -> list[float]:
    """Forgetting of each task: f_i = max_{i <= k <= T-1} R_{k,i} - R_{T,i}, for i < T."""
    t = learned(scores)
    values = []
    for i in range(1, len(scores)):
        earlier = [scores[k][i - 1] for k in range(i, t) if not math.isnan(scores[k][i - 1])]
        values.append(max(earlier) - scores[t][i - 1] if earlier else math.nan)
    return values


def forgetting(scores: Scores) -> float:
    """Average forgetting: 1/(T-1) sum_{i=1}^{T-1} f_i."""
    return mean(forgetting_per_task(scores))


def backward_transfer(scores: Scores) -> float:
    """Backward transfer: 1/(T-1) sum_{i=1}^{T-1} R_{T,i} - R_{i,i}."""
    t = learned(scores)
    return mean([scores[t][i - 1] - scores[i][i - 1] for i in range(1, t)])


def forward_transfer(scores: Scores) -> float:
    """Forward transfer: 1/(T-1) sum_{i=2}^T R_{i-1,i} - b_i, b_i = R_{0,i}."""
    t = learned(scores)
    return mean([scores[i - 1][i - 1] - scores[0][i - 1] for i in range(2, t + 1)])


def intransigence(scores: Scores, reference: list[float]) -> float:
    """Intransigence: 1/T sum_{i=1}^T a*_i - R_{i,i}."""
    return mean([reference[i - 1] - scores[i][i - 1] for i in range(1, learned(scores) + 1)])


def in_order(scores: Scores, order: list[int | None], sign: float = 1.0) -> dict[str, float]:
    """All metrics of tasks in any order: order[k - 1] is the column, from 0, of the k-th task learned."""
    t = learned(scores)
    when: dict[int, list[int]] = {}
    for k in range(1, t + 1):
        if order[k - 1] is not None:
            when.setdefault(order[k - 1], []).append(k)
    now, just_learned = scores[t], order[t - 1] if t else None
    lost, changed, ahead = [], [], []
    for j, rows in when.items():
        if j != just_learned:
            kept = [sign * scores[k][j] for k in range(rows[0], t) if not math.isnan(scores[k][j])]
            lost.append(max(kept) - sign * now[j] if kept else math.nan)
            changed.append(sign * (now[j] - scores[rows[-1]][j]))
        if rows[0] > 1:
            ahead.append(sign * (scores[rows[0] - 1][j] - scores[0][j]))
    return {
        "average_accuracy": mean([now[j] for j in when]),
        "learning_accuracy": mean([scores[k][j] for j, rows in when.items() for k in rows]),
        "forgetting": mean(lost),
        "backward_transfer": mean(changed),
        "forward_transfer": mean(ahead),
    }
