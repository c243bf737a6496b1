"""`autoguidance study`: the paper's studies on any data set."""

import json
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from autoguidance.cli import options as o
from autoguidance.cli.common import app, console, progress_bar
from autoguidance.cli.run import show_rows
from autoguidance.errors import UserError


@app.command(
    epilog="Example: autoguidance study methods my_images/ --images 200000 --out runs/methods. Interrupted, the same command goes on."
)
def study(
    name: Annotated[str | None, typer.Argument(help="Which study; see --list.", show_default=False)] = None,
    data: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folder, zip, array file, hf://owner/name, or digits (several for domains).", show_default=False
        ),
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="List the studies.")] = False,
    out: Annotated[Path | None, typer.Option(help="Output folder.  [default: runs/study-NAME]")] = None,
    preset: Annotated[str | None, typer.Option(help="Size of the main network.  [default: by resolution]")] = None,
    images: Annotated[str | None, typer.Option(metavar="N[Ki|Mi]", help="Length of the main training.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images per training step.")] = None,
    encoder: Annotated[str, typer.Option(help="As for train.")] = "auto",
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value of every training.")] = None,
    features: Annotated[str | None, typer.Option(help="Feature network.  [default: a classifier of the data]")] = None,
    num: Annotated[int | None, typer.Option(min=128, help="Images per repeat of the confirmation.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats of the confirmation.")] = 3,
    search_num: Annotated[int | None, typer.Option(min=128, help="Images of a full measurement of the search.")] = None,
    measurements: Annotated[int, typer.Option(min=1, help="Search budget of each row, in full measurements.")] = 12,
    steps: Annotated[int, typer.Option(min=1, help="Heun steps.")] = 12,
    sigma_min: o.SigmaMinOption = None,
    sigma_max: o.SigmaMaxOption = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16 (GPU), of training and of sampling.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Fixes everything random.")] = 0,
    resolution: Annotated[int | None, typer.Option(help="Centre-crop and resize images to this size.")] = None,
    device: o.DeviceOption = "auto",
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes that measure.  [default: one per core; 1 on a GPU]")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Networks trained at once.  [default: as processes]")] = None,
    trained: Annotated[
        Path | None, typer.Option(help="Folder of another study on the same data: copy equal networks from it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Conduct one of the paper's studies on a data set: train, search each row's best setting, confirm, report."""
    from autoguidance.study.catalogue import STUDIES, conduct, conduct_several, find_study
    from autoguidance.study.experiment import StudyConfig
    from autoguidance.train.config import parse_count
    from autoguidance.train.distributed import choose_device

    if list_all:
        for known, entry in STUDIES.items():
            console.print(f"{known:15} {entry.title}", markup=False, soft_wrap=True)
        return
    if name is None:
        raise UserError(f"name a study: {', '.join(STUDIES)} (autoguidance study --list)")
    chosen = find_study(name)
    sets = data or ["digits"]
    if len(sets) > 1 and not chosen.several:
        raise UserError(f"the study {name} takes one data set, not {len(sets)}; see domains for several")
    started = time.monotonic()
    place = choose_device(device)
    levels = {name: level for name, level in (("sigma_min", sigma_min), ("sigma_max", sigma_max)) if level is not None}
    workers = processes or (1 if place.type == "cuda" else len(os.sched_getaffinity(0)))
    config = StudyConfig(
        name=name,
        data=sets[0],
        out=out or Path("runs") / f"study-{name}",
        preset=preset,
        images=None if images is None else parse_count(images),
        batch_size=batch,
        encoder=encoder,
        settings=tuple(settings or ()),
        features=features,
        num_images=num,
        repeats=repeats,
        search_images=search_num,
        measurements=measurements,
        num_steps=steps,
        dtype=o.parse_dtype(dtype, place),
        **levels,
        seed=seed,
        resolution=resolution,
        device=place,
        processes=workers,
        jobs=jobs or workers,
        trained=trained,
    )
    if chosen.several:
        found = conduct_several(config, _names(sets), progress_bar)
    else:
        found = {name: conduct(config, progress_bar)}
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for title, results in found.items():
        if chosen.several:
            console.print(title, markup=False)
        show_rows(results)
    console.print(
        f"{time.monotonic() - started:.0f} s in this call. Report: {config.out / 'report.html'}", soft_wrap=True
    )


def _names(sets: list[str]) -> dict[str, str]:
    """A folder name per data set. Raises UserError where two would have the same."""
    names = {}
    for where in sets:
        stem = where.rstrip("/").rsplit("/", 1)[-1]
        stem = Path(stem).stem or "data"
        if stem in names:
            raise UserError(f"two data sets are called {stem}; rename one")
        names[stem] = where
    return names
