"""The study `gap` on the page: how bad should the bad version be, and did the diagnosis see it coming?

Every guide has a size and a share of the main model's training, and was compared at its own best w and EMA widths:

    heat map    Fréchet distance over size x share, the confirmed figures
    curves      distance over w, one panel per size, one line per share: what the search's surrogate expects with the
                guide's other choices at their best (`sensitivity`); without that, the best measured at each w
    table       what `diagnose` said before any image was sampled, beside what came out

Reference: Karras et al. 2024, arXiv 2406.02507, Figure 3.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from autoguidance.errors import UserError
from autoguidance.report.heat import Cell, draw_cells
from autoguidance.report.markup import escape, figure_block, table
from autoguidance.report.plots import (
    INK,
    OTHER_COLOURS,
    STYLE,
    inline,
    legend_above,
    log_if_wide,
    lower_envelope,
    method_colour,
    weight_axis,
)
from autoguidance.report.records import Row, RunRecords, number
from autoguidance.report.verdict import change, compare, figure, percent

_LINES = (
    (method_colour("cfg"), "s"),
    (method_colour("cfg+interval"), "^"),
    (method_colour("autoguidance"), "o"),
    (OTHER_COLOURS[0], "v"),
    (OTHER_COLOURS[1], "P"),
)


@dataclass(frozen=True, kw_only=True)
class Guide:
    """One guide of the study.

    Attributes:
        name: its size and training, such as "tiny T/16"; the method of `row`.
        size: the network's preset.
        training: the rest of the name, or the share where the name has no more.
        share: of the main model's training, in (0, 1].
        verdict: of the diagnosis.
        difference: between the two models, against the main model's error.
        correlation, correlation_se: of the difference with what the main model misses.
        start_weight: w that the diagnosis proposes to begin with.
        row: what came out; None where it was not measured.
    """

    name: str
    size: str
    training: str
    share: float | None
    verdict: str
    difference: float | None
    correlation: float | None
    correlation_se: float | None
    start_weight: float | None
    row: Row | None

    @property
    def fd(self) -> float | None:
        return None if self.row is None else self.row.fd


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Distance over w of one guide.

    Attributes:
        weights, distances: the line.
        measured: points that were measured on it.
        best: the chosen w; None where it is not on the line.
    """

    weights: Sequence[float]
    distances: Sequence[float]
    measured: Sequence[tuple[float, float]]
    best: float | None


def read_guides(records: RunRecords) -> tuple[Guide, ...]:
    """The guides of a run in the order of the study; () where it is none. Raises UserError where a record is damaged."""
    path = records.folder / "results.json"
    rows = {row.method: row for row in records.rows}
    guides = []
    for record in records.guides:
        name = record["guide"]
        figures = {
            key: number(record.get(key), f"{key} of guide {name}", path)
            for key in ("share", "correlation", "correlation_se", "start_weight")
        }
        size, difference = record.get("size"), record.get("difference")
        first, _, rest = name.partition(" ")
        if not isinstance(size, str):  # older files: the diagnosis' figure of that name had replaced the preset
            size, difference = first, size if difference is None else difference
        share = figures["share"]
        guides.append(
            Guide(
                name=name,
                size=size,
                training=rest or ("–" if share is None else percent(share)),
                verdict=str(record.get("verdict") or "–"),
                difference=number(difference, f"difference of guide {name}", path),
                row=rows.get(name),
                **figures,
            )
        )
    return tuple(guides)


def gap_section(records: RunRecords, name: str) -> str:
    """Heading, plots and table; "" for a run that is no such study.

    Args:
        records: the run.
        name: prefix of the SVGs' identifiers, unique in the page.

    Raises: UserError where a record is damaged.
    """
    guides = read_guides(records)
    if not guides:
        return ""
    plots = "".join(
        figure_block(plot) for plot in (heat_map(records, guides, name), *weight_curves(records, guides, name))
    )
    shown = f'<div class="plots">{plots}</div>' if plots else ""
    agreement = diagnosis_in_words(guides)
    return (
        f"<h3>How bad should the guide be?</h3>{shown}<h3>What the diagnosis said, and what came out</h3>"
        f"{_guides_table(records, guides)}" + (f"<p>{escape(agreement)}</p>" if agreement else "")
    )


def _sizes(guides: Sequence[Guide]) -> list[str]:
    return list(dict.fromkeys(guide.size for guide in guides))


