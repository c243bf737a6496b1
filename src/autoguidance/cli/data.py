"""`autoguidance data`: look at a set of images before anything is trained on it."""

import json
from typing import Annotated, Any

import typer

from autoguidance.cli.common import app, progress_bar

data_app = typer.Typer(
    name="data",
    help="Look at sets of images.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app)

_MAX_CLASSES = 40


@data_app.callback()
def _group() -> None:
    """Look at sets of images."""


@data_app.command("inspect", epilog="Example: autoguidance data inspect my_images --json")
def inspect(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="Folder, .zip, .npz, .npy, hf://owner/name, or digits.", show_default=False
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
    resolution: Annotated[
        int | None,
        typer.Option(metavar="N", help="Centre-crop and resize every image to N x N pixels.", show_default=False),
    ] = None,
) -> None:
    """Check every image of DATA: counts, size, classes, fingerprint, and all problems, one a line."""
    from autoguidance.data.inspection import inspect_data

    with progress_bar("checking") as progress:
        report, error = inspect_data(data, resolution=resolution, progress=progress)
    typer.echo(json.dumps(report, indent=1) if as_json else "\n".join(_lines(report)))
    if error is not None:
        raise error


def _lines(report: dict[str, Any]) -> list[str]:
    from autoguidance.data.source import printable

    def counts(values: dict[str, int]) -> str:
        return ", ".join(f"{count} {printable(name)}" for name, count in values.items()) or "none"

    lines = [f"{printable(report['name'])}  ({report['kind']}, {report['num_files']} images)"]
    if "resolution" in report:
        size = report["resolution"]
        lines.append(
            f"images       {report['num_images']} of {size} x {size}, {'grey' if report['channels'] == 1 else 'RGB'}"
        )
    lines.append(f"formats      {counts(report['formats'])}")
    lines.append(f"colour modes {counts(report['modes'])}")
    if report["ignored"]:
        lines.append(f"ignored      {counts(report['ignored'])}")
    classes = list(report["classes"].items())
    lines.append(f"classes      {len(classes) or 'none: unlabelled'}")
    lines += [
        f"  {number:4d}  {count:8d}  {printable(name)}" for number, (name, count) in enumerate(classes[:_MAX_CLASSES])
    ]
    if len(classes) > _MAX_CLASSES:
        lines.append(f"  ... and {len(classes) - _MAX_CLASSES} more (--json lists all)")
    if "encoded" in report:
        figures = report["encoded"]
        lines.append(
            f"encoded      mean {figures['mean']:.3f}, standard deviation {figures['std']:.3f} "
            f"over {figures['num_images']} images (training assumes 0.5)"
        )
        lines.append(f"fingerprint  {report['fingerprint']}")
    lines += [f"note: {printable(note)}" for note in report["notes"]]
    for problem in report["problems"]:
        where = f"{printable(problem['where'])}: " if problem["where"] else ""
        lines.append(f"problem: {where}{problem['what']}")
    return lines
