"""`autoguidance tune`: find w, both EMA widths and the guide for a trained model."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoguidance.cli import options as o
from autoguidance.cli.common import app, console, errors, progress_bar
from autoguidance.errors import UserError

if TYPE_CHECKING:
    import torch

    from autoguidance.evaluate import Reference
    from autoguidance.tune.tuning import TuneConfig


@app.command(
    "tune",
    epilog="Example: autoguidance tune --main runs/main --guide runs/guide --ref my_images/ --out pair.json. The same command goes on "
    "where it was stopped; started on several machines with one --storage (a file that all see, or postgresql://...), they share the work.",
)
def tune(
    main: Annotated[str, typer.Option(help="Main run (RUN or RUN@0.070), or one model.", show_default=False)],
    guide: Annotated[
        list[str] | None,
        typer.Option(help="A guide run, at any of its stored times (RUN:1Mi: at that one), or one model; repeatable."),
    ] = None,
    ref: Annotated[
        str, typer.Option("--ref", metavar="DATA|FILE.npz", help="The real images, or a file of stats.")
    ] = "digits",
    features: Annotated[
        str | None,
        typer.Option(help="inception, dinov2, classifier, pixels, ... as in evaluate.  [default: the reference's]"),
    ] = None,
    classifier: Annotated[
        Path | None, typer.Option(help="Where the classifier is stored; trained on --ref if absent.")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(metavar="N", help="Centre-crop and resize the real images to N x N pixels.")
    ] = None,
    unconditional: Annotated[
        str | None, typer.Option(help="Unconditional model: search classifier-free guidance too, for comparison.")
    ] = None,
    early: Annotated[bool, typer.Option(help="Early snapshots of the main run may be the guide.")] = True,
    interval: Annotated[bool, typer.Option("--interval", help="Search the guidance interval too.")] = False,
    num: Annotated[
        str | None,
        typer.Option(metavar="N", help="Images of a full measurement.  [default: 10 per feature, 1024 to 50000]"),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="N[Ki|Mi]", help="Images to search with, per guided method.  [default: 30 x --num]"),
    ] = None,
    finalists: Annotated[int, typer.Option(min=1, help="Settings to measure again on fresh seeds.")] = 3,
    repeats: Annotated[int, typer.Option(min=1, help="Disjoint sets of --num images for each of them.")] = 3,
    classes: Annotated[
        str, typer.Option(help="proportional (as in --ref), random or balanced.  [default: proportional with DATA]")
    ] = "",
    first_seed: Annotated[int, typer.Option(min=0, metavar="N", help="Confirmation uses seeds N, N+1, ...")] = 0,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|URL",
            help="FILE.jsonl (journal), FILE.db (SQLite) or postgresql://...; workers share it.  [default: beside --out]",
        ),
    ] = None,
    lease: Annotated[
        float, typer.Option(min=1.0, metavar="SECONDS", help="A worker silent for so long is taken for dead.")
    ] = 60.0,
    out: Annotated[Path, typer.Option(help="The pair to write; everything else goes to the folder STEM.tune.")] = Path(
        "pair.json"
    ),
    solver: o.SolverOption = None,
    steps: o.StepsOption = None,
    sigma_min: o.SigmaMinOption = None,
    sigma_max: o.SigmaMaxOption = None,
    rho: o.RhoOption = None,
    churn: o.ChurnOption = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Worker processes on a CPU.  [default: one per core]")
    ] = None,
    device: o.DeviceOption = "auto",
    dtype: o.DtypeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Search w, both EMA widths and the guide (a run, or an early snapshot of the main run); write pair.json."""
    from autoguidance.report.page import write_report
    from autoguidance.train.config import parse_count
    from autoguidance.train.distributed import choose_device
    from autoguidance.tune.tuning import TuneConfig
    from autoguidance.tune.tuning import tune as search

    place = choose_device(device)
    body = o.parse_dtype(dtype, place)
    sampler = o.build_pair(
        None, main, None, None, None, None, None, solver, steps, sigma_min, sigma_max, rho, churn
    ).solver
    assert sampler is not None
    _warn(main, guide or [])
    reference, name, labels = _reference(ref, features, classifier, resolution, place)
    sampling, by_seed = _classes(classes, labels)
    config = TuneConfig(
        main=main,
        guides=tuple(guide or ()),
        early=early,
        unconditional=unconditional,
        interval=interval,
        out=out,
        features=name,
        reference=reference,
        classes=by_seed,
        class_sampling=sampling,
        solver=sampler,
        num_images=None if num is None else parse_count(num),
        budget=None if budget is None else parse_count(budget),
        finalists=finalists,
        repeats=repeats,
        storage=storage,
        seed=first_seed,
        device=place,
        dtype=body,
        processes=1 if place.type == "cuda" else processes or len(os.sched_getaffinity(0)),
        lease_seconds=lease,
    )
    results = search(config, progress_bar)
    report = write_report([config.work], config.work / "report.html")
    if as_json:
        typer.echo(json.dumps(results, indent=1))
        return
    _show(results, config)
    console.print(f"Pair: {out}   Report: {report}", markup=False, soft_wrap=True)


