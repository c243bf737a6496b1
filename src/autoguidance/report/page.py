"""One HTML page that shows a run to others: what was gained, by how much, how sure, what it looks like, what it cost.

Problem: a result is passed on as a file, to people who were not there when it was measured. So the page holds
everything (images and plots inside, no request to anywhere), opens offline, says its main result in a sentence before
any table, shows the spread and the protocol beside the figures, and escapes every text that came from outside: a
class name is only a name, even one like "<script>".

The way: `read_run` (records) -> sentences (verdict), plots, grids -> sections -> one page; several runs make one page
with a section each.
"""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoguidance.errors import UserError
from autoguidance.report.degradations import degradations_section
from autoguidance.report.domains import DOMAINS_FILE, Domains, domains_section, read_domains
from autoguidance.report.efficiency import efficiency_section, price_in_words, read_costs
from autoguidance.report.gap import gap_section
from autoguidance.report.grids import make_grid, matched, png_data_uri, shrink
from autoguidance.report.markup import escape, figure_block, table, whole_number
from autoguidance.report.mixing import mixing_section
from autoguidance.report.plots import distance_over_weight, method_variable, repeats_per_method, training_loss
from autoguidance.report.records import (
    METHOD_TITLES,
    Row,
    RunRecords,
    read_run,
    split_model_name,
)
from autoguidance.report.sensitivity import sensitivity_figures
from autoguidance.report.theme import STYLE_SHEET
from autoguidance.report.verdict import change, compare, figure, headline, second_line
from autoguidance.storage import write_text

_MAX_GRID_ROWS = 12
_MAX_IMAGE_SIDE = 96  # larger images are reduced, so that the page of a hundred stays a few megabytes
# Belt and braces: even a mistake of ours cannot make the page ask anyone for anything, or run anything.
_CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{figure(seconds, 2 if seconds < 10 else 3)} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def _interval(row: Row) -> str:
    if row.interval is None:
        return ""
    low, high = row.interval
    return f"<small>σ in ({figure(low, 2)}, {'∞' if math.isinf(high) else figure(high, 2)}]</small>"


def _model(name: str, folder: Path) -> str:
    """A model's name as a table cell: the name within the run, then EMA width and images seen as a second line."""
    if not name:
        return "–"
    path, std, images = split_model_name(name)
    inside = path.removeprefix(f"{folder.as_posix()}/").removeprefix(f"{folder.resolve().as_posix()}/")
    details = ", ".join(part for part in (f"EMA {std}" if std else "", f"{images} images" if images else "") if part)
    return escape(inside) + (f"<small>{escape(details)}</small>" if details else "")


def _methods_table(records: RunRecords) -> str:
    best, unguided = records.best(), records.best("unguided")
    extras = sorted({name for row in records.rows for name in row.extras})
    repeats = max((len(row.fd_repeats) for row in records.rows), default=0)
    columns = [
        ("Method", "text"),
        ("Fréchet distance ↓", ""),
        ("against<br>unguided", ""),
        ("weight w", ""),
        ("main model", "text"),
        ("guide", "text"),
        ("evaluations<br>per image", ""),
        ("seconds<br>per image", ""),
        *((escape(name), "") for name in extras),
    ]
    rows = []
    for row in records.rows:
        result = None if unguided is None or row is unguided else compare(row, unguided)
        key = f'<span class="key" style="--key: var(--{method_variable(row.method)})"></span>'
        badge = '<span class="badge">best</span>' if row is best and len(records.rows) > 1 else ""
        spread = f" ± {figure(row.fd_std, 2)}" if row.fd_std is not None and row.fd is not None else ""
        evaluations = [value for value in (row.evaluations_main, row.evaluations_guide) if value]
        split = f"<small>{' + '.join(f'{value:g}' for value in evaluations)}</small>" if len(evaluations) > 1 else ""
        cells = [
            key + escape(METHOD_TITLES.get(row.method, row.method)) + badge,
            figure(row.fd) + spread,
            "–" if result is None else change(result.reduction),
            ("–" if row.weight is None else f"{row.weight:g}") + _interval(row),
            _model(row.main, records.folder),
            _model(row.guide, records.folder),
            (f"{sum(evaluations):g}" if evaluations else "–") + split,
            figure(row.seconds_per_image, 2),
            *(figure(row.extras.get(name)) for name in extras),
        ]
        rows.append(("best" if row is best else "", cells))
    images = f" on {whole_number(records.num_images)} images each" if records.num_images else ""
    times = f"mean ± standard deviation over {repeats} repeats" if repeats > 1 else "one measurement"
    caption = f"The methods, each at its own best setting: {times}{images}. Lower is better."
    if any(row.method.startswith("cfg") for row in records.rows):
        caption += " CFG is classifier-free guidance."
    return table(caption, columns, rows)


