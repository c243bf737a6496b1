"""`autoguidance report DIR …`: one self-contained HTML page about finished runs."""

from pathlib import Path
from typing import Annotated

import typer

from autoguidance.cli.common import app, console


@app.command("report", epilog="Example: autoguidance report runs/digits --out report.html")
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Output folders of `autoguidance run`.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
) -> None:
    """Write one HTML page about one or several runs: table, curves, image grids, protocol; it opens offline."""
    from autoguidance.report.page import write_report

    console.print(f"report: {write_report(folders, out)}", markup=False, soft_wrap=True)
