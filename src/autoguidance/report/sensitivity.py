"""How the distance depends on each choice around the best setting: the curves of Figure 3 of the autoguidance paper, per run.

One panel per axis (w, EMA widths, guide, interval), the others held at their best. The line is what the search's surrogate
expects, with one standard deviation as a band; points were measured on exactly that line; a ring marks the choice.

Reference: Karras et al. 2024, arXiv 2406.02507, Figure 3.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from autoguidance.errors import UserError
from autoguidance.report.plots import INK, STYLE, inline, log_if_wide, method_colour, method_title
from autoguidance.report.verdict import figure

_AXIS_TITLES = {
    "weight": "guidance weight w",
    "ema_main": "EMA width of the main model",
    "ema_guide": "EMA width of the guide",
    "ema_unconditional": "EMA width of the unconditional model",
    "guide": "guide: run and images seen",
    "sigma_hi": "guided up to sigma",
    "sigma_lo": "guided down to sigma",
}
_MOST_TICKS = 6


def _ticks(values: Sequence[Any]) -> list[int]:
    step = math.ceil(len(values) / _MOST_TICKS)
    return list(range(0, len(values), step))


def _panel(axes: Axes, name: str, content: Mapping[str, Any], colour: str) -> None:
    values = [point["value"] for point in content["curve"]]
    # Values are chosen from a list and spaced as there; equal steps show all of them alike.
    places = {value: place for place, value in enumerate(values)}
    low, high = [p["low"] for p in content["curve"]], [p["high"] for p in content["curve"]]
    fd = [p["fd"] for p in content["curve"]]
    axes.fill_between(range(len(values)), low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(range(len(values)), fd, color=colour)
    measured = [(places[p["value"]], p["fd"]) for p in content["measured"] if p["value"] in places]
    if measured:
        axes.scatter(*zip(*measured, strict=True), s=22, color=colour, zorder=3)
    best = places[content["best"]]
    ring = {"facecolors": "none", "edgecolors": INK, "linewidths": 1.6, "zorder": 4}
    axes.scatter([best], [fd[best]], s=110, **ring)
    ticks = _ticks(values)
    names = [f"{values[i]:g}" if isinstance(values[i], int | float) else str(values[i]) for i in ticks]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter(names))
    axes.xaxis.set_minor_locator(NullLocator())
    if any(len(text) > 6 for text in names):
        axes.tick_params(axis="x", labelrotation=30)
    axes.set_xlabel(_AXIS_TITLES.get(name, name))
    log_if_wide(axes, [*fd, *(value for _, value in measured)])


def sensitivity_figures(sensitivity: Mapping[str, Any], name: str) -> list[tuple[str, str]]:
    """[(caption, SVG)], one per guided method.

    Args:
        sensitivity: per method {"axes": {axis: {"best", "curve", "measured", "near"}}, "edges"}, as results.json holds it.
        name: prefix of the SVGs' identifiers, unique in the page.

    Raises: UserError where the record is damaged.
    """
    found = []
    for method, content in sensitivity.items():
        if method == "unguided":
            continue
        try:
            made = _figure(method, content, f"{name}-sensitivity-{len(found)}")
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UserError(
                f"the sensitivity of {method} in results.json is damaged ({type(error).__name__}: {error}); run again"
            ) from None
        if made is not None:
            found.append(made)
    return found


def _figure(method: str, content: Mapping[str, Any], name: str) -> tuple[str, str] | None:
    axes = content["axes"]
    if not axes:
        return None
    rows = math.ceil(len(axes) / 2)
    with rc_context(STYLE):
        plot = Figure(figsize=(5.4, 2.5 * rows), layout="constrained")
        panels = plot.subplots(rows, 2 if len(axes) > 1 else 1, squeeze=False).flatten()
        for panel, (axis, curve) in zip(panels, axes.items(), strict=False):
            _panel(panel, axis, curve, method_colour(method))
        for panel in panels[len(axes) :]:
            panel.set_visible(False)
        for panel in panels[::2]:
            panel.set_ylabel("Fréchet distance")
    spoken = "; ".join(
        f"{_AXIS_TITLES.get(axis, axis)}: best {curve['best']}, expected {figure(min(p['fd'] for p in curve['curve']))} to "
        f"{figure(max(p['fd'] for p in curve['curve']))}"
        for axis, curve in axes.items()
    )
    caption = (
        f"{method_title(method)}: each choice alone, the others at their best. The line is what the search expects from all its "
        "measurements (the band: one standard deviation), points were measured, the ring is the choice."
    )
    edges = [_AXIS_TITLES.get(str(axis)) or str(axis) for axis in content["edges"]]
    if edges:
        caption += f" At the edge of its range: {', '.join(edges)}; a better value may lie beyond."
    return caption, inline(plot, name, spoken)