def _trainings(guides: Sequence[Guide]) -> list[str]:
    """Columns, the shortest training first."""
    shares: dict[str, list[float]] = {}
    for guide in guides:
        shares.setdefault(guide.training, []).append(0.0 if guide.share is None else guide.share)
    return sorted(shares, key=lambda training: float(np.mean(shares[training])))


def _best(guides: Sequence[Guide]) -> Guide | None:
    measured = [(guide.fd, place) for place, guide in enumerate(guides) if guide.fd is not None]
    return guides[min(measured)[1]] if measured else None


def heat_map(records: RunRecords, guides: Sequence[Guide], name: str) -> tuple[str, str] | None:
    """(caption, SVG) of the confirmed distance over size and training; None where nothing was measured."""
    best = _best(guides)
    if best is None:
        return None
    sizes, trainings = _sizes(guides), _trainings(guides)
    cells = [
        Cell(
            column=trainings.index(guide.training),
            row=sizes.index(guide.size),
            fd=guide.fd,
            note="" if guide.row is None or guide.row.weight is None else f"w = {guide.row.weight:g}",
        )
        for guide in guides
    ]
    plot = draw_cells(cells, trainings, sizes, "the guide's training (T: the main model's)", "the guide's size")
    spoken = "; ".join(f"{guide.name} {figure(guide.fd)}" for guide in guides)
    caption = (
        "Fréchet distance of every guide at its own best weight and EMA widths. The stronger the colour, the lower; "
        f"framed: the best ({best.name}, {figure(best.fd)})."
    )
    unguided = records.best("unguided")
    if unguided is not None:
        caption += f" Unguided: {figure(unguided.fd)}."
    return caption, inline(plot, f"{name}-gap", f"Fréchet distance over the guide's size and training: {spoken}.")


def _curves(records: RunRecords, guides: Sequence[Guide]) -> tuple[dict[str, Curve], str, int | None]:
    """By guide; what the lines are, for the caption; and the number of images behind them."""
    curves: dict[str, Curve] = {}
    names = {guide.name for guide in guides}
    points = [point for point in records.search if point.method in names and (point.weight or 0) > 1]
    counts = Counter(point.num_images for point in points)
    for guide in guides:
        try:
            axis: Mapping[str, Any] | None = records.sensitivity.get(guide.name, {}).get("axes", {}).get("weight")
            if axis is not None:
                line = [(float(point["value"]), float(point["fd"])) for point in axis["curve"]]
                measured = [(float(point["value"]), float(point["fd"])) for point in axis["measured"]]
                weights, distances = zip(*sorted(line), strict=True)
                best = float(axis["best"]) if axis["best"] in weights else None
                curves[guide.name] = Curve(weights=weights, distances=distances, measured=measured, best=best)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{records.folder / 'results.json'}: the sensitivity of {guide.name} is damaged "
                f"({type(error).__name__}: {error}); run again"
            ) from None
    if curves:
        meaning = "what the search expects with the guide's EMA widths at their best; points: what was measured there"
        return curves, meaning, max((count for count in counts if count is not None), default=None)
    if not points:
        return {}, "", None
    # Distances on other numbers of images do not compare: the number with most settings, the larger of equals.
    count = max(counts, key=lambda key: (counts[key], key or 0))
    for guide in guides:
        own = [point for point in points if point.method == guide.name and point.num_images == count]
        if own:
            weights, distances = lower_envelope(own)
            chosen = guide.row.weight if guide.row is not None and guide.row.weight in weights else None
            scattered = [(point.weight or 1, point.fd) for point in own]
            curves[guide.name] = Curve(weights=weights, distances=distances, measured=scattered, best=chosen)
    return curves, "the best that the search measured at each w; points: single settings", count


