"""`autoguidance diagnose`: which guide suits a main model, before anything is searched."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoguidance.cli import options as o
from autoguidance.cli.common import app, console, progress_bar

if TYPE_CHECKING:
    from autoguidance.tune.diagnose import Diagnosis


@app.command(
    "diagnose",
    epilog="Example: autoguidance diagnose --main runs/main@0.050 --guide runs/guide --guide runs/main@0.200:6Ki digits. "
    "Best is DATA that the models were not trained on.",
)
def diagnose(
    main: Annotated[
        str, typer.Option("--main", help="Main model: FILE.safetensors, RUN, RUN@0.070, RUN@0.070:8Mi or published.")
    ],
    guide: Annotated[
        list[str], typer.Option("--guide", metavar="MODEL", help="A model that may guide it; repeatable.")
    ],
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Real images: folder, zip, array file, hf://owner/name, digits.")
    ] = "digits",
    num: Annotated[int, typer.Option(metavar="N", help="Images to denoise.")] = 512,
    levels: Annotated[int, typer.Option(metavar="N", help="Noise levels.")] = 16,
    sigma_min: Annotated[float | None, typer.Option(help="Lowest noise level.  [default: 0.02 sigma_data]")] = None,
    sigma_max: Annotated[float | None, typer.Option(help="Highest noise level.  [default: 160 sigma_data]")] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Fixes the choice of images and the noise.")] = 0,
    resolution: Annotated[int | None, typer.Option(metavar="N", help="Crop and resize all images to N pixels.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write all figures here (JSON).")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the figures over the noise level here (PNG).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
    device: o.DeviceOption = "auto",
    dtype: o.DtypeOption = None,
) -> None:
    """Judge guides for a main model: too similar, compatible or too far; seconds of denoising real images."""
    from autoguidance.data import open_data
    from autoguidance.errors import UserError
    from autoguidance.storage import make_folder, write_json
    from autoguidance.train.distributed import choose_device
    from autoguidance.tune.denoising import DenoisingSettings
    from autoguidance.tune.diagnose import diagnose_guides, rank

    settings = DenoisingSettings(num_images=num, num_levels=levels, sigma_min=sigma_min, sigma_max=sigma_max, seed=seed)
    if plot is not None and plot.suffix.lower() != ".png":
        raise UserError(f"--plot {plot}: the picture is a PNG file; give a name that ends in .png")
    for path in (out, plot):
        if path is not None:
            make_folder(path.parent)
    place = choose_device(device)
    body = o.parse_dtype(dtype, place)
    with progress_bar("checking") as progress:
        source = open_data(data, resolution=resolution, progress=progress, latents=True)
    with progress_bar("denoising") as progress:
        found = diagnose_guides(
            main, list(dict.fromkeys(guide)), source, settings=settings, device=place, dtype=body, progress=progress
        )
    ranked = rank(found)
    content = {"main": main, "best": ranked[0].guide, "guides": [diagnosis.to_dict() for diagnosis in ranked]}
    if out is not None:
        write_json(out, content)
    if plot is not None:
        from autoguidance.report.diagnosis import plot_diagnoses

        plot_diagnoses(content["guides"], plot)
    if as_json:
        typer.echo(json.dumps(content, indent=1))
        return
    if len(ranked) == 1:
        console.print(_levels(ranked[0]))
    console.print(_summary(ranked))
    for diagnosis in ranked:
        console.print(f"{diagnosis.guide}: {diagnosis.verdict}: {diagnosis.reason}", markup=False, soft_wrap=True)
        for warning in diagnosis.warnings:
            console.print(f"  warning: {warning}", markup=False, soft_wrap=True)
    console.print(_protocol(ranked[0]), markup=False, soft_wrap=True)
    for path in (out, plot):
        if path is not None:
            console.print(f"result: {path}", markup=False, soft_wrap=True)


def _with_error(value: float | None, error: float | None, digits: int) -> str:
    return "-" if value is None or error is None else f"{value:.{digits}f} ± {error:.{digits}f}"


def _summary(ranked: "list[Diagnosis]") -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="guides, the most promising first")
    table.add_column("guide", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    for heading in ("size", "correlation", "cosine", "w*", "try w"):
        table.add_column(heading, justify="right", no_wrap=True)
    for found in ranked:
        table.add_row(
            Text(found.guide),
            found.verdict,
            f"{found.size:.2f}",
            _with_error(found.correlation, found.correlation_se, 3),
            "-" if found.agreement is None else f"≥ {found.agreement:.2f}",
            "-" if found.best_weight is None else f"{found.best_weight:.2f}",
            f"{found.start_weight:.2f}" if found.verdict == "compatible" else "-",
        )
    return table


def _levels(found: "Diagnosis") -> Any:
    from rich.table import Table

    table = Table(title="by noise level; those between the lines decide")
    for heading in ("sigma", "main's error", "guide's excess", "difference", "w*", "cosine"):
        table.add_column(heading, justify="right", no_wrap=True)
    for level in found.levels:
        table.add_row(
            f"{level.sigma:.3g}",
            f"{level.error_main:.2g}",
            f"{level.excess:.2g} ± {level.excess_se:.1g}",
            f"{level.difference:.2g}",
            _with_error(level.best_weight, level.best_weight_se, 2),
            "-" if level.agreement is None else f"≥ {level.agreement:.2f}",
            end_section=level.sigma == found.core[1] or _next_is_first(found, level.sigma),
        )
    return table


def _next_is_first(found: "Diagnosis", sigma: float) -> bool:
    sigmas = [level.sigma for level in found.levels]
    place = sigmas.index(sigma) + 1
    return place < len(sigmas) and sigmas[place] == found.core[0]


def _protocol(found: "Diagnosis") -> str:
    protocol = found.protocol
    seen = {
        True: "on which the main model was trained: what it memorised counts as a merit",
        False: "on which the main model was not trained",
        None: "not known whether the main model was trained on them",
    }[protocol["trained_on_data"]]
    low, high = found.core
    return (
        f"{protocol['num_images']} images of {protocol['data']} ({seen}); judged at noise levels {low:.3g} to {high:.3g}; "
        f"thresholds were measured on digits and Fashion-MNIST only"
    )
