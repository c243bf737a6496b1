"""`autoguidance evaluate`: how far generated images are from a real set, and results side by side."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoguidance.cli import options as o
from autoguidance.cli.common import app, console
from autoguidance.cli.measuring import (
    first_progress,
    generated_images,
    given_images,
    open_cache,
    open_references,
    split_names,
)
from autoguidance.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from autoguidance.evaluate import Result

_DEFAULT_NUM = 1000
_TITLES = {"fd": "Fréchet distance", "kid": "KID"}
_COLUMNS = {
    "fd": "FD ↓",
    "kid": "KID ↓",
    "precision": "prec. ↑",
    "recall": "recall ↑",
    "density": "dens. ↑",
    "coverage": "cov. ↑",
}


@app.command(
    "evaluate",
    epilog="Example: autoguidance evaluate out/digits --ref digits --features classifier,pixels --metrics fd,kid,prdc "
    "--out result.json. In place of IMAGES a model or pair may be given as for generate: --pair runs/digits/pair.json "
    "--num 1000 --repeats 3. The papers measure 50000 images (--num 50000). Under torchrun the processes share the work. "
    "Results of their own are compared by --compare a.json --compare b.json.",
)
@o.with_sampler_options
def evaluate(
    images: Annotated[
        str | None,
        typer.Argument(metavar="IMAGES", help="Generated images: folder, .zip or .npz.", show_default=False),
    ] = None,
    ref: Annotated[
        str, typer.Option("--ref", metavar="DATA|FILE.npz", help="The real images, or a file of stats.")
    ] = "digits",
    features: Annotated[
        str | None,
        typer.Option(
            help="inception, dinov2, classifier, classifier:FILE, pixels, ...; several with commas; the first gives fd.  "
            "[default: the reference's]"
        ),
    ] = None,
    metrics: Annotated[
        str, typer.Option(help="fd, kid, prdc (precision, recall, density, coverage); several with commas.")
    ] = "fd",
    classifier: Annotated[
        Path | None,
        typer.Option(
            help="Where the classifier is stored; trained on --ref if absent.  [default: beside --ref, or in the cache]"
        ),
    ] = None,
    resolution: Annotated[int | None, typer.Option(help="Centre-crop and resize the real images to this size.")] = None,
    num: Annotated[
        int | None, typer.Option(metavar="N", help=f"Images per repeat.  [default: all there are, or {_DEFAULT_NUM}]")
    ] = None,
    repeats: Annotated[int, typer.Option(metavar="N", help="Disjoint sets of images to measure.")] = 1,
    num_real: Annotated[
        int | None,
        typer.Option(metavar="N", help="Real images for kid and prdc, at most.  [default: 50000; fd takes all]"),
    ] = None,
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Show beside this result (may be repeated); the first is the basis.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Compare results of unlike protocols all the same.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the result here (JSON).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Neither use nor keep features in $AUTOGUIDANCE_CACHE/feature-sets.")
    ] = False,
    *,
    sampler: o.SamplerOptions,
    classes: Annotated[str, typer.Option(help="random, balanced, or a list such as 3,5-7.")] = "random",
    first_seed: Annotated[int, typer.Option(metavar="N", help="Seeds are N, N+1, ...")] = 0,
    batch: Annotated[int, typer.Option(help="Images generated at a time.")] = 64,
    device: o.DeviceOption = "auto",
    dtype: o.DtypeOption = None,
) -> None:
    """Measure generated images, or a model or pair, against real images, and record by what protocol."""
    import torch

    from autoguidance.evaluate import (
        NUM_REAL_KEPT,
        Processes,
        check_metrics,
        evaluate_images,
        open_generated,
        planned_protocol,
        protocol_of,
        read_result,
        row_details,
    )
    from autoguidance.evaluate.comparison import Result, require_all_comparable
    from autoguidance.train.distributed import join_world

    generating = sampler.pair is not None or sampler.main is not None
    others = [read_result(path) for path in compare or []]
    if images is not None and generating:
        raise UserError("give either IMAGES or what to generate (--pair, or --main and so on)")
    if images is None and not generating:
        if len(others) < 2:
            raise UserError(
                "give either IMAGES or what to generate (--pair, or --main and so on), or two results by --compare"
            )
        _finish(None, 1, others, force, out, as_json)
        return
    if repeats < 1 or (num is not None and num < 2):
        raise UserError(f"--repeats {repeats}, --num {num}: give at least 1 repeat of 2 images")
    if num_real is not None and num_real < 2:
        raise UserError(f"--num-real {num_real}: give at least 2 images")
    if batch < 1 or first_seed < 0:
        raise UserError(
            f"--batch {batch}, --first-seed {first_seed}: give a batch of at least 1 and a seed of at least 0"
        )
    wanted = check_metrics(split_names(metrics))
    _check_out(out)
    with join_world(device) as world, torch.no_grad():
        processes = Processes(world.rank, world.size)
        cache = open_cache(no_cache)
        # What is measured comes before the reference, which may take long: a mistake shows at once.
        described: dict[str, Any]
        if images is not None:
            with first_progress("checking", processes) as progress:
                given = open_generated(images, progress=progress)
            sets, seeds = given_images(given, num, repeats)
            method, details = given.method, given.details
            described = {"class_sampling": given.class_sampling, "solver": given.solver}
        else:
            spec = sampler.build()
            sets, seeds, sampling = generated_images(
                spec,
                num=num or _DEFAULT_NUM,
                repeats=repeats,
                first_seed=first_seed,
                classes=classes,
                batch=batch,
                device=world.device,
                dtype=dtype,
                processes=processes,
            )
            method, details = spec.method, row_details(vars(spec))
            described = {
                "class_sampling": sampling,
                "solver": None if spec.solver is None else spec.solver.describe(),
            }
        keep = (num_real or NUM_REAL_KEPT) if {"kid", "prdc"} & set(wanted) else 0
        references = open_references(
            ref, features, classifier, resolution, keep=keep, device=world.device, cache=cache, processes=processes
        )
        described["seeds"] = seeds
        planned = planned_protocol(references, sets[0].num, len(sets), **described)
        require_all_comparable([*others, Result(name="this result", protocol=planned, rows=({},))], force=force)
        with first_progress("generating" if generating else "measuring", processes) as progress:
            measurement = evaluate_images(
                sets,
                references,
                method=method,
                details=details,
                metrics=wanted,
                cache=cache,
                processes=processes,
                total_images=sum(part.num for part in sets),
                progress=progress,
            )
        protocol = protocol_of(measurement, references, **described)
        if world.is_main:
            result = Result(name=str(out or "this result"), protocol=protocol, rows=(measurement.row,))
            _finish(result, world.size, [*others, result], force, out, as_json)


def _check_out(out: Path | None) -> None:
    """Whether the result can be written, before it is computed."""
    from autoguidance.storage import make_folder

    if out is None:
        return
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file to write, such as {out / 'result.json'}")
    make_folder(out.parent)


def _finish(
    result: "Result | None",
    num_processes: int,
    results: "Sequence[Result]",
    force: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Write and show what was measured, or what was compared."""
    from autoguidance.evaluate import compare_results
    from autoguidance.storage import write_json

    content: dict[str, Any] = {}
    if result is not None:
        content = {"protocol": result.protocol.to_dict(), "rows": list(result.rows)}
    if len(results) > 1:
        content["comparison"] = compare_results(results, force=force)
    if out is not None:
        _check_out(out)
        write_json(out, content)
    if as_json:
        typer.echo(json.dumps(content, indent=1))
        return
    if result is not None:
        _print(result, num_processes)
    if "comparison" in content:
        _print_comparison(content["comparison"])
    if out is not None:
        console.print(f"result: {out}", markup=False, soft_wrap=True)


