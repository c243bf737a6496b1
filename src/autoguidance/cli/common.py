"""What every verb shares: the application object, the consoles, the progress bar, and how errors end a command."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

ProgressCallback = Callable[[int, int, dict[str, Any]], None]

app = typer.Typer(
    name="autoguidance",
    help="Better diffusion samples by guiding a model with a bad version of itself.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def _figures(figures: dict[str, Any]) -> str:
    return "  ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items()
    )


@contextmanager
def progress_bar(description: str) -> Iterator[ProgressCallback]:
    """A bar with count, figures and time left on a terminal; elsewhere (a log file, a pipe) a line every 30 seconds."""
    if not sys.stderr.isatty():
        last = time.monotonic()

        def lines(done: int, total: int, figures: dict[str, Any]) -> None:
            nonlocal last
            if time.monotonic() - last >= 30:
                last = time.monotonic()
                print(f"{description}: {done}/{total}  {_figures(figures)}", file=sys.stderr, flush=True)  # noqa: T201

        yield lines
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task(description, total=None, figures="")

        def update(done: int, total: int, figures: dict[str, Any]) -> None:
            bar.update(task, completed=done, total=total, figures=_figures(figures))

        yield update
