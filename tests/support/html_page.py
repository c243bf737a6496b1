"""A report as a reader sees it: elements with attributes, visible text, rows of tables, texts of plots with their places."""

import re
from html.parser import HTMLParser

# Elements that have no end tag in HTML.
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects elements with attributes and the visible text, and fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = text
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data
        if "td" in self._open or "th" in self._open:
            self.rows[-1][-1] += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def row(self, first: str, *, cells: int) -> list[str]:
        """The one row of a table that has so many cells and begins with `first`."""
        (found,) = [row for row in self.rows if len(row) == cells and row[0] == first]
        return found

    def plot(self, described: str) -> str:
        """The source of the one plot whose description begins with `described`."""
        (found,) = [
            svg
            for svg in re.findall(r'<svg class="plot".*?</svg>', self.source, re.DOTALL)
            if f'aria-label="{described}' in svg
        ]
        return found


def plot_texts(svg: str) -> list[tuple[str, float, float]]:
    """(text, x, y) of each text in a plot."""
    return [
        (text, float(x), float(y))
        for x, y, text in re.findall(r'<text [^>]*?x="([-0-9.]+)" y="([-0-9.]+)"[^>]*>([^<]*)<', svg)
    ]