def _value(figures: dict[str, Any], name: str, repeats: int) -> str:
    value, spread, least = figures[name], figures.get(f"{name}_std"), figures.get(f"{name}_min")
    text = f"{value:.5g}"
    if spread is not None:
        text += f" ± {spread:.2g} over {repeats} repeats, least {least:.5g}"
    if name == "kid":
        text += f" (± {figures['kid_subset_std']:.2g} over subsets)"
    return text


def _print(result: "Result", num_processes: int) -> None:
    from autoguidance.evaluate.comparison import FIGURES

    protocol, row = result.protocol, result.rows[0]
    lines = []
    for network, figures in row["features"].items():
        for name in FIGURES:
            if name in figures:
                lines.append(f"{_TITLES.get(name, name)} ({network}): {_value(figures, name, protocol.repeats)}")
    count = f"{protocol.num_real} of " if protocol.num_real else ""
    lines.append(
        f"{protocol.num_images} images a repeat, classes {protocol.class_sampling}, against {count}{protocol.reference}"
    )
    if num_processes > 1:
        lines.append(f"shared by {num_processes} processes")
    lines += [f"note: {note}" for note in protocol.notes]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _print_comparison(comparison: dict[str, Any]) -> None:
    from rich.table import Table

    from autoguidance.evaluate.comparison import FIGURES

    rows = comparison["rows"]
    shown = [name for name in FIGURES if any(row.get(name) is not None for row in rows)]
    table = Table(box=None, pad_edge=False)
    for title in ("result", "method", "w"):
        table.add_column(title, overflow="fold")
    for name in shown:
        table.add_column(_COLUMNS[name], justify="right", no_wrap=True)
    table.add_column("FD change", justify="right", no_wrap=True)
    for row in rows:
        cells = [row["result"], str(row.get("method", "")), "" if row.get("weight") is None else f"{row['weight']:g}"]
        for name in shown:
            spread = row.get(f"{name}_std")
            text = "–" if row.get(name) is None else f"{row[name]:.3g}"
            cells.append(text + (f" ± {spread:.2g}" if spread is not None and name == "fd" else ""))
        change = row["fd_change"]
        cells.append("" if change is None else f"{100 * change:+.1f} %")
        table.add_row(*cells)
    console.print(table)
    if comparison["different"]:
        console.print(
            f"note: forced; these results were not measured alike ({', '.join(comparison['different'])})",
            markup=False,
            soft_wrap=True,
        )
