"""`autoguidance stats`: feature statistics of a set of images, to be measured against later."""

import json
from pathlib import Path
from typing import Annotated

import typer

from autoguidance.cli import options as o
from autoguidance.cli.common import app, console
from autoguidance.errors import UserError


@app.command("stats", epilog="Example: autoguidance stats digits --features pixels --out digits-pixels.npz")
def stats(
    data: Annotated[str, typer.Argument(metavar="DATA|IMAGES", help="Folder, .zip, .npz, hf://owner/name, or digits.")],
    features: Annotated[
        str, typer.Option(metavar="NAME", help="inception, dinov2, classifier, classifier:FILE, pixels, ...")
    ],
    out: Annotated[Path, typer.Option(help="The statistics file (.npz) to write.", show_default=False)],
    classifier: Annotated[
        Path | None,
        typer.Option(
            help="Where the classifier is stored; trained on DATA if absent.  [default: beside DATA, or in the cache]"
        ),
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(metavar="N", help="Centre-crop and resize every image to N x N pixels.")
    ] = None,
    keep_features: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Store the features of at most N images too (50000 is usual), for KID and precision/recall against FILE.",
        ),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Neither use nor keep features in $AUTOGUIDANCE_CACHE/feature-sets.")
    ] = False,
    device: o.DeviceOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Write mean and covariance of the features of DATA, with the network's hash and the data's fingerprint."""
    import torch

    from autoguidance.cli.measuring import first_progress, open_cache, open_features
    from autoguidance.data import open_data
    from autoguidance.evaluate import Processes, source_references
    from autoguidance.storage import make_folder
    from autoguidance.train.distributed import join_world

    if out.suffix != ".npz" or out.is_dir():
        raise UserError(f"--out {out}: give a file name that ends in .npz")
    if keep_features is not None and keep_features < 2:
        raise UserError(f"--keep-features {keep_features}: give at least 2 images")
    with join_world(device) as world, torch.no_grad():
        processes = Processes(world.rank, world.size)
        with first_progress("checking", processes) as progress:
            source = open_data(data, resolution=resolution, progress=progress)
        make_folder(out.parent)
        network = open_features(features, data, source, classifier, world.device, processes)
        with first_progress("features", processes) as progress:
            (reference,) = source_references(
                [network],
                source,
                keep=keep_features or 0,
                cache=open_cache(no_cache),
                processes=processes,
                progress=progress,
            )
        if not world.is_main:
            return
    result, kept = reference.statistics, reference.features
    result.save(out, kept)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    **result.record,
                    "num_images": result.num,
                    "num_features": result.num_features,
                    "num_kept": 0 if kept is None else len(kept),
                },
                indent=1,
            )
        )
    else:
        console.print(
            f"{out}: {result.num} images, {result.num_features} features of {network.name} {network.sha256[:12]}"
            + ("" if kept is None else f", {len(kept)} of them kept"),
            markup=False,
            soft_wrap=True,
        )
