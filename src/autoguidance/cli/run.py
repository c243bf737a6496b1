"""`autoguidance run`: the whole way, from images to a tuned pair and a report."""

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from autoguidance.cli import options as o
from autoguidance.cli.common import app, console, progress_bar


@app.command(
    epilog="Example: autoguidance run my_images/ --minutes 30 --out runs/mine. Interrupted at any point, the same command goes on."
)
def run(
    data: Annotated[str, typer.Argument(help="Folder, zip, array file, hf://owner/name, or digits.")] = "digits",
    out: Annotated[Path | None, typer.Option(help="Output folder.  [default: runs/NAME]")] = None,
    minutes: Annotated[float | None, typer.Option(help="Time to spend.  [default: 6.5 for digits, else 60]")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Fixes everything random.")] = 0,
    resolution: Annotated[int | None, typer.Option(help="Centre-crop and resize images to this size.")] = None,
    preset: Annotated[str | None, typer.Option(help="Size of the main network.  [default: by resolution]")] = None,
    device: o.DeviceOption = "auto",
    processes: Annotated[
        int | None, typer.Option(min=1, help="Worker processes on a CPU.  [default: one per core]")
    ] = None,
) -> None:
    """Train main and guide, search the pair, compare with CFG, and write results.json, pair.json and report.html."""
    from autoguidance.study.run import RunConfig
    from autoguidance.study.run import run as run_all
    from autoguidance.train.distributed import choose_device

    started = time.monotonic()
    folder = out or Path("runs") / (Path(data.rstrip("/")).stem if "://" not in data else data.rsplit("/", 1)[-1])
    config = RunConfig(
        data=data,
        out=folder,
        minutes=minutes,
        seed=seed,
        resolution=resolution,
        preset=preset,
        device=choose_device(device),
        num_processes=processes or len(os.sched_getaffinity(0)),
    )
    results = run_all(config, progress_bar)
    show_rows(results)
    console.print(f"{time.monotonic() - started:.0f} s in this call. Report: {folder / 'report.html'}", soft_wrap=True)
    example = f"autoguidance generate --pair {folder / 'pair.json'} --seeds 0-63 --out samples"
    console.print(f"Sample with it: {example}", soft_wrap=True)


def show_rows(results: dict[str, Any]) -> None:
    """Print the rows of results.json as a table, best distance first."""
    from rich.table import Table

    protocol = results["protocol"]
    count = f"{protocol['num_images']} images x {protocol['repeats']} repeats"
    table = Table(title=f"Fréchet distance ({protocol['features']} features), {count}")
    for name in ("method", "distance", "w", "interval", "evaluations", "ms/image"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    rows = sorted(results["rows"], key=lambda row: row["fd"])
    for row in rows:
        spread = "" if row["fd_std"] is None else f" ± {row['fd_std']:.3f}"
        table.add_row(
            row["method"],
            f"{row['fd']:.3f}{spread}",
            f"{row['weight']:.2f}",
            "-" if row["interval"] is None else f"{row['interval'][0]:g} to {row['interval'][1]:g}",
            f"{row['evaluations_main'] + row['evaluations_guide']:.0f}",
            f"{1000 * row['seconds_per_image']:.1f}",
        )
    console.print(table)
    for row in rows:
        guide = "" if row["guide"] is None else f", guided by {row['guide']}"
        console.print(f"{row['method']}: {row['main']}{guide}", markup=False, soft_wrap=True)
    if "baseline" in results:
        console.print(
            f"Half of the real images against all of them: {results['baseline']['real_half']:.3f}", soft_wrap=True
        )
