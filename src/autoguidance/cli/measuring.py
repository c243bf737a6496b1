"""What `evaluate` and `stats` do behind their options: open the networks, make the reference, name and measure images."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoguidance.cli.common import ProgressCallback, errors, progress_bar
from autoguidance.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from autoguidance.data import ImageSource
    from autoguidance.evaluate import FeatureCache, FeatureNetwork, GeneratedImages, Images, Processes, Reference
    from autoguidance.zoo import Pair

_VAE_WEIGHTS = "diffusion_pytorch_model.safetensors"


def open_cache(no_cache: bool) -> "FeatureCache":
    """Where features are kept: feature-sets/ in the cache folder ($AUTOGUIDANCE_CACHE); or nowhere."""
    from autoguidance.evaluate import FeatureCache
    from autoguidance.storage import cache_folder

    return FeatureCache(None if no_cache else cache_folder() / "feature-sets")


@contextmanager
def first_progress(description: str, processes: "Processes | None" = None) -> "Iterator[ProgressCallback | None]":
    """A progress bar of the first process; the others show nothing."""
    if processes is not None and processes.rank:
        yield None
        return
    with progress_bar(description) as progress:
        yield progress


def open_features(
    name: str,
    data: str,
    source: "ImageSource",
    classifier: Path | None,
    device: "torch.device",
    processes: "Processes | None" = None,
) -> "FeatureNetwork":
    """The feature network of that name; a classifier that is trained here is announced with its accuracy and file."""
    from autoguidance.evaluate import Processes, default_classifier_path, open_network

    processes = processes or Processes()
    path = classifier if classifier is not None else default_classifier_path(data, source)
    trained = processes.from_first(lambda: name == "classifier" and not path.exists())
    if trained and source.num_classes >= 2 and processes.rank == 0:
        errors.print(f"training a classifier on {source.name}, once, for {path}", markup=False, soft_wrap=True)

    def opened() -> "FeatureNetwork":
        with first_progress("features", processes) as progress:
            return open_network(
                name,
                channels=source.channels,
                resolution=source.resolution,
                classifier=path,
                train_on=source,
                device=device,
                progress=progress,
            )

    if trained and processes.size > 1:  # one trains, and then all read the file
        processes.from_first(lambda: opened() and None)
    network = processes.together(opened)
    info = getattr(network, "info", None)
    if trained and info is not None and processes.rank == 0:
        errors.print(
            f"{path}: held-out accuracy {info.held_out_accuracy:.3f} on {info.num_held_out} images "
            f"(commonest class {info.chance:.3f})",
            markup=False,
            soft_wrap=True,
        )
    return network


def split_names(text: str) -> list[str]:
    """Names separated by commas. Raises UserError where one is empty."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UserError(f"{text!r}: there is an empty name; separate names by single commas")
    return names


def stored_reference(file: str, features: str | None, classifier: Path | None, device: "torch.device") -> "Reference":
    """The reference in a file of `stats`."""
    from autoguidance.evaluate import Reference, open_network, read_statistics_file

    statistics, kept = read_statistics_file(file, with_features=True)
    stored = str(statistics.record.get("features", ""))
    name = features or stored
    # Statistics that name their network by its hash are compared with the network itself, by `Reference`.
    if not name or ("features_sha256" not in statistics.record and name.partition(":")[0] != stored.partition(":")[0]):
        raise UserError(f"{file} holds {stored or 'unknown'} features, not {name}; leave out --features or give DATA")
    network = open_network(
        name,
        channels=int(statistics.record.get("channels", 1)),
        resolution=int(statistics.record.get("resolution", 1)),
        classifier=classifier,
        device=device,
    )
    key = {"statistics": statistics.sha256, "holds": "features"} if kept is not None else None
    return Reference(network=network, statistics=statistics, features=kept, key=key)


