"""Plots of a run as inline SVG: distance over guidance weight, repeats per method, training loss.

Problem: the plots stand inside a page that is read on a phone and on a projector, in light and in dark mode, without
any request. So they are SVG with real text in the page's own font, drawn small enough that the text stays readable at
a phone's width, and coloured by CSS variables of the page: matplotlib draws with placeholder colours, which `inline`
replaces by `var(--…)`. Identifiers are prefixed, because several plots share one document. Every method has a colour
and a marker of its own, so that colour is never the only sign.

Distances measured on different numbers of images do not compare (the estimate is biased upwards, the more so the
fewer images), so a search that measured at several counts gets one curve panel for each.
"""

import html
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from autoguidance.report.records import METHOD_TITLES, RunRecords, SearchPoint, method_order
from autoguidance.report.verdict import figure

INK, MUTED, _RULE, _SURFACE = "#010101", "#020202", "#030303", "#040404"
_METHOD_COLOURS = {"unguided": "#110000", "cfg": "#110001", "cfg+interval": "#110002", "autoguidance": "#110003"}
OTHER_COLOURS = ("#110004", "#110005")
_METHOD_MARKERS = {"unguided": "D", "cfg": "s", "cfg+interval": "^", "autoguidance": "o"}
_OTHER_MARKERS = ("v", "P")
# Placeholder -> (variable of the page, colour where the page defines none).
_VARIABLES = {
    INK: ("ink", "#1c2430"),
    MUTED: ("muted", "#5c6675"),
    _RULE: ("rule", "#d9dee6"),
    _SURFACE: ("surface", "#ffffff"),
    "#110000": ("method-unguided", "#5c6675"),
    "#110001": ("method-cfg", "#1f6fb5"),
    "#110002": ("method-interval", "#7a4fb5"),
    "#110003": ("method-autoguidance", "#c2410c"),
    "#110004": ("method-other", "#0f766e"),
    "#110005": ("method-another", "#a21caf"),
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 11,
    "font.family": "DejaVu Sans",
    "text.parse_math": False,  # names are shown as they are, dollar signs and all
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "grid.color": _RULE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 10,
}
_WEIGHT_TICKS = (1.01, 1.02, 1.05, 1.1, 1.2, 1.5, 2, 3, 5, 9)
_MAX_PANELS = 3


def method_variable(method: str) -> str:
    """Name of the page's CSS variable that holds a method's colour."""
    return colour_variable(method_colour(method))


def colour_variable(colour: str) -> str:
    """Name of the page's CSS variable that a plot's colour stands for."""
    return _VARIABLES[colour][0]


def method_colour(method: str) -> str:
    """The placeholder of a method's colour; "METHOD, 12 steps" has METHOD's."""
    return _METHOD_COLOURS.get(method.partition(", ")[0]) or OTHER_COLOURS[sum(method.encode()) % len(OTHER_COLOURS)]


def method_marker(method: str) -> str:
    """A method's marker; "METHOD, 12 steps" has METHOD's."""
    return _METHOD_MARKERS.get(method.partition(", ")[0]) or _OTHER_MARKERS[sum(method.encode()) % len(_OTHER_MARKERS)]


def method_title(method: str) -> str:
    return METHOD_TITLES.get(method, method)


def inline(plot: Figure, name: str, description: str) -> str:
    """A figure as an `<svg>` element for a page's body: described, in the page's colours, with prefixed ids."""
    buffer = io.StringIO()
    with rc_context({**STYLE, "svg.hashsalt": name}):  # the salt makes the identifiers, and so the page, reproducible
        plot.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    for placeholder, (variable, fallback) in _VARIABLES.items():
        svg = svg.replace(placeholder, f"var(--{variable}, {fallback})")
    svg = re.sub(r"font: [^;\"]*?([0-9.]+px) [^;\"]*", r"font-size: \1; font-family: inherit", svg)
    size = re.search(r'viewBox="([^"]+)"', svg)
    box = size[1] if size else "0 0 100 100"
    opening = f'<svg class="plot" viewBox="{box}" role="img" aria-label="{html.escape(description)}">'
    return re.sub(r"^<svg[^>]*>", lambda _: opening, svg).strip()


