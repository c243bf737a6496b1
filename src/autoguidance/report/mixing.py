"""The study `mixing` on the page: distance over total strength w and share alpha, and the same seeds in every cell."""

from collections.abc import Mapping, Sequence
from typing import Any

from autoguidance.errors import UserError
from autoguidance.report.grids import make_grid, png_data_uri, shrink
from autoguidance.report.heat import Cell, draw_cells
from autoguidance.report.markup import escape, figure_block
from autoguidance.report.plots import inline
from autoguidance.report.records import RunRecords, number
from autoguidance.report.verdict import figure

_SEEDS_SHOWN = 4
_MAX_IMAGE_SIDE = 48


def mixing_section(records: RunRecords, name: str) -> str:
    """Heading, heat map and images; "" for a run that is no such study.

    Args:
        records: the run.
        name: prefix of the SVG's identifiers, unique in the page.

    Raises: UserError where a record is damaged.
    """
    places = _places(records)
    if not places:
        return ""
    weights = sorted({weight for weight, _ in places.values()})
    alphas = sorted({alpha for _, alpha in places.values()})
    rows = {row.method: row for row in records.rows}
    cells = [
        Cell(
            column=alphas.index(alpha),
            row=weights.index(weight),
            fd=rows[method].fd if method in rows else None,
        )
        for method, (weight, alpha) in places.items()
    ]
    columns = [_share(alpha) for alpha in alphas]
    plot = draw_cells(cells, columns, [f"{weight:g}" for weight in weights], "alpha", "total strength w")
    spoken = "; ".join(f"{method} {figure(rows[method].fd)}" for method in places if method in rows)
    caption = "Fréchet distance over total strength and share. The stronger the colour, the lower; framed: the lowest."
    unguided = records.best("unguided")
    if unguided is not None:
        caption += f" Unguided: {figure(unguided.fd)}."
    shown = figure_block((caption, inline(plot, f"{name}-mixing", f"Fréchet distance over w and alpha: {spoken}.")))
    return f'<h3>How much of which guidance?</h3><div class="plots">{shown}</div>{_images(records, places, weights, alphas)}'


def _share(alpha: float) -> str:
    return {0.0: "0 (CFG)", 1.0: "1 (autog.)"}.get(alpha, f"{alpha:g}")


def _places(records: RunRecords) -> dict[str, tuple[float, float]]:
    """(w, alpha) by the row's name."""
    path = records.folder / "results.json"
    found = {}
    for record in records.mixing:
        method = str(record["method"])
        weight, alpha = (number(record.get(key), f"{key} of {method}", path) for key in ("weight", "alpha"))
        if weight is None or alpha is None:
            raise UserError(f"{path}: {method} has no weight or alpha; restore the file or run the study again")
        found[method] = (weight, alpha)
    return found


def _images(
    records: RunRecords, places: Mapping[str, tuple[float, float]], weights: Sequence[float], alphas: Sequence[float]
) -> str:
    """The first seeds of every cell, as a table like the heat map; "" where no images were kept."""
    pictures: dict[tuple[float, float], str] = {}
    for method, place in places.items():
        images: Any = records.images.get(method)
        if images is None:
            continue
        small = shrink(images.images[:_SEEDS_SHOWN], _MAX_IMAGE_SIDE)
        canvas = make_grid(small, columns=2)
        scale = max(1, round(40 / small.shape[3]))
        alt = f"{method}, seeds {', '.join(str(seed) for seed in images.seeds[:_SEEDS_SHOWN])}"
        pictures[place] = (
            f'<img class="pixels" width="{canvas.shape[1] * scale}" height="{canvas.shape[0] * scale}" alt="{escape(alt)}" '
            f'src="{png_data_uri(canvas)}">'
        )
    if not pictures:
        return ""
    head = "".join(f'<th scope="col">alpha = {_share(alpha)}</th>' for alpha in alphas)
    body = "".join(
        f'<tr><th scope="row">w = {weight:g}</th>'
        + "".join(f"<td>{pictures.get((weight, alpha), '')}</td>" for alpha in alphas)
        + "</tr>"
        for weight in weights
    )
    return (
        '<div class="frame" tabindex="0" role="region" aria-label="Images over w and alpha"><table class="grid">'
        "<caption><span>The first seeds, the same in every cell, not picked by eye.</span></caption>"
        f'<thead><tr><td class="text"></td>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )
