"""`autoguidance data`: look at a set of images, bring it into one form, turn it into latents and back."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoguidance.cli.common import app, console, progress_bar

if TYPE_CHECKING:
    from autoguidance.data.convert import Converted

data_app = typer.Typer(
    name="data",
    help="Look at sets of images, convert, encode and decode them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app)

_MAX_CLASSES = 40

DataArgument = Annotated[
    str,
    typer.Argument(metavar="DATA", help="Folder, .zip, .npz, .npy, hf://owner/name, or digits.", show_default=False),
]
OutOption = Annotated[
    Path, typer.Option(metavar="ZIP", help="The .zip to make, or a folder (a name without suffix).", show_default=False)
]
BatchOption = Annotated[
    int | None,
    typer.Option(metavar="N", help="Images per call of the VAE; bounds memory.  [default: suits the device]"),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@data_app.callback()
def _group() -> None:
    """Look at sets of images, convert, encode and decode them."""


@data_app.command("inspect", epilog="Example: autoguidance data inspect my_images --json")
def inspect(
    data: DataArgument,
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


@data_app.command(
    "convert",
    epilog="Example: autoguidance data convert my_images --out images-64.zip --resolution 64. "
    "The same command goes on where it was stopped.",
)
def convert(
    data: DataArgument,
    out: OutOption,
    resolution: Annotated[
        int | None,
        typer.Option(metavar="N", help="Make every image N x N pixels.  [default: they are square and of one size]"),
    ] = None,
    transform: Annotated[
        str, typer.Option(help="How they become square: center-crop, center-crop-wide or center-crop-dhariwal.")
    ] = "center-crop",
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Processes; the result is the same.  [default: one per core]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an uncompressed zip of PNG files of one size with dataset.json, the form of the EDM2 data sets."""
    from autoguidance.data.convert import convert_data

    with progress_bar("converting") as progress:
        result = convert_data(data, out, resolution=resolution, transform=transform, workers=workers, progress=progress)
    _print_result(result, "images", as_json)


@data_app.command(
    "encode",
    epilog="Example: autoguidance data encode images-512.zip --out latents.zip. "
    "The same command goes on where it was stopped; `autoguidance train latents.zip` takes the result.",
)
def encode(
    data: DataArgument,
    out: OutOption,
    vae: Annotated[
        str, typer.Option(metavar="NAME", help="The VAE: a name on the Hugging Face hub, or a local folder.")
    ] = "stabilityai/sd-vae-ft-mse",
    batch: BatchOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Turn images into latents of a VAE, for the networks that work on latents."""
    from autoguidance.data.encode import encode_data
    from autoguidance.train.distributed import choose_device

    place = choose_device(device)
    with progress_bar("encoding") as progress:
        result = encode_data(data, out, vae=vae, batch=batch, device=place, progress=progress)
    _print_result(result, "latents", as_json)


@data_app.command("decode", epilog="Example: autoguidance data decode latents.zip --out images")
def decode(
    data: Annotated[str, typer.Argument(metavar="LATENTS", help="Folder or .zip of latents.", show_default=False)],
    out: OutOption,
    batch: BatchOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Turn the latents of `data encode` back into images."""
    from autoguidance.data.encode import decode_data
    from autoguidance.train.distributed import choose_device

    place = choose_device(device)
    with progress_bar("decoding") as progress:
        result = decode_data(data, out, batch=batch, device=place, progress=progress)
    _print_result(result, "images", as_json)


def _print_result(result: "Converted", what: str, as_json: bool) -> None:
    if as_json:
        record = {
            "out": str(result.out),
            "num_images": result.num_images,
            "num_made": result.num_made,
            "was_there": result.was_there,
            "notes": list(result.notes),
        }
        typer.echo(json.dumps(record, indent=1))
        return
    new = "there already" if result.was_there else f"{result.num_made} of them now"
    console.print(f"{result.out}: {result.num_images} {what}, {new}", markup=False, soft_wrap=True)
    for note in result.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)


def _lines(report: dict[str, Any]) -> list[str]:
    from autoguidance.data.source import printable

    def counts(values: dict[str, int]) -> str:
        return ", ".join(f"{count} {printable(name)}" for name, count in values.items()) or "none"

    lines = [f"{printable(report['name'])}  ({report['kind']}, {report['num_files']} images)"]
    if "latents" in report:
        latents = report["latents"]
        shape = f"{latents['channels']} x {latents['resolution']} x {latents['resolution']}"
        lines.append(
            f"latents      {report['num_images']} of {shape}, for images of {report['resolution']} pixels, by "
            f"{printable(latents['vae'])}"
        )
    elif "resolution" in report:
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
