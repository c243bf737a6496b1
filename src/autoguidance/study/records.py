"""What a run writes down: settings as results.json names them, rows with spread, the protocol, the pair."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoguidance.data.source import ImageSource
from autoguidance.evaluate import Protocol, Reference
from autoguidance.evaluate.classifier import ClassifierFeatures
from autoguidance.models import build_model
from autoguidance.sample import Solver
from autoguidance.sample.files import read_npz
from autoguidance.storage import atomic_path, read_json, read_json_lines
from autoguidance.study.plan import MeasurePlan
from autoguidance.train.config import TrainConfig
from autoguidance.tune import Measured, Task
from autoguidance.zoo import Pair


def describe_pair(pair: Pair, out: Path) -> dict[str, Any]:
    """A pair as results.json names it: models relative to the run's folder, one guide, one weight."""
    prefix = f"{out}/"
    guide = pair.guide or pair.unconditional
    return {
        "method": pair.method,
        "main": pair.main.removeprefix(prefix),
        "guide": None if guide is None else guide.removeprefix(prefix),
        "weight": pair.weight if pair.guide else pair.cfg_weight,
        "interval": None if pair.interval is None else list(pair.interval),
    }


def describe_task(task: Task, out: Path) -> dict[str, Any]:
    """A measurement before its result is known."""
    return {**describe_pair(task.pair, out), "first_seed": task.first_seed, "num_images": task.num_images}


def record_key(record: Mapping[str, Any]) -> str:
    """Identifies a measurement: the setting and the seeds."""
    names = ("method", "main", "guide", "weight", "interval", "first_seed", "num_images")
    return json.dumps([record[name] for name in names])


def summary(measured: Sequence[Measured]) -> dict[str, Any]:
    """Mean and spread (n - 1) over repeats, and the cost per image."""
    distances = [m.fd for m in measured]
    return {
        "fd": float(np.mean(distances)),
        "fd_std": float(np.std(distances, ddof=1)) if len(distances) > 1 else None,
        "fd_repeats": distances,
        "evaluations_main": measured[0].evaluations_main,
        "evaluations_guide": measured[0].evaluations_guide,
        "seconds_per_image": float(np.mean([m.seconds_per_image for m in measured])),
    }


def run_protocol(
    source: ImageSource, reference: Reference, plan: MeasurePlan, solver: Solver, first_seed: int
) -> Protocol:
    """How the final comparison was measured."""
    network, count = reference.network, plan.num_images
    notes = ["each method's setting was chosen on other seeds than those reported"]
    if isinstance(network, ClassifierFeatures):
        notes.append(
            "features of a classifier trained on the same data "
            f"(held-out accuracy {network.info.held_out_accuracy:.1%}); distances compare within this protocol only"
        )
    if count <= network.num_features:
        notes.append(
            f"{count} images for {network.num_features} features: singular covariance, strongly biased distance"
        )
    starts = range(first_seed, first_seed + plan.repeats * count, count)
    return Protocol(
        features=network.name,
        features_sha256=network.sha256,
        num_images=count,
        reference=source.name,
        reference_sha256=source.fingerprint,
        num_real=reference.statistics.num,
        class_sampling="proportional to the data, by seed" if source.num_classes else "none",
        seeds=tuple(f"{start}-{start + count - 1}" for start in starts),
        repeats=plan.repeats,
        solver=solver.describe(),
        notes=tuple(notes),
    )


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
