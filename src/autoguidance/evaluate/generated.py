"""Images that somebody generated, with what is known about how: read to be measured.

`autoguidance generate` leaves a folder of PNG files named by seed, or images.npz with `seeds`, and beside them
generation.json (models, weights, solver, class selection). Other programs leave any folder, zip or array file of
images. Whatever is known goes into the protocol, the rest stays unknown; an image that cannot be read is an error,
never left out.
"""

import hashlib
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from autoguidance.data import open_data
from autoguidance.data.source import ProgressCallback
from autoguidance.errors import UserError
from autoguidance.evaluate.features import MICRO_BATCH
from autoguidance.storage import read_json

_DETAILS = ("main", "guide", "weight", "unconditional", "cfg_weight")


@dataclass(frozen=True, kw_only=True)
class GeneratedImages:
    """Images to be measured.

    Attributes:
        name: as the user named them.
        num_images: N.
        read: indices -> uint8 [n, C, H, W].
        fingerprint: SHA-256 over the pixels.
        seeds: int64 [N], the seed of each image; None if unknown.
        generation: content of generation.json; {} if there is none.
    """

    name: str
    num_images: int
    read: Callable[[Sequence[int] | np.ndarray], UInt8[Tensor, "n C H W"]]
    fingerprint: str
    seeds: Int64[np.ndarray, "N"] | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """Name of the row in results.json: how they were guided, or "images" if unknown."""
        return str(self.generation.get("method", "images"))

    @property
    def details(self) -> dict[str, Any]:
        """Entries of the row in results.json that are known."""
        return row_details(self.generation)

    @property
    def class_sampling(self) -> str:
        """How each image got its class, for the protocol; "unknown" if nobody noted it."""
        return str(self.generation.get("classes", "unknown"))

    @property
    def solver(self) -> Mapping[str, Any] | None:
        """The sampler's settings, for the protocol; None if unknown."""
        solver = self.generation.get("solver")
        return solver if isinstance(solver, dict) else None

    def batches(self, indices: np.ndarray) -> Iterator[UInt8[Tensor, "n C H W"]]:
        """The images with these indices, in this order."""
        for start in range(0, len(indices), MICRO_BATCH):
            yield self.read(indices[start : start + MICRO_BATCH])

    def seeds_text(self, indices: np.ndarray) -> str:
        """Seeds of these images as "0-499,700"; "" if unknown."""
        return "" if self.seeds is None else ranges_text(self.seeds[indices].tolist())


def row_details(generation: Mapping[str, Any]) -> dict[str, Any]:
    """What a row of results.json says of how its images were made: models, weights and interval; {} if unknown."""
    known = {name: generation[name] for name in _DETAILS if name in generation}
    return {**known, "interval": _interval(generation.get("interval"))} if known else {}


def _interval(value: Any) -> list[float | None] | None:
    """[lo, hi] of numbers; JSON has no infinity, so an open end is null."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    try:
        numbers = [float(bound) for bound in value]
    except (TypeError, ValueError):
        return None
    return [number if math.isfinite(number) else None for number in numbers]


def ranges_text(seeds: Sequence[int]) -> str:
    """Seeds as text, runs of consecutive ones joined: [0, 1, 2, 7] -> "0-2,7"."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def open_generated(name: str | Path, *, progress: ProgressCallback | None = None) -> GeneratedImages:
    """Open generated images and check all of them.

    Args:
        name: a folder that `generate` wrote, its images.npz, or any folder, zip or array file of images.
        progress: called with (images checked, images in total, {}).

    Raises:
        UserError: missing or damaged files.
    """
    path = Path(name)
    if (path / "images.npz").is_file():
        path = path / "images.npz"
    folder = path if path.is_dir() else path.parent
    generation = read_json(folder / "generation.json") if (folder / "generation.json").is_file() else {}
    if not isinstance(generation, dict):
        raise UserError(f"{folder / 'generation.json'} is not an object; restore it or remove it")
    if path.suffix.lower() == ".npz" and (arrays := _read_samples(path)) is not None:
        images, seeds = arrays

        def read(indices: Sequence[int] | np.ndarray) -> UInt8[Tensor, "n C H W"]:
            return torch.from_numpy(images[np.asarray(indices)])

        return GeneratedImages(
            name=str(name),
            num_images=len(images),
            read=read,
            fingerprint=_pixels_sha256(images),
            seeds=seeds,
            generation=generation,
        )
    source = open_data(path if path.exists() else name, progress=progress)
    # Only PNG files that `generate` named by seed, in the order in which a folder is listed.
    names = sorted(file.stem for file in path.glob("*.png")) if path.is_dir() and generation else []
    by_seed = len(names) == source.num_images and all(stem.isdecimal() for stem in names)
    seeds = np.array([int(stem) for stem in names], dtype=np.int64) if by_seed else None
    return GeneratedImages(
        name=str(name),
        num_images=source.num_images,
        read=source.read,
        fingerprint=source.fingerprint,
        seeds=seeds,
        generation=generation,
    )


def _pixels_sha256(images: UInt8[np.ndarray, "N C H W"]) -> str:
    digest = hashlib.sha256(",".join(map(str, images.shape)).encode())
    digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()


def _read_samples(path: Path) -> tuple[UInt8[np.ndarray, "N C H W"], Int64[np.ndarray, "N"]] | None:
    """Images and seeds of an npz file of samples; None for another kind of array file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if not {"images", "seeds"} <= set(arrays):
                return None
            images, seeds = arrays["images"], arrays["seeds"]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, MemoryError) as error:
        raise UserError(f"{path} is not a readable npz file ({error}); make it again") from None
    whole = (
        images.dtype == np.uint8 and images.ndim == 4 and seeds.shape == images.shape[:1] and seeds.dtype.kind in "iu"
    )
    if not whole or images.shape[1] not in (1, 3):
        raise UserError(f"{path}: images are not uint8 [N, 1 or 3, H, W] with one seed each; make it again")
    return images, seeds.astype(np.int64)
