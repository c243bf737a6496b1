"""The study `degradations` on the page: what guidance recovers where the guide's damage matches the main model's, and where not."""

from autoguidance.report.markup import escape, table
from autoguidance.report.records import RunRecords, number
from autoguidance.report.verdict import figure, percent

_KINDS = {
    "intact": "the model as trained",
    "damaged": "damaged, without guidance",
    "matched": "guide damaged in the same way, more",
    "mismatched": "guide damaged in the other way",
    "intact main": "intact, guide damaged",
}


def degradations_section(records: RunRecords) -> str:
    """Heading and table; "" for a run that is no such study. Raises UserError where a record is damaged."""
    if not records.degradations:
        return ""
    path = records.folder / "results.json"
    rows = {row.method: row for row in records.rows}
    lines = []
    for record in records.degradations:
        method = str(record["method"])
        row, kind = rows.get(method), str(record.get("kind"))
        recovered = number(record.get("recovered"), f"recovered of {method}", path)
        guided = row is not None and row.weight not in (None, 1)
        cells = [
            escape(method),
            escape(_KINDS.get(kind, kind)),
            "–" if row is None or row.fd is None else figure(row.fd),
            f"{row.weight:g}" if guided and row is not None else "–",
            percent(recovered) if guided and recovered is not None else "–",
        ]
        lines.append(("", cells))
    columns = [("row", "text"), ("what it is", "text"), ("Fréchet distance", ""), ("best w", ""), ("recovered", "")]
    caption = (
        "Recovered: 100 % is the intact model's distance, 0 % the damaged model's without guidance, below 0 % worse than that. The least w "
        "searched is 1.1, so a guide that does not help shows as a small w that recovers nothing."
    )
    return f"<h3>Does damage of the same kind cancel?</h3>{table(caption, columns, lines)}"
