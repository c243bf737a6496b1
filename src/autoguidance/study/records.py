"""What a run writes down about its data and its networks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoguidance.data.source import ImageSource
from autoguidance.models import build_model
from autoguidance.sample.files import read_npz
from autoguidance.storage import atomic_path, read_json, read_json_lines
from autoguidance.train.config import TrainConfig


def describe_dataset(source: ImageSource) -> dict[str, Any]:
    """The data set as results.json names it."""
    return {
        "name": source.name,
        "num_images": source.num_images,
        "resolution": source.resolution,
        "channels": source.channels,
        "class_names": list(source.class_names),
        "fingerprint": source.fingerprint,
    }


def describe_training(configs: Mapping[str, TrainConfig], out: Path) -> dict[str, Any]:
    """What was trained, how large and for how long (interruptions not counted)."""
    return {
        name: {
            "preset": config.preset,
            "num_parameters": _num_parameters(out / name),
            "num_images": config.num_images,
            "seconds": read_json_lines(out / name / "log.jsonl")[-1]["seconds"],
        }
        for name, config in configs.items()
    }


def _num_parameters(run: Path) -> int:
    network = read_json(run / "config.json")["network"]
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(network).parameters())


def keep_real(source: ImageSource, samples: Path, target: Path, seed: int) -> None:
    """Write real images of the classes that kept samples have, for the grids."""
    if target.exists():
        return
    kept = read_npz(samples)
    generator = np.random.default_rng(seed)
    chosen = []
    for wanted in kept["class_idx"].tolist():
        known = source.class_idx is not None and wanted >= 0
        pool = np.flatnonzero(source.class_idx == wanted) if known else np.arange(source.num_images)
        chosen.append(int(generator.choice(pool)))
    images = source.read(chosen).numpy()
    with atomic_path(target) as temporary, temporary.open("wb") as file:
        np.savez(file, seeds=kept["seeds"], class_idx=kept["class_idx"], images=images)
