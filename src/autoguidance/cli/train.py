"""`autoguidance train DATA --out RUN`: train a network on images, or go on with a run that was stopped."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from autoguidance.cli.common import app, console, progress_bar


@app.command(
    "train",
    epilog="Example: autoguidance train digits --out runs/main --images 150000. The same command resumes. "
    "Under torchrun (-m autoguidance train) the processes share every batch.",
)
def train(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="Folder or zip (of images or latents), array file, hf://owner/name, digits."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The run folder; where it holds this run already, training goes on.")],
    preset: Annotated[str, typer.Option(help="Size: nano, tiny, small, base, large, huge, edm2-img64-s ...")] = "auto",
    images: Annotated[str | None, typer.Option(metavar="N[Ki|Mi|Gi]", help="Training images, with repetition.")] = None,
    batch: Annotated[int | None, typer.Option(metavar="N", help="Images per step, over all processes.")] = None,
    unconditional: Annotated[bool, typer.Option("--unconditional", help="Ignore the labels.")] = False,
    resolution: Annotated[int | None, typer.Option(metavar="N", help="Crop and resize all images to N pixels.")] = None,
    encoder: Annotated[
        str,
        typer.Option(help="auto, pixels, unshuffle2|4, dct2|4, wavelet2|4, lapped4, or the first three with -scaled."),
    ] = "auto",
    seed: Annotated[int | None, typer.Option(metavar="N", help="Fixes everything random.  [default: 0]")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16 (GPU).")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any option of config.json; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a network on images; averaged snapshots, checkpoints and log.jsonl go to the run folder."""
    from autoguidance.data.open import open_data
    from autoguidance.train.config import parse_count
    from autoguidance.train.distributed import choose_device
    from autoguidance.train.loop import train as train_network
    from autoguidance.train.presets import resolve

    place = choose_device(device)
    num_images = None if images is None else parse_count(images)
    is_main = int(os.environ.get("RANK", "0")) == 0
    with progress_bar("checking images") as checking:
        source = open_data(data, resolution=resolution, progress=checking if is_main else None, latents=True)
    config = resolve(
        preset,
        source,
        encoder=encoder,
        overrides=settings or (),
        on_gpu=place.type == "cuda",
        num_images=num_images,
        batch_size=batch,
        unconditional=unconditional or None,
        seed=seed,
        dtype=dtype,
    )
    with progress_bar("training") as training:
        result = train_network(config, source, out, progress=training if is_main else None, device=place)
    if not is_main:
        return
    if as_json:
        record = {**asdict(result), "folder": str(result.folder), "preset": config.preset}
        print(json.dumps(record))  # noqa: T201
        return
    what = "was finished already; raise --images to train longer" if result.already_finished else "is trained"
    skipped = f", {result.skipped} steps skipped" if result.skipped else ""
    console.print(
        f"{result.folder} {what}: {result.num_images} images in {result.seconds:.0f} s, preset {config.preset}"
        + skipped,
        markup=False,
        soft_wrap=True,
    )