def _warn(main: str, guides: list[str]) -> None:
    """Say what the models' metadata already tell against the pairs."""
    from autoguidance.tune.pair_check import check_pair

    for guide in guides:
        for text in check_pair(main, guide):
            errors.print(f"warning: {guide}: {text}", markup=False, soft_wrap=True)


def _reference(
    ref: str, features: str | None, classifier: Path | None, resolution: int | None, device: "torch.device"
) -> "tuple[Reference, str, Any]":
    """The real set, the network's name as a worker can open it, and the set's labels (None: unknown)."""
    from autoguidance.cli.measuring import open_cache, open_features, stored_reference
    from autoguidance.data import open_data
    from autoguidance.evaluate import default_classifier_path, is_statistics_file, source_references

    def reopened(name: str, file: Path | None) -> str:
        return f"classifier:{file}" if name == "classifier" and file is not None else name

    if is_statistics_file(ref):
        reference = stored_reference(ref, features, classifier, device)
        name = features or str(reference.statistics.record.get("features", ""))
        return reference, reopened(name, classifier), None
    with progress_bar("checking") as progress:
        source = open_data(ref, resolution=resolution, progress=progress)
    name = features or ("classifier" if source.num_classes >= 2 else "pixels")
    if "," in name:
        raise UserError(f"--features {name}: a search follows one distance; name one feature network")
    network = open_features(name, ref, source, classifier, device)
    with progress_bar("reference") as progress:
        (reference,) = source_references([network], source, cache=open_cache(False), progress=progress)
    return reference, reopened(name, classifier or default_classifier_path(ref, source)), source.class_idx


def _classes(wanted: str, labels: Any) -> tuple[str, tuple[int, ...]]:
    """(description, classes by seed); () draws them."""
    from autoguidance.sample import proportional_classes

    if wanted not in ("", "proportional", "random", "balanced"):
        raise UserError(f"--classes {wanted!r}: choose proportional, random or balanced")
    if wanted == "proportional" and labels is None:
        raise UserError("--classes proportional needs labelled images as --ref; choose random or balanced")
    if labels is None or wanted == "random":
        if wanted == "balanced":
            raise UserError("--classes balanced needs labelled images as --ref")
        return "random", ()
    if wanted == "balanced":
        return "balanced", tuple(range(int(labels.max()) + 1))
    return "proportional to the data, by seed", tuple(proportional_classes(labels))


def _show(results: dict[str, Any], config: "TuneConfig") -> None:
    from rich.table import Table

    from autoguidance.cli.run import show_rows

    show_rows(results)
    for method, found in results["sensitivity"].items():
        if not found["axes"] or method == "unguided":
            continue
        table = Table(title=f"{method}: how much each choice matters (others at their best)")
        for column in ("axis", "best", "within 5 % of the best", "expected over the whole range"):
            table.add_column(column, no_wrap=column != "within 5 % of the best")
        for axis, curve in found["axes"].items():
            distances = [point["fd"] for point in curve["curve"]]
            edge = "  AT THE EDGE" if axis in found["edges"] else ""
            table.add_row(
                axis, f"{curve['best']}{edge}", _range(curve["near"]), f"{min(distances):.3g} to {max(distances):.3g}"
            )
        console.print(table)
        for axis in found["edges"]:
            console.print(
                f"{method}: the best {axis} lies at the edge of its range; a better one may lie beyond it.",
                markup=False,
                soft_wrap=True,
            )
    for failure in results["failed"]:
        console.print(f"not measurable: {failure['setting']}", markup=False, soft_wrap=True)
    console.print(f"{results['num_images_sampled']} images sampled, all workers together", soft_wrap=True)


def _range(values: list[Any]) -> str:
    if not values or isinstance(values[0], str):
        return ", ".join(map(str, values))
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"