def weight_curves(records: RunRecords, guides: Sequence[Guide], name: str) -> list[tuple[str, str]]:
    """[(caption, SVG)], one per size of guide, all on the same axes; [] where no search is recorded."""
    curves, meaning, count = _curves(records, guides)
    if not curves:
        return []
    trainings = _trainings(guides)
    unguided = [p.fd for p in records.search if p.method == "unguided" and p.num_images == count and count is not None]
    distances = [fd for curve in curves.values() for fd in (*curve.distances, *(fd for _, fd in curve.measured))]
    distances += [min(unguided)] if unguided else []
    weights = sorted({w for curve in curves.values() for w in curve.weights})
    margin = 0.05 * (max(distances) - min(distances)) or 0.05 * max(distances) or 1
    panels = []
    for place, size in enumerate(_sizes(guides)):
        own = [guide for guide in guides if guide.size == size and guide.name in curves]
        if not own:
            continue
        with rc_context(STYLE):
            plot = Figure(figsize=(5.4, 3.6), layout="constrained")
            axes = plot.add_subplot()
            for guide in own:
                curve = curves[guide.name]
                colour, marker = _LINES[trainings.index(guide.training) % len(_LINES)]
                axes.plot(curve.weights, curve.distances, color=colour)
                if curve.measured:
                    axes.scatter(*zip(*curve.measured, strict=True), s=20, color=colour, marker=marker, linewidths=0)
                axes.plot([], [], color=colour, marker=marker, markersize=4.5, label=guide.training)
                if curve.best is not None:
                    at = curve.distances[list(curve.weights).index(curve.best)]
                    ring = {"facecolors": "none", "edgecolors": INK, "linewidths": 1.6, "zorder": 4}
                    axes.scatter([curve.best], [at], s=110, **ring)
            if unguided:
                axes.axhline(min(unguided), color=method_colour("unguided"), linestyle="--", label="unguided")
            weight_axis(axes, weights)
            log_if_wide(axes, distances)
            bottom, top = min(distances) - margin, max(distances) + margin
            axes.set_ylim((min(distances) * 0.9, max(distances) * 1.1) if axes.get_yscale() == "log" else (bottom, top))
            axes.set_ylabel("Fréchet distance")
            legend_above(axes, 3)
        lowest = {
            guide.training: min(zip(curves[guide.name].distances, curves[guide.name].weights, strict=True))
            for guide in own
        }
        spoken = "; ".join(f"{training}: lowest {figure(fd)} at w = {w:g}" for training, (fd, w) in lowest.items())
        images = f", on {count} images each" if count else ""
        caption = f"Guides of size {size}: distance over the guidance weight while searching{images}. Lines: {meaning}; rings: the choice."
        description = f"Fréchet distance over guidance weight, guides of size {size}. {spoken}."
        panels.append((caption, inline(plot, f"{name}-gap-weight-{place}", description)))
    return panels


def diagnosis_in_words(guides: Sequence[Guide]) -> str:
    """How the verdicts fared, in a sentence or two; "" where no guide was measured."""
    best = _best(guides)
    if best is None:
        return ""
    groups: dict[str, list[float]] = {}
    for guide in guides:
        if guide.fd is not None:
            groups.setdefault(guide.verdict, []).append(guide.fd)
    means = ", ".join(
        f"“{verdict}” {figure(float(np.mean(distances)))} ({len(distances)} guide{'s' if len(distances) > 1 else ''})"
        for verdict, distances in groups.items()
    )
    return f"The best guide, {best.name}, was diagnosed as “{best.verdict}”. Mean distance by verdict: {means}."


def _guides_table(records: RunRecords, guides: Sequence[Guide]) -> str:
    unguided, best = records.best("unguided"), _best(guides)
    columns = [
        ("Guide", "text"),
        ("share of<br>training", ""),
        ("verdict", "text"),
        ("difference", ""),
        ("correlation", ""),
        ("try w", ""),
        ("best w", ""),
        ("Fréchet distance ↓", ""),
        ("against<br>unguided", ""),
    ]
    rows = []
    for guide in guides:
        row = guide.row
        result = None if row is None or unguided is None else compare(row, unguided)
        error = "" if guide.correlation_se is None else f" ± {figure(guide.correlation_se, 2)}"
        spread = "" if row is None or row.fd is None or row.fd_std is None else f" ± {figure(row.fd_std, 2)}"
        badge = '<span class="badge">best</span>' if guide is best else ""
        cells = [
            escape(guide.name) + badge,
            "–" if guide.share is None else percent(guide.share),
            escape(guide.verdict),
            figure(guide.difference, 2),
            "–" if guide.correlation is None else (figure(guide.correlation, 2) + error).replace("-", "−"),
            "–" if guide.start_weight is None else f"{guide.start_weight:.2f}",
            "–" if row is None or row.weight is None else f"{row.weight:g}",
            figure(guide.fd) + spread,
            "–" if result is None else change(result.reduction),
        ]
        rows.append(("best" if guide is best else "", cells))
    caption = (
        "Left: what the diagnosis said before any image was sampled (difference: how far apart the two models are, against "
        "the main model's error; correlation: of that difference with what the main model misses). Right: what came out "
        "at the guide's best setting."
    )
    return table(caption, columns, rows)
