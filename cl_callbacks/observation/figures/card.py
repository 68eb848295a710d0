"""Background, colours and text styles of every figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cl_callbacks.observation.figures.labels import cut, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Grey text that is readable on both white and near-black has a contrast of 4.4 at best, and no sequential
# colour map shows on both. On an opaque background of a known colour, text has a contrast of 15.
PAPER = "#f6f7f9"
INK = "#1b1f24"
FAINT = "#6b7280"
GRID = "#dde1e6"
EDGE = "#b3bac4"

# The colours of Okabe and Ito that contrast with PAPER.
BLUE, VERMILLION = "#0072B2", "#D55E00"

TEXT = 8.0


def card(width: float, height: float) -> Figure:
    """Creates an empty figure with an opaque background; width and height are in inches."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(width, height), layout="constrained", facecolor=PAPER, edgecolor=PAPER)
    # Styles and `savefig(transparent=True)` replace the figure's own background, but not what is drawn on it.
    paper = Rectangle((0, 0), 1, 1, transform=figure.transFigure, color=PAPER, antialiased=False, zorder=-1)
    paper.set_in_layout(False)
    figure.add_artist(paper)
    return figure


def dress(axes: Axes, *, x: str = "", y: str = "", title: str | None = None, grid: str | None = None) -> None:
    """Sets colours, labels and title of axes, overriding the user's matplotlib style.

    A ``grid`` is ``"x"`` or ``"y"``, for lines across that axis.
    """
    axes.set_facecolor(PAPER)
    for spine in axes.spines.values():
        spine.set(color=FAINT, linewidth=0.8)
    axes.tick_params(which="both", colors=INK, labelsize=TEXT, color=FAINT)
    axes.set_xlabel(x, color=INK, fontsize=TEXT + 1)
    axes.set_ylabel(cut(plain(y), 60), color=INK, fontsize=TEXT + 1)
    axes.grid(False, which="both", axis="both")
    if grid is not None:
        axes.grid(True, axis=grid, color=GRID, linewidth=0.8, linestyle="-")  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    if title:
        axes.set_title(cut(plain(title), 80), color=INK, fontsize=TEXT + 3)


def legend(figure: Figure, handles: list[Any], columns: int) -> None:
    """Adds a legend below the axes, with that many columns."""
    if handles:
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            fontsize=TEXT,
            labelcolor=INK,
        )
