"""Results side by side, and a refusal where they were not measured alike.

A result file holds a protocol and rows. Rows of several files may stand in one table only where the protocols agree
in everything that moves a figure by itself (`protocol.COMPARED`); otherwise the refusal names what differs. Who knows
better may force it, and the differences then stand beside the table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoguidance.errors import UserError
from autoguidance.evaluate.protocol import Protocol, require_comparable
from autoguidance.storage import read_json

_SHOWN = ("method", "main", "guide", "weight", "unconditional", "cfg_weight", "interval")
FIGURES = ("fd", "kid", "precision", "recall", "density", "coverage")
"""Figures of a row, in the order in which tables show them."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A result file's content.

    Attributes:
        name: the file, as the user named it.
        protocol: how it was measured.
        rows: what was measured, at least one.
    """

    name: str
    protocol: Protocol
    rows: tuple[dict[str, Any], ...]


def read_result(path: Path | str) -> Result:
    """Read the result of `evaluate`, or `results.json` of a run folder.

    Raises:
        UserError: missing, damaged, or without protocol or rows.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "results.json"
    content = read_json(path)
    remedy = "name a file that `autoguidance evaluate --out` or `autoguidance run` wrote"
    if not isinstance(content, dict) or not isinstance(content.get("protocol"), dict):
        raise UserError(f"{path} holds no protocol; {remedy}")
    rows = content.get("rows")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} holds no rows; {remedy}")
    for row in rows:
        for name in FIGURES:
            value = row.get(name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise UserError(f"{path}: {name} is {value!r}, not a number; restore the file or measure again")
    try:
        return Result(name=str(path), protocol=Protocol.from_dict(content["protocol"]), rows=tuple(rows))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def require_all_comparable(results: Sequence[Result], *, force: bool = False) -> tuple[str, ...]:
    """Names of protocol fields in which any result differs from the first: () unless forced.

    Raises:
        UserError: some differ and `force` is not set; the text names the file, the fields and their values.
    """
    different: list[str] = []
    for result in results[1:]:
        try:
            different += require_comparable(results[0].protocol, result.protocol, force=force)
        except UserError as error:
            raise UserError(f"{results[0].name} and {result.name}: {error}") from None
    return tuple(dict.fromkeys(different))


def compare_results(results: Sequence[Result], *, force: bool = False) -> dict[str, Any]:
    """All rows of several results beside each other, JSON-like.

    Args:
        results: the first one's first row is what the others are held against.
        force: compare results of unlike protocols all the same.

    Returns:
        {"different": names of the protocol fields that differ, "rows": [{"result": file, method, main, ..., fd, fd_std,
        fd_min, kid, ..., "fd_change": fd / first fd - 1, None for the first row or where unknown}]}.

    Raises:
        UserError: fewer than two rows, or unlike protocols without `force`.
    """
    if sum(len(result.rows) for result in results) < 2:
        raise UserError("a comparison needs two rows; name another result file by --compare")
    different = require_all_comparable(results, force=force)
    rows = []
    base: float | None = None
    for result in results:
        for row in result.rows:
            shown = {key: row[key] for key in _SHOWN if row.get(key) is not None}
            figures = {key: row[key] for name in FIGURES for key in (name, f"{name}_std", f"{name}_min") if key in row}
            fd = row.get("fd")
            change = fd / base - 1 if base and fd is not None else None
            rows.append({"result": result.name, **shown, **figures, "fd_change": change})
            if len(rows) == 1:
                base = fd
    return {"different": list(different), "rows": rows}
