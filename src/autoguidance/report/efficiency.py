"""The study `efficiency` on the page: is guidance worth its evaluations, or would more steps have done as much?

    plot      Fréchet distance over operations of the networks per image (10^9, logarithmic); the Pareto front joined
    table     operations, seconds per image and the front, the cheapest row first
    sentence  what autoguidance costs at the quality of the best unguided row u:  min {F_a : fd_a <= fd_u} / F_u

Operations compare between machines, seconds do not. A row is named "METHOD, N steps": the method is its series (colour
and marker), the rest labels its point.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from autoguidance.errors import UserError
from autoguidance.report.markup import escape, figure_block, table
from autoguidance.report.plots import (
    INK,
    OTHER_COLOURS,
    STYLE,
    colour_variable,
    inline,
    legend_above,
    log_if_wide,
    method_colour,
    method_marker,
    method_title,
)
from autoguidance.report.records import METHODS, Row, RunRecords, number
from autoguidance.report.verdict import compare, figure

_LABEL_SIZE, _LABEL_HEIGHT = 10, 12  # points
_FURTHER_MARKERS = ("v", "P", "X", "*", "<", ">")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One row of the study.

    Attributes:
        row: what was measured.
        flops: operations of the networks per image; None where unknown.
        on_front: no other row beats it in both distance and operations.
    """

    row: Row
    flops: float | None
    on_front: bool

    @property
    def series(self) -> str:
        """The method without its number of steps."""
        return self.row.method.rpartition(", ")[0] or self.row.method

    @property
    def label(self) -> str:
        """What tells it apart in its series."""
        return self.row.method.rpartition(", ")[2]

    @property
    def giga(self) -> str:
        return "–" if self.flops is None else figure(self.flops / 1e9)


def read_costs(records: RunRecords) -> tuple[Cost, ...]:
    """The rows with their cost, the cheapest first; () for a run that is no such study. Raises UserError where damaged."""
    path = records.folder / "results.json"
    rows = {row.method: row for row in records.rows}
    costs = []
    for record in records.efficiency:
        method, front = record["method"], record.get("pareto", False)
        flops = number(record.get("flops"), f"flops of {method}", path)
        if not isinstance(front, bool) or (flops is not None and flops <= 0):
            raise UserError(f"{path}: the efficiency of {method} is damaged; restore the file or run again")
        if method in rows:
            costs.append(Cost(row=rows[method], flops=flops, on_front=front))
    return tuple(sorted(costs, key=lambda cost: float("inf") if cost.flops is None else cost.flops))


def efficiency_section(records: RunRecords, name: str) -> str:
    """Heading, sentence, plot and table; "" for a run that is no such study.

    Args:
        records: the run.
        name: prefix of the SVG's identifiers, unique in the page.

    Raises: UserError where a record is damaged.
    """
    costs = read_costs(records)
    if not costs:
        return ""
    sentence = price_in_words(costs)
    plot = figure_block(cost_plot(costs, name))
    return (
        "<h3>Quality against cost</h3>"
        + (f"<p>{escape(sentence)}</p>" if sentence else "")
        + (f'<div class="plots">{plot}</div>' if plot else "")
        + _costs_table(costs)
    )


def price_in_words(costs: Sequence[Cost]) -> str:
    """What autoguidance costs at the quality of the best unguided row; "" where either was not measured."""
    measured = [(cost, cost.row.fd, cost.flops) for cost in costs if cost.row.fd is not None and cost.flops is not None]
    unguided = [item for item in measured if item[0].series == "unguided"]
    guided = [
        item for item in measured if item[0].series.partition(",")[0] in ("autoguidance", "autoguidance+interval")
    ]
    if not unguided or not guided:
        return ""
    best, distance, flops = min(unguided, key=lambda item: item[1])
    reached = [item for item in guided if item[1] <= distance]
    if not reached:
        nearest, its_distance, _ = min(guided, key=lambda item: item[1])
        return (
            f"No row of autoguidance reaches the best unguided row, “{best.row.method}”, with its distance of "
            f"{figure(distance)} at {best.giga} GFLOPs per image; the nearest is “{nearest.row.method}” with "
            f"{figure(its_distance)} at {nearest.giga} GFLOPs."
        )
    cheapest, its_distance, its_flops = min(reached, key=lambda item: item[2])
    result = compare(cheapest.row, best.row)
    overlap = " The repeats of the two overlap." if result and result.num_repeats > 1 and not result.separated else ""
    return (
        f"“{cheapest.row.method}” is at least as good as the best unguided row, “{best.row.method}”, for "
        f"{figure(its_flops / flops)} times the operations: distance {figure(its_distance)} against {figure(distance)}, "
        f"{cheapest.giga} against {best.giga} GFLOPs per image.{overlap}"
    )


def _looks(costs: Sequence[Cost]) -> dict[str, tuple[str, str]]:
    """(colour, marker) by series, the known methods first."""
    series = list(dict.fromkeys(cost.series for cost in costs))
    known = [method for method in METHODS if method in series]
    looks = {method: (method_colour(method), method_marker(method)) for method in known}
    for place, method in enumerate(sorted(set(series) - set(known))):
        colour = OTHER_COLOURS[place % len(OTHER_COLOURS)]
        looks[method] = colour, _FURTHER_MARKERS[place % len(_FURTHER_MARKERS)]
    return looks


