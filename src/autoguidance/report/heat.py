"""Distances over two choices, as a map of cells.

The colour is one of the page's, more opaque the lower the distance (on a logarithmic scale), so that it follows light
and dark mode and never is the only sign: the figure stands in the cell. The best cell is framed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from autoguidance.report.plots import INK, MUTED, STYLE, method_colour
from autoguidance.report.verdict import figure

_FAINTEST, _STRONGEST = 0.04, 0.5  # opacity; ink on the strongest still has a contrast of 4.5 to 1 in both modes


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell.

    Attributes:
        column, row: its place, from the left and from above.
        fd: the distance; None where it was not measured.
        note: a second line; "" for none.
    """

    column: int
    row: int
    fd: float | None
    note: str = ""


def draw_cells(cells: Sequence[Cell], columns: Sequence[str], rows: Sequence[str], across: str, down: str) -> Figure:
    """The map.

    Args:
        cells: at most one per place.
        columns, rows: their names.
        across, down: what the columns and the rows are.
    """
    positive = [cell.fd for cell in cells if cell.fd is not None and cell.fd > 0]
    low, high = (float(np.log(end)) for end in (min(positive, default=1.0), max(positive, default=1.0)))
    best = min(((cell.fd, place) for place, cell in enumerate(cells) if cell.fd is not None), default=None)
    with rc_context({**STYLE, "axes.grid": False}):
        plot = Figure(figsize=(5.4, 1.1 + 0.68 * len(rows)), layout="constrained")
        axes = plot.add_subplot()
        for place, cell in enumerate(cells):
            x, y = cell.column, cell.row
            if cell.fd is None:
                axes.text(x, y, "–", ha="center", va="center", color=MUTED)
                continue
            height = (float(np.log(cell.fd)) - low) / (high - low) if cell.fd > 0 and high > low else 0.0
            opacity = _STRONGEST + (_FAINTEST - _STRONGEST) * height
            fill = {"facecolor": method_colour("autoguidance"), "alpha": opacity, "linewidth": 0}
            axes.add_patch(Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, **fill))
            if best is not None and place == best[1]:
                frame = {"fill": False, "edgecolor": INK, "linewidth": 2}
                axes.add_patch(Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, **frame))
            axes.text(x, y - (0.14 if cell.note else 0), figure(cell.fd), ha="center", va="center", fontsize=12)
            axes.text(x, y + 0.24, cell.note, ha="center", va="center", fontsize=9)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(across)
        axes.set_ylabel(down)
    return plot
