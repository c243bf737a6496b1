"""The study `domains` on the page: one table over all data sets, before each has its section.

`domains.json` lies in the folder that holds one run folder per data set: {"study", "rows": [{"data", "method", "fd",
"fd_std", "fd_repeats"}]}. A row of the table is a data set with its own features and reference, so distances compare
along a row and not along a column; what compares down the page is the change in percent, 100 (fd_a / fd_b - 1).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from autoguidance.errors import UserError
from autoguidance.report.markup import escape, table
from autoguidance.report.plots import method_title
from autoguidance.report.records import Row, measured_row, method_order, record_list
from autoguidance.report.verdict import change, compare, figure
from autoguidance.storage import read_json

DOMAINS_FILE = "domains.json"
_CFG = ("cfg", "cfg+interval")

Domains = Mapping[str, Sequence[Row]]
"""Rows by data set, in the study's order."""


def read_domains(folder: Path) -> Domains:
    """The rows of a folder's `domains.json` by data set, whose name is a run folder's beside the file.

    Raises: UserError where it is damaged.
    """
    path = folder / DOMAINS_FILE
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} has no rows of compared methods; restore the file or run the study again")
    found: dict[str, list[Row]] = {}
    for record in record_list(content, "rows", path):
        data = record.get("data")
        if not isinstance(data, str) or Path(data).name != data:
            raise UserError(f"{path}: {data!r} is not a data set's name; restore the file or run the study again")
        found.setdefault(data, []).append(measured_row(record, path))
    if not found:
        raise UserError(f"{path} has no rows of compared methods; restore the file or run the study again")
    return found


def domains_section(domains: Domains) -> str:
    """Heading, sentence and table over all data sets."""
    sentences = " ".join(text for text in (_wins(domains, "unguided"), _wins(domains, *_CFG)) if text)
    return "<h2>All data sets</h2>" + (f"<p>{escape(sentences)}</p>" if sentences else "") + _domains_table(domains)


def _best(rows: Sequence[Row], *methods: str) -> Row | None:
    """The row of least distance among these methods (all if none is named), or None."""
    measured = [(row.fd, place) for place, row in enumerate(rows) if row.fd is not None]
    allowed = [item for item in measured if not methods or rows[item[1]].method in methods]
    return rows[min(allowed)[1]] if allowed else None


def _wins(domains: Domains, *methods: str) -> str:
    """On how many data sets autoguidance has the lower distance than the best of these methods, in one sentence."""
    found = []
    for rows in domains.values():
        guided, other = _best(rows, "autoguidance"), _best(rows, *methods)
        if guided is not None and other is not None and (result := compare(guided, other)) is not None:
            found.append(result)
    if not found:
        return ""
    lower = [result for result in found if result.reduction > 0]
    clear = sum(result.separated for result in lower)
    other = "the unguided model" if methods == ("unguided",) else "the best CFG"
    return (
        f"Autoguidance has a lower distance than {other} on {len(lower)} of {len(found)} data sets"
        + (f" (on {clear} without overlap of the repeats)" if lower else "")
        + "."
    )


def _change(rows: Sequence[Row], *methods: str) -> str:
    """Autoguidance's distance against the best of these methods, as a cell."""
    guided, other = _best(rows, "autoguidance"), _best(rows, *methods)
    result = None if guided is None or other is None else compare(guided, other)
    if result is None or other is None:
        return "–"
    amount = change(result.reduction, result.spread)
    notes = [f"to {method_title(other.method)}"] if len(methods) > 1 else []
    notes += ["repeats overlap"] if result.num_repeats > 1 and not result.separated else []
    return amount + (f"<small>{escape(', '.join(notes))}</small>" if notes else "")


def _domains_table(domains: Domains) -> str:
    methods = sorted({row.method for rows in domains.values() for row in rows}, key=method_order)
    columns = [
        ("Data set", "text"),
        *((escape(method_title(method)), "") for method in methods),
        ("autoguidance<br>against unguided", ""),
        ("autoguidance<br>against best CFG", ""),
    ]
    body = []
    for data, rows in domains.items():
        best = _best(rows)
        cells = [escape(data)]
        for method in methods:
            row = _best(rows, method)
            shown = "–" if row is None else figure(row.fd)
            spread = "" if row is None or row.fd_std is None else f"<small>± {figure(row.fd_std, 2)}</small>"
            cells.append((f"<b>{shown}</b>" if row is not None and row is best else shown) + spread)
        body.append(("", [*cells, _change(rows, "unguided"), _change(rows, *_CFG)]))
    caption = (
        "Fréchet distance per data set, mean ± standard deviation, each method at its own best setting; bold: the least. Compare along a "
        "row: each data set is measured on its own. Changes are of the distance, negative is better."
    )
    return table(caption, columns, body)