def new_axes(height: float = 3.6) -> tuple[Figure, Axes]:
    plot = Figure(figsize=(5.4, height), layout="constrained")
    return plot, plot.add_subplot()


def legend_above(axes: Axes, columns: int = 2) -> None:
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(handles, labels, loc="outside upper left", ncols=columns, handlelength=1.6, columnspacing=1.4)


def log_if_wide(axes: Axes, values: Iterable[float]) -> None:
    """A logarithmic distance axis where the values span more than a factor of 6; else linear."""
    positive = [value for value in values if value > 0]
    if not positive or max(positive) < 6 * min(positive):
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def weight_axis(axes: Axes, weights: Sequence[float]) -> None:
    """w from left to right, spaced by log(w - 1) where small steps above 1 matter; ticks are w itself."""
    axes.set_xlabel("guidance weight w")
    if min(weights) <= 1 or min(weights) >= 1.3 or max(weights) - 1 < 3 * (min(weights) - 1):
        return
    axes.set_xscale("function", functions=(lambda w: np.log(np.maximum(w - 1, 1e-6)), lambda u: 1 + np.exp(u)))
    # Ticks one tenth of a decade from the data's ends still belong to it.
    low, high = 1 + (min(weights) - 1) * 0.8, 1 + (max(weights) - 1) * 1.25
    ticks = [tick for tick in _WEIGHT_TICKS if low <= tick <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(low, high)


def lower_envelope(points: Sequence[SearchPoint]) -> tuple[list[float], list[float]]:
    best: dict[float, float] = {}
    for point in points:
        if point.weight is not None:
            best[point.weight] = min(point.fd, best.get(point.weight, math.inf))
    return sorted(best), [best[weight] for weight in sorted(best)]


def distance_over_weight(records: RunRecords, name: str) -> list[tuple[str, str]]:
    """Curves of the search: every measured setting, a line through each method's best, the chosen one ringed.

    Args:
        records: a run; its `search` may be empty.
        name: prefix of the SVGs' identifiers, unique in the page.

    Returns:
        [(caption, SVG)], one per number of images at which the search measured (the three with most settings).
    """
    guided = [point for point in records.search if point.method != "unguided" and (point.weight or 0) > 1]
    counts = [count for count, _ in Counter(point.num_images for point in guided).most_common(_MAX_PANELS)]
    panels = []
    for count in sorted(counts, key=lambda count: count or 0):
        points = [point for point in guided if point.num_images == count]
        unguided = [point.fd for point in records.search if point.method == "unguided" and point.num_images == count]
        if not unguided and count in (None, records.num_images):
            unguided = [row.fd for row in records.rows if row.method == "unguided" and row.fd is not None]
        with rc_context(STYLE):
            plot, axes = new_axes()
            chosen = []
            for method in sorted({point.method for point in points}, key=method_order):
                own = [point for point in points if point.method == method]
                colour, marker = method_colour(method), method_marker(method)
                weights, best = lower_envelope(own)
                scattered = [(point.weight, point.fd) for point in own]
                axes.scatter(*zip(*scattered), s=10, color=colour, alpha=0.3, linewidths=0, marker=marker)
                axes.plot(weights, best, color=colour, marker=marker, markersize=4.5, label=method_title(method))
                chosen += [point for point in own if any(point.same_setting(row) for row in records.rows)]
            if unguided:
                axes.axhline(min(unguided), color=method_colour("unguided"), linestyle="--", label="unguided")
            if records.real_half is not None:
                axes.axhline(records.real_half, color=MUTED, linestyle=":", label="half of the real set")
            if chosen:
                ring = {"facecolors": "none", "edgecolors": INK, "linewidths": 1.6, "zorder": 4, "label": "chosen"}
                axes.scatter([point.weight or 1 for point in chosen], [point.fd for point in chosen], s=130, **ring)
            weight_axis(axes, sorted({point.weight or 1 for point in points}))
            shown = [point.fd for point in points] + unguided
            log_if_wide(axes, shown)
            axes.set_ylabel("Fréchet distance")
            legend_above(axes, 2)
        what = f"{len(points)} guided settings" + (f" on {count} images each" if count else "")
        lowest = min(points, key=lambda point: point.fd)
        description = (
            f"Fréchet distance over guidance weight: {what}. "
            f"Lowest: {figure(lowest.fd)} by {method_title(lowest.method)} at w = {lowest.weight:g}."
        )
        caption = (
            f"Distance over the guidance weight while searching: {what}. Faint marks are single settings, lines join "
            "the best at each w, a ring marks the setting that was chosen. Lower is better."
        )
        panels.append((caption, inline(plot, f"{name}-weight-{count or 0}", description)))
    return panels


def repeats_per_method(records: RunRecords, name: str) -> tuple[str, str] | None:
    """Every repeat of every method as a point, with mean and standard deviation.

    Returns:
        (caption, SVG), or None where no method has a distance.
    """
    measured = [(row, row.fd) for row in records.rows if row.fd is not None]
    rows = [row for row, _ in measured]
    if not rows:
        return None
    with rc_context(STYLE):
        plot, axes = new_axes(1.2 + 0.55 * len(rows))
        for height, (row, mean) in enumerate(measured):
            colour = method_colour(row.method)
            values = row.fd_repeats or (mean,)
            # A fixed offset keeps equal values apart without moving them along the axis that is read.
            offsets = np.linspace(-0.14, 0.14, len(values)) if len(values) > 1 else np.zeros(1)
            axes.vlines(mean, height - 0.3, height + 0.3, color=colour, linewidth=2.4)
            if row.fd_std is not None:
                axes.hlines(height, mean - row.fd_std, mean + row.fd_std, color=colour, linewidth=1.4)
            marks = {"marker": method_marker(row.method), "edgecolors": _SURFACE, "linewidths": 0.8, "zorder": 3}
            axes.scatter(values, height + offsets, s=34, color=colour, **marks)
        if records.real_half is not None:
            axes.axvline(records.real_half, color=MUTED, linestyle=":", label="half of the real set")
            legend_above(axes, 1)
        labels = [
            method_title(row.method) + (f"\nw = {row.weight:g}" if row.weight not in (None, 1) else "") for row in rows
        ]
        axes.set_yticks(range(len(rows)), labels)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_ylim(len(rows) - 0.45, -0.55)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel("Fréchet distance (lower is better)")
    spoken = "; ".join(f"{method_title(row.method)} {figure(row.fd)}" for row in rows)
    caption = "Every repeat as a point, the mean as a bar, one standard deviation to either side as a line."
    return caption, inline(plot, f"{name}-repeats", f"Fréchet distance of each method: {spoken}.")


def training_loss(losses: Mapping[str, tuple[np.ndarray, np.ndarray]], name: str) -> tuple[str, str] | None:
    """Training loss over images seen, smoothed, one line per network.

    Returns:
        (caption, SVG), or None where no network has a log.
    """
    if not losses:
        return None
    colours = {
        "main": method_colour("autoguidance"),
        "guide": method_colour("cfg"),
        "unconditional": method_colour("cfg+interval"),
    }
    styles = {"main": "-", "guide": "--", "unconditional": "-."}
    with rc_context(STYLE):
        plot, axes = new_axes(3.0)
        for network, (images, loss) in losses.items():
            width = max(1, len(loss) // 40)
            smooth = np.convolve(loss, np.ones(width) / width, mode="valid")
            at = np.convolve(images, np.ones(width) / width, mode="valid")
            colour, style = colours.get(network, MUTED), styles.get(network, ":")
            axes.plot(at, smooth, label=network, color=colour, linestyle=style)
        axes.set_xlabel("images seen")
        axes.set_ylabel("training loss")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: figure_images(value)))
        legend_above(axes, 3)
    ends = {network: (figure(float(loss[-1])), figure_images(images[-1])) for network, (images, loss) in losses.items()}
    last = "; ".join(f"{network} {loss} at {images} images" for network, (loss, images) in ends.items())
    caption = "Training loss over images seen, running mean. It includes the learned weighting, so it may be negative."
    return caption, inline(plot, f"{name}-loss", f"Training loss over images seen. Last: {last}.")


def figure_images(count: float) -> str:
    """A number of images in thousands or millions: 150000 is "150k"."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:g}"
