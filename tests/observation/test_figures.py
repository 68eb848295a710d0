"""What the figures show, and that it can be read."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from matplotlib import style
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from cl_callbacks.observation.figures import (
    accuracy_matrix,
    importance_by_layer,
    loss_and_drift,
    plasticity_by_layer,
    task_curves,
)
from cl_callbacks.observation.figures.card import PAPER
from tests.observation.drawn import boxes, contrast, cut_off, overlaps, pixels, saved, texts

NAN = float("nan")


def matrix(tasks: int) -> np.ndarray:
    rows, columns = np.indices((tasks + 1, tasks))
    return np.where(rows > columns, 0.97 * 0.97 ** (rows - 1 - columns), 0.1)


def names(tasks: int) -> list[str]:
    return [f"permutation {task} of the digits" for task in range(tasks)]


def curves(tasks: int, **options: Any) -> Figure:
    steps = np.arange(1, 3 * tasks + 1)
    ends = list(steps[2::3])
    scores = np.where(
        steps[:, None] > 3 * np.arange(tasks), 0.95 ** (steps[:, None] / 3 - np.arange(tasks)), 0.1
    )
    return task_curves(steps, scores, ends, **options)


def layers(count: int) -> list[str]:
    return [f"base_model.encoder.layer.{i // 4}.attention.{'qkvo'[i % 4]}_proj.weight" for i in range(count)]


def importance(count: int, title: str | None = None) -> Figure:
    return importance_by_layer(
        {n: np.geomspace(1e-9, 1e-3, 5) * (i + 1) for i, n in enumerate(layers(count))}, title=title
    )


def plasticity(count: int) -> Figure:
    share = {name: (i + 1) / count for i, name in enumerate(layers(count))}
    return plasticity_by_layer(share, {name: 1 - value for name, value in share.items()})


def drift(tasks: int) -> Figure:
    steps = np.arange(tasks * 20)
    ends = list(range(25, tasks * 20, 20))
    return loss_and_drift(
        steps, 1 / (1 + steps % 20), steps % 20, ends, [end - 5 for end in ends], threshold=15
    )


FIGURES: dict[str, Callable[[], Figure]] = {
    **{
        f"matrix-{n}": partial(lambda n: accuracy_matrix(matrix(n), title="Digits"), n)
        for n in (1, 2, 10, 12, 13, 50)
    },
    **{
        f"matrix-names-{n}": partial(lambda n: accuracy_matrix(matrix(n), names=names(n)), n)
        for n in (2, 10, 50)
    },
    "matrix-large-losses": lambda: accuracy_matrix(matrix(12) * 1e7, mode="min"),
    **{f"curves-{n}": partial(curves, n) for n in (1, 2, 10, 11, 50)},
    **{f"curves-names-{n}": partial(lambda n: curves(n, names=names(n)), n) for n in (10, 50)},
    "curves-equal": lambda: task_curves([0, 1], np.full((2, 10), 0.5), [1]),
    "curves-bursts": lambda: task_curves([0, 100], [[0.1], [0.9]], [1, 2, 3, 4, 50, 51, 90]),
    **{f"importance-{n}": partial(importance, n, "Importance") for n in (1, 4, 40, 150)},
    "importance-narrow": lambda: importance_by_layer({"body": [1e-3] * 5, "head": [4e-3] * 5}),
    **{f"plasticity-{n}": partial(plasticity, n) for n in (1, 4, 40)},
    "plasticity-unmeasured": lambda: plasticity_by_layer(dict.fromkeys("ab", NAN), dict.fromkeys("ab", NAN)),
    **{f"drift-{n}": partial(drift, n) for n in (2, 10, 50)},
}
ONE_OF_EACH = [
    "matrix-10",
    "curves-2",
    "curves-50",
    "importance-4",
    "plasticity-4",
    "plasticity-unmeasured",
    "drift-10",
]

every_figure = pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES.keys())
one_of_each = pytest.mark.parametrize("draw", [FIGURES[name] for name in ONE_OF_EACH], ids=ONE_OF_EACH)


@pytest.mark.slow
@every_figure
def test_no_text_stands_on_another_or_is_cut_off(draw: Callable[[], Figure]) -> None:
    figure = draw()
    assert isinstance(figure, Figure)
    found = boxes(figure)
    assert len(found) >= 5
    assert overlaps(found) == []
    assert cut_off(found, figure) == []


@one_of_each
def test_pyplot_is_not_needed(draw: Callable[[], Figure], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it fails
    assert len(np.unique(pixels(draw()))) > 10


@pytest.mark.slow
@one_of_each
def test_looks_the_same_on_every_page_and_in_every_style(draw: Callable[[], Figure]) -> None:
    plain = saved(draw())
    assert (plain[..., 3] == 1).all(), "the page shines through"
    dark = {"lines.linewidth": 9, "axes.grid": True, "font.size": 20, "savefig.transparent": True}
    with style.context(["dark_background", dark]):
        np.testing.assert_array_equal(saved(draw()), plain)


@one_of_each
def test_text_and_curves_can_be_read(draw: Callable[[], Figure]) -> None:
    figure = draw()
    pixels(figure)
    cells = set(figure.axes[0].texts) if figure.axes[0].images else set()
    assert all(contrast(text.get_color(), PAPER) >= 3 for text in texts(figure) if text not in cells)
    for axes in figure.axes:
        assert all(
            contrast(bar.get_facecolor(), PAPER) >= 3 for bar in axes.patches if bar.get_alpha() is None
        )


def test_curves_go_from_dark_to_light_and_the_lightest_can_be_seen() -> None:
    lines = curves(50).axes[0].lines
    solid = [line for line in lines if line.get_zorder() == 2]
    seen = [contrast(line.get_color(), PAPER) for line in solid]
    assert len(solid) == 50
    assert min(seen) >= 3
    assert seen == sorted(seen, reverse=True)


def test_a_curve_is_pale_until_its_task_begins() -> None:
    axes = task_curves([0, 10, 20, 30], [[0.9, 0.1], [0.8, 0.2], [0.7, 0.8], [0.6, 0.9]], [10, 30]).axes[0]
    first, before, after, *_ = axes.lines
    assert [list(line.get_xdata()) for line in (first, before, after)] == [
        [0, 10, 20, 30],
        [0, 10],
        [10, 20, 30],
    ]
    assert contrast(before.get_color(), PAPER) < 1.5 < 3 <= contrast(after.get_color(), PAPER)
    assert before.get_zorder() < first.get_zorder()


@pytest.mark.parametrize(("tasks", "numbers"), [(1, 2), (2, 6), (12, 156), (13, 0), (50, 0)])
def test_cells_have_numbers_as_long_as_there_is_room(tasks: int, numbers: int) -> None:
    assert len(accuracy_matrix(matrix(tasks)).axes[0].texts) == numbers


@pytest.mark.parametrize("mode", ["max", "min"])
def test_numbers_can_be_read_in_their_cells(mode: Any) -> None:
    figure = accuracy_matrix(np.linspace(0, 1, 12 * 13).reshape(13, 12), mode=mode)
    axes = figure.axes[0]
    image = axes.images[0]
    for text in axes.texts:
        task, row = text.get_position()
        cell = image.cmap(image.norm(image.get_array()[row, task]))
        assert contrast(text.get_color(), cell) >= 3.5


def at(figure: Figure, picture: np.ndarray, row: int, task: int, shift: float = 0.35) -> np.ndarray:
    """The colours in a corner of a cell."""
    x, y = figure.axes[0].transData.transform((task - shift, row - shift))
    top = len(picture) - round(y)
    return picture[top - 3 : top + 4, round(x) - 3 : round(x) + 4, :3].reshape(-1, 3) / 255


def test_what_was_not_measured_is_hatched_and_has_no_value() -> None:
    values = matrix(4)
    values[2, 3] = NAN
    figure = accuracy_matrix(values)
    picture = pixels(figure)
    image = figure.axes[0].images[0]
    assert np.argwhere(np.ma.getmaskarray(image.get_array())).tolist() == [[2, 3]]
    assert (3, 2) not in [text.get_position() for text in figure.axes[0].texts]
    assert len(figure.axes[0].texts) == 19
    hatched = at(figure, picture, row=2, task=3)
    assert np.ptp(hatched, axis=1).max() < 0.1, "grey"
    assert hatched.mean() > 0.7 and np.ptp(hatched) > 0.1, "lines on paper"
    assert np.ptp(at(figure, picture, row=2, task=2), axis=1).min() > 0.1, "a colour"
    assert "not measured" in [text.get_text() for text in texts(figure)]
    assert "not measured" not in [text.get_text() for text in texts(accuracy_matrix(matrix(4)))]


def test_the_task_just_learned_is_outlined() -> None:
    outlines = [c for c in accuracy_matrix(matrix(3)).axes[0].collections if isinstance(c, PatchCollection)]
    centres = [path.get_extents().get_points().mean(axis=0).tolist() for path in outlines[0].get_paths()]
    assert centres == [[0, 1], [1, 2], [2, 3]]


@pytest.mark.parametrize(("mode", "words"), [("max", "higher is better"), ("min", "lower is better")])
def test_good_is_bright_whichever_way_is_better(mode: Any, words: str) -> None:
    figure = accuracy_matrix([[0.0], [2.0]], mode=mode)
    image = figure.axes[0].images[0]
    low, high = (contrast(image.cmap(image.norm(value)), "black") for value in (0.0, 2.0))
    assert (high > low) == (mode == "max")
    assert figure.axes[1].get_ylabel() == words


def test_accuracies_have_one_scale_in_all_figures_and_losses_their_own() -> None:
    assert accuracy_matrix([[0.3], [0.4]]).axes[0].images[0].get_clim() == (0, 1)
    assert accuracy_matrix([[0.3], [0.4]], mode="min").axes[0].images[0].get_clim() == (0.3, 0.4)
    assert accuracy_matrix([[3.0], [7.0]]).axes[0].images[0].get_clim() == (3, 7)


def test_a_loss_that_exploded_is_shown_as_such() -> None:
    figure = accuracy_matrix([[2.0], [float("inf")]], mode="min")
    assert [text.get_text() for text in figure.axes[0].texts] == ["2.00", "inf"]
    assert figure.axes[0].images[0].get_clim() == (1.5, 2.5)


def test_axes_titles_and_names_are_written() -> None:
    written = [
        text.get_text()
        for text in texts(accuracy_matrix(matrix(2), names=["digits", "letters"], title="Run"))
    ]
    assert {"score on task", "after task", "digits", "letters", "—", "0 digits", "1 letters", "Run"} <= set(
        written
    )
    figure = curves(2, names=["digits", "letters"], monitor="val_acc")
    pixels(figure)
    written = [text.get_text() for text in texts(figure)]
    assert {"step", "val_acc", "digits", "letters", "end of task"} <= set(written)
    assert importance(4, title="Importance after task 3").axes[0].get_title() == "Importance after task 3"
    assert importance(4).axes[0].get_xlabel() == "importance"
    assert {t.get_text() for t in texts(plasticity(4))} >= {"share", "frozen weights", "mean plasticity"}
    assert {t.get_text() for t in texts(drift(4))} >= {
        "loss",
        "step",
        "end of task",
        "onset",
        "delay",
        "alarm",
    }


@pytest.mark.parametrize(("tasks", "labels", "axes"), [(2, 2, 1), (10, 10, 1), (11, 0, 2), (50, 0, 2)])
def test_curves_are_named_at_their_ends_or_on_a_colour_bar(tasks: int, labels: int, axes: int) -> None:
    figure = curves(tasks)
    assert len(figure.axes[0].texts) == labels
    assert len(figure.axes) == axes


def test_labels_keep_the_order_of_the_ends_of_the_curves() -> None:
    axes = task_curves([0, 1], [[0.5] * 10, [0.9, 0.91, 0.2, 0.89, 0.92, 0.9, 0.88, 0.1, 0.95, 0.93]]).axes[0]
    ends = [label.xy[1] for label in axes.texts]
    heights = [label.xyann[1] for label in axes.texts]
    assert np.argsort(ends, kind="stable").tolist() == np.argsort(heights, kind="stable").tolist()


@pytest.mark.parametrize("score", [0.0, 0.5, 1.0])
def test_labels_of_equal_scores_stay_beside_the_axes(score: float) -> None:
    axes = task_curves([0, 1], [[0.0] * 9 + [1.0], [score] * 10]).axes[0]
    heights = sorted(label.xyann[1] for label in axes.texts)
    assert heights[0] >= 0
    assert heights[-1] <= 1


def test_a_curve_joins_what_was_measured_and_one_that_was_not_is_left_out() -> None:
    axes = task_curves([0, 1, 2], [[0.1, NAN], [NAN, NAN], [0.9, NAN]]).axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.1, 0.9], []]
    assert [label.get_text() for label in axes.texts] == ["task 0"]


def test_boundaries_are_numbered_where_they_are() -> None:
    figure = curves(50)
    pixels(figure)
    top = figure.axes[0].child_axes[0]
    for label, place in zip(top.get_xticklabels(), top.get_xticks(), strict=True):
        assert place == 3 * (int(label.get_text()) + 1)
    assert [label.get_text() for label in top.get_xticklabels()] == [str(task) for task in range(0, 50, 5)]
    assert len([line for line in figure.axes[0].lines if len(set(line.get_xdata())) == 1]) == 50


def test_importance_is_drawn_from_quantile_to_quantile() -> None:
    axes = importance_by_layer(
        {"body": [1e-6, 1e-5, 1e-4, 1e-3, 1e-2], "head": [1e-3, 1e-2, 0.1, 1, 10]}
    ).axes[0]
    assert axes.get_xscale() == "log"
    assert [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches] == [
        pytest.approx((1e-5, 1e-3)),
        pytest.approx((1e-2, 1)),
    ]
    assert [
        line.get_xdata().tolist() if hasattr(line.get_xdata(), "tolist") else list(line.get_xdata())
        for line in axes.lines
    ] == [[1e-6, 1e-2], [1e-4], [1e-3, 10], [0.1]]


def test_no_importance_and_none_measured_are_told_from_a_small_one() -> None:
    axes = importance_by_layer(
        {"a": [0.0] * 5, "b": [NAN] * 5, "c": [0, 0, 1e-6, 1e-3, 1], "d": [1, 1, 1, 1, float("inf")]}
    ).axes[0]
    assert [text.get_text() for text in axes.texts] == ["0", "not measured", "infinite"]
    assert [text.get_position()[1] for text in axes.texts] == [0, 1, 3]
    assert [bar.get_x() for bar in axes.patches] == [axes.get_xlim()[0]], "into the left edge"
    assert [text.get_text() for text in importance_by_layer({"a": [0.0] * 5}).axes[0].texts] == ["0"]


@pytest.mark.parametrize("draw", [importance, plasticity])
def test_long_names_are_shortened_and_can_be_told_apart(draw: Callable[[int], Figure]) -> None:
    axes = draw(40).axes[0]
    written = [label.get_text() for label in axes.get_yticklabels()]
    assert len(set(written)) == 40
    assert max(map(len, written)) <= 40 < len(layers(40)[0])
    assert all("…" in name for name in written)
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first layer at the top"


def test_plasticity_runs_from_0_to_1_and_what_is_missing_is_said() -> None:
    axes = plasticity_by_layer({"body": 0.25, "head": NAN}, {"body": 0.5, "head": 1.0}).axes[0]
    assert axes.get_xlim() == (0, 1)
    assert [(bar.get_width(), round(bar.get_y() + bar.get_height() / 2, 3)) for bar in axes.patches] == [
        (0.25, -0.2),
        (0.5, 0.2),
        (1.0, 1.2),
    ]
    assert [(text.get_text(), text.get_position()[1]) for text in axes.texts] == [("not measured", 0.8)]


def test_a_change_is_marked_from_onset_to_alarm() -> None:
    figure = loss_and_drift(range(100), range(100), range(100), [40, 60, 90], [30, None, NAN], threshold=12.5)
    for axes in figure.axes:
        upright = [
            line for line in axes.lines if len(line.get_xdata()) == 2 and len(set(line.get_xdata())) == 1
        ]
        assert sorted((line.get_linestyle(), line.get_xdata()[0]) for line in upright) == [
            ("-", 40),
            ("-", 60),
            ("-", 90),
            ("--", 30),
        ]
        assert [(span.get_x(), span.get_width()) for span in axes.patches] == [(30, 10)]
    assert [line.get_ydata()[0] for line in figure.axes[1].lines if line.get_linestyle() == ":"] == [12.5]
    assert figure.axes[0].get_shared_x_axes().joined(*figure.axes)


def test_only_what_is_drawn_is_explained() -> None:
    figure = loss_and_drift([0, 1], [2, 1], [0, 0], [], [])
    assert figure.legends == []
    figure = loss_and_drift([0, 1], [2, 1], [0, 0], [1], [None])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["alarm"]


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: accuracy_matrix([]), "matrix is empty"),
        (lambda: accuracy_matrix([[0.5]]), r"one row more than tasks.*\(1, 1\)"),
        (lambda: accuracy_matrix([[NAN], [NAN]]), "matrix holds no score"),
        (lambda: accuracy_matrix([[0.1], [0.9]], names=["a", "b"]), "1 tasks, 2 names"),
        (lambda: accuracy_matrix([[0.1], [0.9]], mode="best"), "mode must be 'max' or 'min'; got 'best'"),  # type: ignore[arg-type]
        (lambda: task_curves([], []), "steps is empty"),
        (lambda: task_curves([1, 2], [[0.5]]), "a row for each step"),
        (lambda: task_curves([1], [0.5]), "a column for each task"),
        (lambda: task_curves([2, 1], [[0.5], [0.6]]), "steps must rise"),
        (lambda: task_curves([1], [[NAN]]), "scores holds no score"),
        (lambda: task_curves([1], [[0.5]], names=[]), "1 tasks, 0 names"),
        (lambda: task_curves([1], [[0.5]], [2, 1]), "boundaries must be in the order"),
        (lambda: importance_by_layer({}), "quantiles is empty"),
        (lambda: importance_by_layer({"body": [1.0]}), "body must be five"),
        (lambda: importance_by_layer({"body": [-1, 0, 0, 0, 0]}), "body must not be negative"),
        (lambda: importance_by_layer({"body": [0, 2, 1, 3, 4]}), "body must rise"),
        (lambda: plasticity_by_layer({}, {}), "frozen_fraction is empty"),
        (lambda: plasticity_by_layer({"a": 0.0}, {"b": 0.0}), r"same layers; not so: \['a', 'b'\]"),
        (lambda: plasticity_by_layer({"a": 0.0}, {"a": 1.5}), "between 0 and 1; a has 1.5"),
        (lambda: loss_and_drift([], [], [], [], []), "steps is empty"),
        (lambda: loss_and_drift([0], [1, 2], [0], [], []), "loss must have one value per step"),
        (lambda: loss_and_drift([0], [1], [NAN], [], []), "score holds no value"),
        (lambda: loss_and_drift([0], [1], [0], [0], []), "1 boundaries, 0 onsets"),
    ],
)
def test_what_is_missing_is_said(draw: Callable[[], Figure], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        draw()


def test_colours_are_told_apart_without_red_and_green() -> None:
    """Blue against vermillion, as a deuteranope sees them (Machado 2009, severity 1)."""
    seen = np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    )
    bars = plasticity_by_layer({"a": 0.5}, {"a": 0.5}).axes[0].patches
    first, second = (seen @ np.asarray(to_rgb(bar.get_facecolor())) for bar in bars)
    assert np.abs(first - second).max() > 0.5
