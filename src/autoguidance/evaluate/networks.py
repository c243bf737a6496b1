"""From the name of a feature network to the network: what is stored is loaded, what can be trained here is trained,
nothing is downloaded unless its address is given.

    pixels                     block averages of the image
    classifier                 the classifier stored at a given path; if there is none yet, trained on the labelled
                               reference and stored there
    classifier:FILE            a stored classifier
    inception                  the FID network, weights from the cache
    inception:FILE             the same, weights from a file (.pth or .safetensors)
    inception:hf://O/R/FILE    the same, weights from the Hugging Face hub
    dinov2, dinov2:s|b|l       DINOv2 (dinov2 is dinov2:l) from the Hugging Face cache
    dinov2:FOLDER              DINOv2 from a folder with config.json and model.safetensors
    torchscript:FILE           any network stored with its code; runs that code
    callable:MODULE:NAME       a Python function of the user's; imports its module

The first three take images of the size that they were made for, the others of any size (the last two: as they can).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from autoguidance.data.source import ImageSource
from autoguidance.errors import UserError
from autoguidance.evaluate.callables import load_callable
from autoguidance.evaluate.classifier import load_classifier
from autoguidance.evaluate.dinov2 import load_dinov2
from autoguidance.evaluate.features import FeatureNetwork, PixelFeatures
from autoguidance.evaluate.inception import load_inception
from autoguidance.evaluate.torchscript import load_torchscript
from autoguidance.storage import cache_folder

ProgressCallback = Callable[[int, int, dict[str, Any]], None]

FEATURE_NETWORKS = (
    "pixels",
    "classifier",
    "classifier:FILE",
    "inception",
    "inception:FILE",
    "dinov2",
    "dinov2:s|b|l|FOLDER",
    "torchscript:FILE",
    "callable:MODULE:NAME",
)


def default_classifier_path(name: str | Path, source: ImageSource) -> Path:
    """Where the classifier of a data set is kept: beside it, or in the cache folder where the set is no local path.

    The first digits of the fingerprint are part of the name, so a set that changed gets a classifier of its own.
    """
    path, mark = Path(name), f"classifier-{source.fingerprint[:12]}.safetensors"
    if path.exists():
        return path.resolve().parent / f"{path.stem}.{mark}"
    return cache_folder() / "classifiers" / f"{source.name.split('/')[-1]}.{mark}"


def open_network(
    name: str,
    *,
    channels: int,
    resolution: int,
    classifier: Path | str | None = None,
    train_on: ImageSource | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: ProgressCallback | None = None,
) -> FeatureNetwork:
    """The feature network of that name.

    Args:
        name: as the module lists them.
        channels, resolution: of the reference images. Only `pixels` needs both; `torchscript` and `callable` are tried
            with images of this resolution.
        classifier: where the classifier is stored or, if it is not there yet, goes; None: there is none.
        train_on: labelled images to train it on where it is not there; None: never train.
        seed: of the training.
        device: where it runs.
        progress: of the training.

    Raises:
        UserError: unknown name; weights that are not there, and how to get them; no stored classifier and nothing to
            train one on; a damaged file; a function that is no feature network.
    """
    kind, _, file = name.partition(":")
    if name == "pixels":
        return PixelFeatures(channels=channels, resolution=resolution)
    if kind == "classifier" and file:
        return load_classifier(file, device)
    if kind == "inception":
        return load_inception(file or None, device)
    if kind == "dinov2":
        return load_dinov2(file or "l", device)
    if kind == "torchscript" and file:
        return load_torchscript(file, resolution=resolution, device=device)
    if kind == "callable" and file:
        return load_callable(file, resolution=resolution, device=device)
    if name != "classifier":
        raise UserError(f"unknown feature network {name!r}; there are {', '.join(FEATURE_NETWORKS)}")
    if classifier is not None and Path(classifier).exists():
        return load_classifier(classifier, device)
    if classifier is None or train_on is None:
        where = f"{classifier} does not exist" if classifier is not None else "no classifier is given"
        raise UserError(
            f"features 'classifier': {where}; give classifier:FILE, or labelled images to train one on, or use pixels"
        )
    from autoguidance.evaluate.classifier_training import train_classifier

    return train_classifier(train_on, classifier, seed=seed, device=device, progress=progress)
