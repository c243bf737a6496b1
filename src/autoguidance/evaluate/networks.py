"""From the name of a feature network to the network: what is stored is loaded, what can be trained here is trained,
nothing is downloaded.

    pixels            block averages of the image
    classifier        the classifier stored at a given path; if there is none yet, trained on the labelled
                      reference and stored there
    classifier:FILE   a stored classifier
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from autoguidance.data.source import ImageSource
from autoguidance.errors import UserError
from autoguidance.evaluate.classifier import load_classifier
from autoguidance.evaluate.features import FeatureNetwork, PixelFeatures

ProgressCallback = Callable[[int, int, dict[str, Any]], None]

FEATURE_NETWORKS = ("pixels", "classifier", "classifier:FILE")


def default_classifier_path(name: str | Path, source: ImageSource) -> Path:
    """Where the classifier of a data set is kept: beside it, or in the working folder where the set is no local path.

    The first digits of the fingerprint are part of the name, so a set that changed gets a classifier of its own.
    """
    path = Path(name)
    file = (
        f"{path.stem if path.exists() else source.name.split('/')[-1]}.classifier-{source.fingerprint[:12]}.safetensors"
    )
    return path.resolve().parent / file if path.exists() else Path(file)


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
        name: "pixels", "classifier" or "classifier:FILE".
        channels, resolution: of the reference images; only `pixels` needs them.
        classifier: where the classifier is stored or, if it is not there yet, goes; None: there is none.
        train_on: labelled images to train it on where it is not there; None: never train.
        seed: of the training.
        device: where it runs.
        progress: of the training.

    Raises:
        UserError: unknown name; no stored classifier and nothing to train one on; a damaged file.
    """
    kind, _, file = name.partition(":")
    if name == "pixels":
        return PixelFeatures(channels=channels, resolution=resolution)
    if kind == "classifier" and file:
        return load_classifier(file, device)
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
