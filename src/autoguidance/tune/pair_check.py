"""What two models' metadata say about them as a pair, before anything is computed.

Problem: autoguidance helps only where the guide is a bad version of the main model itself, made worse by the same kind
of degradation: less capacity, less training. Many pairs that cannot work can be told from the model files and run
folders alone, in milliseconds. What the paper found to be of no help, each by measurement: a guide whose degradation
is of another kind than the main model's (dropout against input noise), a guide trained on less data, and a copy in
lower precision.

What is known of a model: its file holds the network's options (size, dropout), encoder, class names, images seen, EMA
width, and as provenance the hashes of training configuration and data. Its run folder, where it is there, also holds
the rest of the training configuration (augmentation, noise levels, precision) and the number of training images.

Reference: Karras et al. 2024, arXiv 2406.02507, Sections 4 and 5.2.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autoguidance.errors import UserError
from autoguidance.guidance.guided import require_compatible
from autoguidance.models import ModelInfo, Precond, build_model, read_model_info
from autoguidance.storage import sha256_file
from autoguidance.train.folder import read_run
from autoguidance.zoo import identify, is_remote, list_snapshots, parse_model_name
from autoguidance.zoo.names import local_file
from autoguidance.zoo.runs import open_snapshot


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelFacts:
    """What is known of a model without its weights.

    Attributes:
        name: as the user named it.
        info: metadata of its file, or of a snapshot of its run, with the wanted width.
        outline: the network without weights (on the meta device), with encoder and class names.
        run: content of its run folder's config.json; {} where there is none.
        path: its file; None where it is reconstructed from several.
    """

    name: str
    info: ModelInfo
    outline: Precond
    run: Mapping[str, Any]
    path: Path | None

    @property
    def num_parameters(self) -> int:
        """Weights of the network."""
        return sum(parameter.numel() for parameter in self.outline.parameters())

    @property
    def fingerprint(self) -> str | None:
        """Of the training data; None where the file does not say."""
        return self.info.provenance.get("data_fingerprint")

    @property
    def training(self) -> Mapping[str, Any]:
        """The training configuration; {} where the run folder is not at hand."""
        return self.run.get("train", {})

    @property
    def num_data_images(self) -> int | None:
        """Images in the training set; None where unknown."""
        return self.run.get("data", {}).get("num_images")


def read_facts(name: str | Path) -> ModelFacts:
    """Read a model's metadata; a published model is fetched if it is not in the cache.

    Raises: UserError as `load` does.
    """
    path = local_file(str(name)) if is_remote(name) else parse_model_name(name).path
    if path.is_dir():
        chosen = identify(name)
        stored = [s for s in list_snapshots(path) if s.num_images == chosen["num_images"]]
        if not stored:
            raise UserError(f"{path} has no snapshot at {chosen['num_images']} images; name a stored time")
        nearest = min(stored, key=lambda snapshot: abs(snapshot.ema_std - chosen["ema_std"]))
        info, folder = open_snapshot(nearest.path)[0], path
        info = ModelInfo(**{**vars(info), "ema_std": chosen["ema_std"]})
        file = nearest.path if nearest.ema_std == chosen["ema_std"] else None
    else:
        info, file, folder = read_model_info(path), path, path.absolute().parent.parent
    run: Mapping[str, Any] = {}
    with suppress(UserError):  # a bare model file, or published snapshots, have none
        run = read_run(folder)[1]
    if not path.is_dir() and run.get("config_sha256") != info.provenance.get("config_sha256"):
        run = {}  # a run that the file happens to lie in
    with torch.device("meta"):
        outline = build_model(dict(info.config))
    outline.encoder = None if info.encoder is None else dict(info.encoder)
    outline.class_names = info.class_names
    return ModelFacts(name=str(name), info=info, outline=outline, run=run, path=file)


def check_pair(main: str | Path, guide: str | Path) -> list[str]:
    """What speaks against a pair, one line each, the gravest first; [] where nothing does.

    Args:
        main, guide: names of models.

    Raises: UserError where a model is not there or its file is damaged.
    """
    return compare_facts(read_facts(main), read_facts(guide))


def compare_facts(main: ModelFacts, guide: ModelFacts) -> list[str]:
    """`check_pair` of metadata that has been read."""
    try:
        require_compatible(main.outline, guide.outline, same_classes=guide.outline.num_classes != 0)
    except UserError as error:
        return [str(error)]
    if _same_weights(main, guide):
        return ["main and guide are the same weights: their difference is zero, or rounding; choose a worse guide"]
    return [*_other_task(main, guide), *_better_guide(main, guide), *_other_degradation(main, guide)]


def _same_weights(main: ModelFacts, guide: ModelFacts) -> bool:
    if main.path is not None and guide.path is not None:
        if main.path.resolve() == guide.path.resolve():
            return True
        if main.path.stat().st_size == guide.path.stat().st_size and sha256_file(main.path) == sha256_file(guide.path):
            return True
    # The same training, at the same time and width: also a copy stored in another precision.
    return _same_training(main, guide) and (main.info.num_images, main.info.ema_std) == (
        guide.info.num_images,
        guide.info.ema_std,
    )


def _same_training(main: ModelFacts, guide: ModelFacts) -> bool:
    keys = ("config_sha256", "data_fingerprint")
    mine, theirs = ([facts.info.provenance.get(key) for key in keys] for facts in (main, guide))
    return None not in mine and mine == theirs


def _other_task(main: ModelFacts, guide: ModelFacts) -> list[str]:
    found = []
    if None not in (main.fingerprint, guide.fingerprint) and main.fingerprint != guide.fingerprint:
        mine, theirs = main.num_data_images, guide.num_data_images
        counts = fewer = ""
        if mine is not None and theirs is not None:
            counts = f" ({mine:,} and {theirs:,} images)"
            fewer = "; a guide trained on less data was of no help in the paper" if theirs < mine else ""
        found.append(
            f"main and guide were trained on different data{counts}: the guide's errors are then errors of another task{fewer}; train the "
            "guide on the main model's data"
        )
    if main.outline.num_classes and not guide.outline.num_classes:
        found.append(
            "the guide is unconditional: that is classifier-free guidance, which trades variety for closeness to the class; name it as "
            "--unconditional for that"
        )
    return found


def _better_guide(main: ModelFacts, guide: ModelFacts) -> list[str]:
    later = guide.info.num_images > main.info.num_images
    seen = f"{guide.info.num_images:,} images against {main.info.num_images:,}"
    if _same_training(main, guide):
        return [f"the guide is a later snapshot of the main model's own run ({seen}): swap them?"] if later else []
    found = []
    if guide.num_parameters > main.num_parameters:
        found.append(
            f"the guide is the larger network ({guide.num_parameters:,} weights against {main.num_parameters:,}): a guide should be the "
            "worse model; swap them?"
        )
    if later and guide.outline.num_classes:
        found.append(f"the guide was trained for longer ({seen}): a guide should be the worse model; swap them?")
    return found


_NETWORK = {"dropout": "dropout"}
_TRAINING = {
    "mirror": "mirrored training images",
    "label_dropout": "label dropout",
    "p_mean": "training noise levels (p_mean)",
    "p_std": "training noise levels (p_std)",
    "dtype": "precision in training",
}


def _other_degradation(main: ModelFacts, guide: ModelFacts) -> list[str]:
    found = []
    for key, what in _NETWORK.items():
        found.append((what, main.info.config.get(key, 0.0), guide.info.config.get(key, 0.0)))
    for key, what in _TRAINING.items():
        if key in main.training and key in guide.training:
            found.append((what, main.training[key], guide.training[key]))
    different = [f"{what} {mine} against {theirs}" for what, mine, theirs in found if mine != theirs]
    if not different:
        return []
    return [
        f"main and guide were degraded differently ({', '.join(different)}): where errors are of different kinds guidance was of no "
        "help in the paper; train the guide with the main model's options"
    ]
