"""What `data inspect` shows: a set's figures where it can be used, and every problem where it cannot.

The mean and standard deviation are those of the encoded data z (pixels in [-1, 1], padded as for the default network; of
latents, what training draws). Training assumes sigma_data = 0.5; a set far from that (black slices with a few bright
spots, say) still trains, but the network's preconditioning fits it less well.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoguidance.data.encoders import default_encoder, make_encoder
from autoguidance.data.latents import LatentSource, TrainingSource
from autoguidance.data.open import open_data
from autoguidance.data.source import DataError, ProgressCallback, Survey
from autoguidance.data.vae import VaeEncoder

NUM_MEASURED = 10_000  # images whose mean and deviation are taken; enough for three digits
_BATCH = 256


def inspect_data(
    name: str | Path, *, resolution: int | None = None, progress: ProgressCallback | None = None
) -> tuple[dict[str, Any], DataError | None]:
    """Open a set and describe it.

    Args:
        name, resolution, progress: see `open_data`.

    Returns:
        A JSON-like report, and the error where files cannot be used (report["problems"] then holds all, and the
        figures that need a usable set are absent).

    Raises:
        UserError: the set as a whole cannot be read.
    """
    try:
        source = open_data(name, resolution=resolution, progress=progress, latents=True)
    except DataError as error:
        return _describe(error.survey), error
    report = _describe(source.survey)
    report |= {
        "num_images": source.num_images,
        "resolution": source.resolution,
        "channels": source.channels,
        "num_classes": source.num_classes,
        "fingerprint": source.fingerprint,
        "encoded": _encoded_figures(source),
    }
    if isinstance(source, LatentSource):
        report["latents"] = {
            "channels": source.latent_channels,
            "resolution": source.latent_resolution,
            "vae": source.encoder["vae"],
        }
    return report, None


def _describe(survey: Survey) -> dict[str, Any]:
    return {
        "name": survey.name,
        "kind": survey.kind,
        "num_files": survey.num_files,
        "formats": dict(survey.formats.most_common()),
        "modes": dict(survey.modes.most_common()),
        "classes": survey.class_counts,
        "ignored": dict(survey.ignored.most_common()),
        "notes": survey.notes,
        "problems": [{"where": problem.where, "what": problem.what} for problem in survey.problems],
    }


def _encoded_figures(source: TrainingSource) -> dict[str, Any]:
    num_measured = min(source.num_images, NUM_MEASURED)
    chosen = np.linspace(0, source.num_images - 1, num_measured).round().astype(np.int64)
    total, squares, count = 0.0, 0.0, 0
    encoder = make_encoder(source.encoder) if isinstance(source, LatentSource) else default_encoder(source)
    for start in range(0, num_measured, _BATCH):
        stored = source.read(chosen[start : start + _BATCH])
        if isinstance(encoder, VaeEncoder):
            noise = torch.randn(
                len(stored), encoder.img_channels, *stored.shape[2:], generator=torch.Generator().manual_seed(start)
            )
            latents = encoder.draw(stored, noise).double()
        else:
            latents = encoder.encode(stored).double()
        total += latents.sum().item()
        squares += latents.square().sum().item()
        count += latents.numel()
    mean = total / count
    return {
        "encoder": encoder.config,
        "num_images": num_measured,
        "mean": mean,
        "std": max(squares / count - mean**2, 0.0) ** 0.5,
    }