def cost_plot(costs: Sequence[Cost], name: str) -> tuple[str, str] | None:
    """(caption, SVG) of distance over operations; None where no row has both."""
    points = [
        (cost, cost.flops / 1e9, cost.row.fd) for cost in costs if cost.flops is not None and cost.row.fd is not None
    ]
    if not points:
        return None
    front = [point for point in points if point[0].on_front]
    with rc_context(STYLE):
        plot = Figure(figsize=(5.4, 4.4), layout="constrained")
        axes = plot.add_subplot()
        axes.plot(
            [x for _, x, _ in front],
            [y for _, _, y in front],
            color=INK,
            linewidth=1,
            label="Pareto front",
            gid="front",
        )
        for method, (colour, marker) in _looks([cost for cost, _, _ in points]).items():
            own = [point for point in points if point[0].series == method]
            marks = {"s": 42, "color": colour, "marker": marker, "zorder": 3, "label": method_title(method)}
            axes.scatter([x for _, x, _ in own], [y for _, _, y in own], linewidths=0, **marks)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        low, high = points[0][1], points[-1][1]
        spread = max(high / low, 1.5)
        axes.set_xlim(low / spread**0.22, high * spread**0.06)  # room for the first label
        log_if_wide(axes, [y for _, _, y in points])
        _leave_room_below(axes, [y for _, _, y in points])
        axes.set_xlabel("GFLOPs per image")
        axes.set_ylabel("Fréchet distance")
        legend_above(axes, 2)
        _label(plot, axes, [(cost.label, x, y) for cost, x, y in front])
    spoken = "; ".join(f"{cost.row.method} {figure(y)} at {figure(x)}" for cost, x, y in front)
    caption = (
        "Fréchet distance over the networks' operations per image, both lower is better. The line joins the rows that no other "
        "beats in both; they are labelled."
    )
    description = (
        f"Fréchet distance over GFLOPs per image of {len(points)} rows. Pareto front: {spoken or 'not recorded'}."
    )
    return caption, inline(plot, f"{name}-cost", description)


def _leave_room_below(axes: Axes, values: Sequence[float]) -> None:
    """Vertical limits with room for three labels, one below the other, under the least value."""
    low, high = min(values), max(values)
    if high <= low:
        return
    if axes.get_yscale() == "log":
        span = high / min(value for value in values if value > 0)
        axes.set_ylim(high / span**1.28, high * span**0.08)
    else:
        axes.set_ylim(low - 0.28 * (high - low), high + 0.08 * (high - low))


def _label(plot: Figure, axes: Axes, front: Sequence[tuple[str, float, float]]) -> None:
    """Labels below and to the left of the front's points, where nothing else lies, each below those it would cover."""
    plot.draw_without_rendering()  # the layout decides where points lie
    scale = 72 / plot.dpi
    taken: list[tuple[float, float, float]] = []
    for text, x, y in front:
        right, top = axes.transData.transform((x, y)) * scale - 5
        left = right - 0.6 * _LABEL_SIZE * len(text)
        for other_left, other_right, other_top in sorted(taken, key=lambda box: -box[2]):
            if left < other_right and other_left < right and abs(top - other_top) < _LABEL_HEIGHT:
                top = other_top - _LABEL_HEIGHT
        taken.append((left, right, top))
        offset = (-5, top - axes.transData.transform((x, y))[1] * scale)
        place = {"xytext": offset, "textcoords": "offset points", "ha": "right", "va": "top"}
        axes.annotate(text, (x, y), fontsize=_LABEL_SIZE, **place)


def _costs_table(costs: Sequence[Cost]) -> str:
    looks = _looks(costs)
    best = min((cost.row.fd for cost in costs if cost.row.fd is not None), default=None)
    columns = [
        ("Row", "text"),
        ("Fréchet distance ↓", ""),
        ("GFLOPs<br>per image", ""),
        ("seconds<br>per image", ""),
        ("weight w", ""),
        ("Pareto front", "text"),
    ]
    rows = []
    for cost in costs:
        row = cost.row
        spread = "" if row.fd is None or row.fd_std is None else f" ± {figure(row.fd_std, 2)}"
        distance = figure(row.fd) + spread
        variable = colour_variable(looks[cost.series][0])
        cells = [
            f'<span class="key" style="--key: var(--{variable})"></span>{escape(row.method)}',
            f"<b>{distance}</b>" if row.fd is not None and row.fd == best else distance,
            cost.giga,
            figure(row.seconds_per_image, 2),
            "–" if row.weight is None else f"{row.weight:g}",
            "● on the front" if cost.on_front else "",
        ]
        rows.append(("best" if cost.on_front else "", cells))
    caption = "What each row costs, the cheapest first; bold: the least distance. A multiplication and an addition are two operations."
    return table(caption, columns, rows)