def open_references(
    ref: str,
    features: str | None,
    classifier: Path | None,
    resolution: int | None,
    *,
    keep: int,
    device: "torch.device",
    cache: "FeatureCache",
    processes: "Processes",
) -> "list[Reference]":
    """The real set as each feature network sees it."""
    from autoguidance.data import open_data
    from autoguidance.evaluate import is_statistics_file, source_references

    if is_statistics_file(ref):
        return [stored_reference(ref, features, classifier, device)]
    with first_progress("checking", processes) as progress:
        source = open_data(ref, resolution=resolution, progress=progress)
    names = split_names(features) if features else ["classifier" if source.num_classes >= 2 else "pixels"]
    networks = [open_features(name, ref, source, classifier, device, processes) for name in names]
    with first_progress("reference", processes) as progress:
        return source_references(networks, source, keep=keep, cache=cache, processes=processes, progress=progress)


def given_images(given: "GeneratedImages", num: int | None, repeats: int) -> "tuple[list[Images], tuple[str, ...]]":
    """Images that lie on the disk, as one set per repeat, and the seeds of each ((): unknown)."""
    from autoguidance.evaluate import Images, split_images

    sets = split_images(given.num_images, num, repeats, in_order=given.seeds is not None)

    def images(indices: Any) -> Images:
        chosen = hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()
        return Images(
            num=len(indices),
            batches=lambda part: given.batches(indices[part.start : part.stop]),
            key={"source_sha256": given.fingerprint, "indices_sha256": chosen},
            what=given.name,
        )

    seeds = () if given.seeds is None else tuple(given.seeds_text(indices) for indices in sets)
    return [images(indices) for indices in sets], seeds


def model_names(spec: "Pair") -> dict[str, str]:
    """The models that a pair really uses, by role: a name alone is not enough, see `content_key`."""
    names = {
        "main": spec.main,
        "guide": spec.guide if spec.weight != 1 else None,
        "unconditional": spec.unconditional if spec.cfg_weight != 1 else None,
    }
    return {role: name for role, name in names.items() if name is not None}


def _decoder_key(config: dict[str, Any]) -> dict[str, Any]:
    """What turns latents into pixels: of an autoencoder in a local folder also its weights' hash."""
    from autoguidance.data.vae import FOLDER_VARIABLE
    from autoguidance.storage import sha256_file

    if config["name"] != "vae":
        return config
    weights = Path(os.environ.get(FOLDER_VARIABLE) or config["vae"]) / _VAE_WEIGHTS
    return {**config, "weights_sha256": sha256_file(weights) if weights.is_file() else None}


def generated_images(
    spec: "Pair",
    *,
    num: int,
    repeats: int,
    first_seed: int,
    classes: str,
    batch: int,
    device: "torch.device",
    dtype: str | None,
    processes: "Processes",
) -> "tuple[list[Images], tuple[str, ...], str]":
    """What a model or pair generates, as one set per repeat; the seeds of each; and how classes are chosen.

    The models are loaded here, so that what does not fit is refused before anything is computed.
    """
    from autoguidance.cli.options import parse_dtype
    from autoguidance.evaluate import Images
    from autoguidance.sample import ClassSelection, image_encoder, micro_batch_size, sample_batches
    from autoguidance.zoo.identity import content_key

    body = parse_dtype(dtype, device)
    with first_progress("models", processes) as progress:
        denoiser = spec.denoiser(device=device, dtype=body, progress=progress)
    selection = ClassSelection(classes, denoiser.num_classes)
    encoder = image_encoder(denoiser)
    key = {
        "models": {role: content_key(name) for role, name in model_names(spec).items()},
        "weight": spec.weight,
        "cfg_weight": spec.cfg_weight,
        "interval": None if spec.interval is None else [str(end) for end in spec.interval],
        "solver": None if spec.solver is None else spec.solver.describe(),
        "classes": selection.name,
        "decoder": _decoder_key(encoder.config),
        "sampled_on": device.type,
        "dtype": dtype,
        "sampled_at_a_time": micro_batch_size(denoiser),
    }

    def images(start: int) -> Images:
        def batches(part: range) -> "Iterator[Tensor]":
            seeds = range(start + part.start, start + part.stop)
            for samples in sample_batches(denoiser, seeds, classes=selection, solver=spec.solver, batch_size=batch):
                yield encoder.decode(samples.latents)

        return Images(num=num, batches=batches, key={**key, "seeds": [start, num]}, what=f"images of {spec.method}")

    starts = range(first_seed, first_seed + num * repeats, num)
    return [images(start) for start in starts], tuple(f"{s}-{s + num - 1}" for s in starts), selection.name
