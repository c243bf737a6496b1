"""Pieces of HTML that every section of the page is made of: escaped text, counts, tables, figures.

What comes from outside passes through `escape` before it reaches a cell; a table takes ready cells, because some hold
a second line or a badge.
"""

import html
from collections.abc import Iterable, Sequence
from typing import Any

_THIN_SPACE = "\u2009"


def escape(value: Any) -> str:
    """A value as text that is safe between tags and in a quoted attribute."""
    return html.escape(str(value), quote=True)


def whole_number(value: float) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{value:,.0f}".replace(",", _THIN_SPACE)


def table(caption: str, columns: Sequence[tuple[str, str]], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A table of ready HTML cells; columns are (title, class), rows (class, cells), a row's first cell its header."""
    head = "".join(f'<th scope="col" class="{kind}">{title}</th>' for title, kind in columns)
    body = []
    for kind, cells in rows:
        data = "".join(f'<td class="{columns[index][1]}">{cell}</td>' for index, cell in enumerate(cells[1:], 1))
        body.append(f'<tr class="{kind}"><th scope="row">{cells[0]}</th>{data}</tr>')
    label = escape(caption)
    return (
        f'<div class="frame" tabindex="0" role="region" aria-label="{label}"><table>'
        f"<caption><span>{label}</span></caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def figure_block(content: tuple[str, str] | None) -> str:
    """A plot with its caption, from (caption, SVG); "" for None."""
    return "" if content is None else f"<figure>{content[1]}<figcaption>{escape(content[0])}</figcaption></figure>"