def _key_figures(records: RunRecords) -> str:
    tiles = []
    for row in (records.best("unguided"), records.best("cfg", "cfg+interval"), records.best("autoguidance")):
        if row is not None:
            title = METHOD_TITLES.get(row.method, row.method)
            tiles.append((method_variable(row.method), figure(row.fd), title))
    if records.real_half is not None:
        tiles.append(("rule", figure(records.real_half), "for scale: half of the real images"))
    if not tiles:
        return ""
    items = "".join(
        f'<li style="--key: var(--{variable})"><b>{value}</b><span>{escape(title)}</span></li>'
        for variable, value, title in tiles
    )
    return f'<ul class="figures" aria-label="Fréchet distances">{items}</ul>'


def _grids(records: RunRecords) -> str:
    # The cells of `mixing` have a table of their own.
    cells = {record["method"] for record in records.mixing}
    kept = [item for item in records.images.items() if item[0] not in cells]
    sets = dict(sorted(kept, key=lambda item: item[0] == "real"))
    if not sets:
        return ""
    largest = max(max(images.images.shape[2:]) for images in sets.values())
    per_row = 4 if largest <= 32 else 3 if largest <= 64 else 2
    rows = matched(sets, per_row=per_row, max_rows=_MAX_GRID_ROWS)
    if not rows:
        return ""
    names = records.class_names
    measured = {row.method: row for row in records.rows}

    def row_title(number: int, class_idx: int | None) -> str:
        if class_idx is None:
            return f"set {number + 1}"
        return names[class_idx] if class_idx < len(names) else f"class {class_idx}"

    head = ['<td class="text"></td>']
    for method in sets:
        row = measured.get(method)
        note = "for comparison" if row is None else f"distance {figure(row.fd)}"
        if row is not None and row.weight not in (None, 1):
            note += f", w = {row.weight:g}"
        title = METHOD_TITLES.get(method, method)
        head.append(f'<th scope="col">{escape(title)}<small>{escape(note)}</small></th>')
    body = []
    for number, (class_idx, indices) in enumerate(rows):
        title = row_title(number, class_idx)
        cells = []
        for method, images in sets.items():
            chosen = indices[method]
            if not len(chosen):
                cells.append("<td></td>")
                continue
            small = shrink(images.images[chosen], _MAX_IMAGE_SIDE)
            scale = max(1, round(40 / small.shape[3]))
            # Enlarged by the browser: the page stays small and the pixels sharp.
            canvas = make_grid(small, columns=len(small), gap=1)
            seeds = "" if method == "real" else f", seeds {', '.join(str(seed) for seed in images.seeds[chosen])}"
            kind = "pixels" if scale > 1 or max(small.shape[2:]) <= 64 else "smooth"
            alt = f"{METHOD_TITLES.get(method, method)}, {title}{seeds}"
            cells.append(
                f'<td><img class="{kind}" width="{canvas.shape[1] * scale}" height="{canvas.shape[0] * scale}" '
                f'alt="{escape(alt)}" src="{png_data_uri(canvas)}"></td>'
            )
        body.append(f'<tr><th scope="row" title="{escape(title)}">{escape(title)}</th>{"".join(cells)}</tr>')
    caption = "The first images of each class" if rows[0][0] is not None else "The first images"
    caption += ", not picked by eye. Images in the same place of each method's column started from the same seed."
    return (
        "<h3>Images at equal seeds</h3>"
        '<div class="frame" tabindex="0" role="region" aria-label="Images at equal seeds">'
        f'<table class="grid"><caption><span>{caption}</span></caption><thead><tr>{"".join(head)}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _record_table(caption: str, values: Mapping[str, Any]) -> str:
    def shown(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:g}"
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 400 else text[:400] + " …"

    rows = "".join(
        f'<tr><th scope="row">{escape(name.replace("_", " "))}</th><td>{escape(shown(value))}</td></tr>'
        for name, value in values.items()
        if value is not None
    )
    table = f'<table class="record"><caption><span>{escape(caption)}</span></caption><tbody>{rows}</tbody></table>'
    return f'<div class="frame">{table}</div>'


def _training(records: RunRecords, name: str) -> str:
    parts = []
    rows = []
    for network, values in records.training.items():
        names = ("num_parameters", "num_images", "seconds")
        numbers = (values.get(name) for name in names)
        parameters, images, seconds = (value if isinstance(value, int | float) else None for value in numbers)
        cells = [
            escape(network),
            escape(values.get("preset") or "–"),
            "–" if parameters is None else whole_number(parameters),
            "–" if images is None else whole_number(images),
            "–" if seconds is None else _duration(seconds),
            "–" if not seconds or images is None else whole_number(images / seconds),
        ]
        rows.append(("", cells))
    if rows:
        titles = ("network", "preset", "parameters", "images seen", "time", "images/s")
        columns = [(title, "text" if title == "preset" else "") for title in titles]
        parts.append(table("The networks and what their training took.", columns, rows))
    loss = figure_block(training_loss(records.losses, name))
    if records.seconds:
        total = sum(records.seconds.values())
        steps = ", ".join(f"{escape(step)} {_duration(value)}" for step, value in records.seconds.items())
        parts.append(f"<p>Time of the whole run: {_duration(total)} ({steps}).</p>")
    if not parts and not loss:
        return ""
    return f'<h3>Training</h3>{"".join(parts)}<div class="plots">{loss}</div>'


def _resolved(name: str, folder: Path) -> str:
    """A model's name as usable from here: one recorded relative to the run folder gets the folder in front."""
    path = split_model_name(name)[0]
    return str(folder / name) if path and not Path(path).exists() and (folder / path).exists() else name


def _usage(records: RunRecords) -> str:
    pair = records.folder / "pair.json"
    row = records.best("autoguidance")
    if row is None or not row.main or not row.guide or row.weight is None:
        return ""
    parts = ["<h3>Using this pair</h3>"]
    if pair.exists():
        seeds = "--seeds 0-63 --out samples"
        parts.append(f"<pre><code>autoguidance generate --pair {escape(shlex.quote(str(pair)))} {seeds}</code></pre>")
    bounds = (
        "" if row.interval is None else ", ".join("math.inf" if math.isinf(end) else f"{end!r}" for end in row.interval)
    )
    interval = f", interval=({bounds})" if bounds else ""
    classes = ", class_idx=3" if len(records.class_names) > 3 else ""
    code = (
        f"{'import math' + chr(10) + chr(10) if 'math' in interval else ''}import autoguidance as ag\n\n"
        f"main = ag.load({_resolved(row.main, records.folder)!r})\n"
        f"guide = ag.load({_resolved(row.guide, records.folder)!r})\n"
        f"denoiser = ag.Autoguidance(main, guide, weight={row.weight!r}{interval})\n"
        f"images = ag.sample(denoiser, seeds=range(64){classes})  # uint8 [N, C, H, W]"
    )
    return "".join(parts) + f"<pre><code>{escape(code)}</code></pre>"


def _data_line(records: RunRecords) -> str:
    data = records.dataset
    parts = []
    if isinstance(data.get("num_images"), int):
        parts.append(f"{whole_number(data['num_images'])} images")
    if isinstance(data.get("resolution"), int):
        colour = {1: "grey", 3: "RGB"}.get(data.get("channels", 0), "")
        parts.append(f"{data['resolution']}×{data['resolution']} {colour}".strip())
    if records.class_names:
        parts.append(f"{len(records.class_names)} classes")
    elif "class_names" in data:
        parts.append("unlabelled")
    features = records.protocol.get("features")
    if features:
        parts.append(f"distances in “{features}” features")
    return " · ".join(parts)


def _section(records: RunRecords, name: str) -> str:
    # These sections have plots of their own: as methods on one plot so many rows would not be told apart.
    over_weight = [] if records.guides or records.mixing else distance_over_weight(records, name)
    plots = [figure_block(panel) for panel in over_weight]
    cells = {record["method"] for record in records.mixing}  # the heat map has them
    rows = tuple(row for row in records.rows if row.method not in cells)
    plots.insert(1, figure_block(repeats_per_method(replace(records, rows=rows), name)))
    # Around single settings nothing was searched.
    searched = {method: found for method, found in records.sensitivity.items() if method not in cells}
    plots += [figure_block(panel) for panel in sensitivity_figures(searched, name)]
    shown = "".join(plots)
    parts = [_key_figures(records), "<h3>Methods compared</h3>", _methods_table(records)]
    parts += [gap_section(records, name), efficiency_section(records, name), mixing_section(records, name)]
    parts.append(degradations_section(records))
    if shown:
        parts.append(f'<h3>How distance depends on the setting</h3><div class="plots">{shown}</div>')
    parts += [_grids(records), _training(records, name), _usage(records)]
    if records.protocol:
        parts.append("<h3>Protocol</h3>" + _record_table("How every distance above was measured.", records.protocol))
    if records.dataset:
        data = {key: value for key, value in records.dataset.items() if key != "class_names"}
        if records.class_names:
            data["classes"] = ", ".join(records.class_names)
        parts.append("<h3>Data</h3>" + _record_table("The real images.", data))
    return "".join(parts)


def _headline(records: RunRecords) -> str:
    """The main result: of the study of cost its price, of any other the distances."""
    return price_in_words(read_costs(records)) or headline(records)


def _name(records: RunRecords) -> str:
    return str(records.dataset.get("name") or records.folder.resolve().name)


def render_page(runs: Sequence[RunRecords], domains: Sequence[Domains] = ()) -> str:
    """The page of one or several runs as HTML text (`write_report` reads and writes the files).

    Args:
        runs: a section each.
        domains: rows by data set, a table each before the sections.
    """
    title = f"Autoguidance on {', '.join(dict.fromkeys(_name(records) for records in runs))}"
    if len(runs) == 1:
        records = runs[0]
        top = (
            f'<p class="eyebrow">{escape(title)} · {escape(_data_line(records))}</p><h1>{escape(_headline(records))}</h1>'
            f'<p class="lead">{escape(second_line(records))}</p>'
        )
        body = _section(records, "run1")
    else:
        links = "".join(
            f'<li><a href="#run{number}">{escape(_name(records))}</a>: {escape(_headline(records))}</li>'
            for number, records in enumerate(runs, 1)
        )
        top = f'<p class="eyebrow">Report of {len(runs)} runs</p><h1>{escape(title)}</h1><ul>{links}</ul>'
        body = "".join(
            f'<section><h2 class="run" id="run{number}">{escape(_name(records))}: {escape(_headline(records))}</h2>'
            f'<p class="eyebrow">{escape(records.folder)} · {escape(_data_line(records))}</p>'
            f"<p>{escape(second_line(records))}</p>{_section(records, f'run{number}')}</section>"
            for number, records in enumerate(runs, 1)
        )
    body = "".join(domains_section(rows) for rows in domains) + body
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_CONTENT_POLICY}">'
        f"<title>{escape(title)}</title><style>{STYLE_SHEET}</style></head><body>"
        f'<header class="top">{top}</header><main>{body}</main>'
        "<footer>Written by <code>autoguidance report</code>. "
        "Guidance: D = D_guide + w (D_main − D_guide); w = 1 is off. "
        "Method: Karras et al. 2024, arXiv 2406.02507.</footer></body></html>\n"
    )


def write_report(folders: Path | str | Sequence[Path | str], out: Path | str) -> Path:
    """Write one self-contained page about one or several run folders.

    Args:
        folders: output folders of `autoguidance run` or of studies. One that holds `domains.json` stands for the run
            folders of its data sets, and brings a table over all of them.
        out: the HTML file, written atomically: a reader sees the old page or the whole new one.

    Returns:
        `out`.

    Raises:
        UserError: no folder, a folder without results, a damaged file, or an output that cannot be written.
    """
    names = [folders] if isinstance(folders, Path | str) else list(folders)
    if not names:
        raise UserError("no run folder given; name the output folder of `autoguidance run`")
    out = Path(out)
    if out.is_dir():
        raise UserError(f"{out} is a folder; name a file to write, such as {out / 'report.html'}")
    runs: list[RunRecords] = []
    domains: list[Domains] = []
    for folder in map(Path, names):
        if (folder / DOMAINS_FILE).exists():
            found = read_domains(folder)
            domains.append(found)
            runs += [read_run(folder / data) for data in found]
        else:
            runs.append(read_run(folder))
    write_text(out, render_page(runs, domains))
    return out
