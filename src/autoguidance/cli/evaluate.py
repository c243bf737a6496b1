"""`autoguidance evaluate`: how far generated images are from a real set."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoguidance.cli import options as o
from autoguidance.cli.common import app, console, errors, progress_bar
from autoguidance.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from autoguidance.data import ImageSource
    from autoguidance.evaluate import FeatureNetwork, GeneratedImages, Measurement, Protocol, Reference
    from autoguidance.zoo import Pair


@app.command(
    "evaluate",
    epilog="Example: autoguidance evaluate out/digits --ref digits --features classifier,pixels --out result.json. "
    "In place of IMAGES a model or pair may be given as for generate: --pair runs/digits/pair.json --num 1000.",
)
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
        typer.Option(help="pixels, classifier, classifier:FILE; several with commas.  [default: the reference's]"),
    ] = None,
    classifier: Annotated[
        Path | None,
        typer.Option(help="Where the classifier is stored; trained on --ref if absent.  [default: beside --ref]"),
    ] = None,
    resolution: Annotated[int | None, typer.Option(help="Centre-crop and resize the real images to this size.")] = None,
    num: Annotated[
        int | None, typer.Option(metavar="N", help="Images per repeat.  [default: all there are, or 1000]")
    ] = None,
    repeats: Annotated[int, typer.Option(metavar="N", help="Disjoint sets of images to measure.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Write the result here (JSON).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    pair: o.PairOption = None,
    main: o.MainOption = None,
    guide: o.GuideOption = None,
    weight: o.WeightOption = None,
    unconditional: o.UnconditionalOption = None,
    cfg_weight: o.CfgWeightOption = None,
    interval: o.IntervalOption = None,
    classes: Annotated[str, typer.Option(help="random, balanced, or a list such as 3,5-7.")] = "random",
    first_seed: Annotated[int, typer.Option(metavar="N", help="Seeds are N, N+1, ...")] = 0,
    solver: o.SolverOption = None,
    steps: o.StepsOption = None,
    sigma_min: o.SigmaMinOption = None,
    sigma_max: o.SigmaMaxOption = None,
    rho: o.RhoOption = None,
    churn: o.ChurnOption = None,
    batch: Annotated[int, typer.Option(help="Images generated at a time.")] = 64,
    device: o.DeviceOption = "auto",
    dtype: o.DtypeOption = None,
) -> None:
    """Measure generated images, or a model or pair, against real images, and record by what protocol."""
    from autoguidance.storage import make_folder, write_json
    from autoguidance.train.distributed import choose_device

    if (images is not None) == (pair is not None or main is not None):
        raise UserError("give either IMAGES or what to generate (--pair, or --main and so on)")
    if repeats < 1 or (num is not None and num < 2):
        raise UserError(f"--repeats {repeats}, --num {num}: give at least 1 repeat of 2 images")
    if out is not None:
        make_folder(out.parent)
    place = choose_device(device)
    spec = None
    if images is None:
        spec = o.build_pair(
            pair,
            main,
            guide,
            weight,
            unconditional,
            cfg_weight,
            interval,
            solver,
            steps,
            sigma_min,
            sigma_max,
            rho,
            churn,
        )
    given = _open_given(images) if images is not None else None  # before the reference, which may take long
    references = _references(ref, features, classifier, resolution, place)
    if spec is None:
        assert given is not None
        measurement, protocol = _measure_given(given, references, num, repeats)
    else:
        denoiser_dtype = o.parse_dtype(dtype, place)
        measurement, protocol = _measure_pair(
            spec, references, num or 1000, repeats, first_seed, classes, batch, place, denoiser_dtype
        )
    content = {"protocol": protocol.to_dict(), "rows": [measurement.row]}
    if out is not None:
        write_json(out, content)
    if as_json:
        typer.echo(json.dumps(content, indent=1))
    else:
        _print(measurement, protocol, out)


def open_features(
    name: str, data: str, source: "ImageSource", classifier: Path | None, device: "torch.device"
) -> "FeatureNetwork":
    """The feature network of that name; a classifier that is trained here is announced with its accuracy and file."""
    from autoguidance.evaluate import default_classifier_path, open_network

    path = classifier if classifier is not None else default_classifier_path(data, source)
    trained = name == "classifier" and not path.exists()
    if trained and source.num_classes >= 2:
        errors.print(f"training a classifier on {source.name}, once, for {path}", markup=False, soft_wrap=True)
    with progress_bar("classifier") as progress:
        network = open_network(
            name,
            channels=source.channels,
            resolution=source.resolution,
            classifier=path,
            train_on=source,
            device=device,
            progress=progress,
        )
    info = getattr(network, "info", None)
    if trained and info is not None:
        errors.print(
            f"{path}: held-out accuracy {info.held_out_accuracy:.3f} on {info.num_held_out} images "
            f"(commonest class {info.chance:.3f})",
            markup=False,
            soft_wrap=True,
        )
    return network


def _references(
    ref: str, features: str | None, classifier: Path | None, resolution: int | None, device: "torch.device"
) -> "list[Reference]":
    from autoguidance.data import open_data
    from autoguidance.evaluate import Reference, Statistics, is_statistics_file, open_network, source_statistics

    if is_statistics_file(ref):
        statistics = Statistics.load(ref)
        stored = str(statistics.record.get("features", ""))
        name = features or stored
        if name.partition(":")[0] != stored:
            raise UserError(
                f"{ref} holds {stored or 'unknown'} features, not {name}; leave out --features or give DATA"
            )
        network = open_network(
            name,
            channels=int(statistics.record.get("channels", 1)),
            resolution=int(statistics.record.get("resolution", 1)),
            classifier=classifier,
            device=device,
        )
        return [Reference(network=network, statistics=statistics)]
    with progress_bar("checking") as progress:
        source = open_data(ref, resolution=resolution, progress=progress)
    names = (features or ("classifier" if source.num_classes >= 2 else "pixels")).split(",")
    networks = [open_features(name.strip(), ref, source, classifier, device) for name in names]
    with progress_bar("reference") as progress:
        found = source_statistics(networks, source, progress=progress)
    return [Reference(network=network, statistics=s) for network, s in zip(networks, found, strict=True)]


def _open_given(name: str) -> "GeneratedImages":
    from autoguidance.evaluate import open_generated

    with progress_bar("checking") as progress:
        return open_generated(name, progress=progress)


def _measure_given(
    given: "GeneratedImages", references: "list[Reference]", num: int | None, repeats: int
) -> "tuple[Measurement, Protocol]":
    from autoguidance.evaluate import evaluate_images, protocol_of, split_images

    sets = split_images(given.num_images, num, repeats, in_order=given.seeds is not None)
    with progress_bar("measuring") as progress:
        measurement = evaluate_images(
            (given.batches(indices) for indices in sets),
            references,
            method=given.method,
            details=given.details,
            total_images=sum(map(len, sets)),
            progress=progress,
        )
    seeds = () if given.seeds is None else tuple(given.seeds_text(indices) for indices in sets)
    sampling: dict[str, Any] = {"class_sampling": given.class_sampling, "solver": given.solver, "seeds": seeds}
    return measurement, protocol_of(measurement, references, **sampling)


def _measure_pair(
    spec: "Pair",
    references: "list[Reference]",
    num: int,
    repeats: int,
    first_seed: int,
    classes: str,
    batch: int,
    device: "torch.device",
    dtype: "torch.dtype | None",
) -> "tuple[Measurement, Protocol]":
    from autoguidance.evaluate import evaluate_images, protocol_of, row_details
    from autoguidance.sample import ClassSelection, image_encoder, sample_batches

    denoiser = spec.denoiser(device=device, dtype=dtype)
    selection = ClassSelection(classes, denoiser.num_classes)
    encoder = image_encoder(denoiser)
    starts = range(first_seed, first_seed + num * repeats, num)

    def generated(start: int) -> "Iterator[Tensor]":
        seeds = range(start, start + num)
        for samples in sample_batches(denoiser, seeds, classes=selection, solver=spec.solver, batch_size=batch):
            yield encoder.decode(samples.latents)

    with progress_bar("generating") as progress:
        measurement = evaluate_images(
            map(generated, starts),
            references,
            method=spec.method,
            details=row_details(vars(spec)),
            total_images=num * repeats,
            progress=progress,
        )
    protocol = protocol_of(
        measurement,
        references,
        class_sampling=selection.name,
        solver=None if spec.solver is None else spec.solver.describe(),
        seeds=tuple(f"{start}-{start + num - 1}" for start in starts),
    )
    return measurement, protocol


def _print(measurement: "Measurement", protocol: "Protocol", out: Path | None) -> None:
    for name, figures in measurement.row["features"].items():
        spread = "" if figures["fd_std"] is None else f" ± {figures['fd_std']:.4g} over {protocol.repeats} repeats"
        console.print(f"Fréchet distance ({name}): {figures['fd']:.5g}{spread}", markup=False, soft_wrap=True)
    console.print(
        f"{protocol.num_images} images a repeat, classes {protocol.class_sampling}, against {protocol.num_real} of "
        f"{protocol.reference}",
        markup=False,
        soft_wrap=True,
    )
    for note in protocol.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    if out is not None:
        console.print(f"result: {out}", markup=False, soft_wrap=True)
