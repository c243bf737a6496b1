"""`autoguidance stats`: feature statistics of a set of images, to be measured against later."""

import json
from pathlib import Path
from typing import Annotated

import typer

from autoguidance.cli import options as o
from autoguidance.cli.common import app, console, progress_bar
from autoguidance.errors import UserError


@app.command("stats", epilog="Example: autoguidance stats digits --features pixels --out digits-pixels.npz")
def stats(
    data: Annotated[str, typer.Argument(metavar="DATA|IMAGES", help="Folder, .zip, .npz, hf://owner/name, or digits.")],
    features: Annotated[str, typer.Option(metavar="NAME", help="pixels, classifier, or classifier:FILE.")],
    out: Annotated[Path, typer.Option(help="The statistics file (.npz) to write.", show_default=False)],
    classifier: Annotated[
        Path | None,
        typer.Option(help="Where the classifier is stored; trained on DATA if absent.  [default: beside DATA]"),
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(metavar="N", help="Centre-crop and resize every image to N x N pixels.")
    ] = None,
    device: o.DeviceOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Write mean and covariance of the features of DATA, with the network's hash and the data's fingerprint."""
    from autoguidance.cli.evaluate import open_features
    from autoguidance.data import open_data
    from autoguidance.evaluate import source_statistics
    from autoguidance.train.distributed import choose_device

    if out.suffix != ".npz":
        raise UserError(f"--out {out}: give a file name that ends in .npz")
    place = choose_device(device)
    with progress_bar("checking") as progress:
        source = open_data(data, resolution=resolution, progress=progress)
    network = open_features(features, data, source, classifier, place)
    with progress_bar("features") as progress:
        (result,) = source_statistics([network], source, progress=progress)
    result.save(out)
    if as_json:
        typer.echo(
            json.dumps({**result.record, "num_images": result.num, "num_features": result.num_features}, indent=1)
        )
    else:
        console.print(
            f"{out}: {result.num} images, {result.num_features} features of {network.name} {network.sha256[:12]}",
            markup=False,
            soft_wrap=True,
        )
