"""Samples on disk: a folder of PNG files, or one npz file; either can be continued after an interruption.

`generation.json` in the folder says how its images were made. The same settings continue (an image that is there is
not made again); other settings are refused, so that a folder never mixes two experiments. In npz mode finished
batches lie in `.parts/` until all seeds are there.

An npz file holds `seeds` int64 [N], `class_idx` int64 [N] (-1 without classes), `images` uint8 [N, C, H, W] and
`latents` float32 [N, C, H, W], the sampler's raw result. Where the models demand a licence, `generation.json`, every
PNG and the npz file (`licence`) name it.
"""

import hashlib
import json
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from autoguidance.errors import UserError
from autoguidance.sample.sampler import SampleBatch
from autoguidance.storage import atomic_path, make_folder, read_json, write_json

FORMATS = ("png", "npz")
ARRAYS = ("seeds", "class_idx", "images", "latents")


def write_npz(path: Path | str, batch: SampleBatch, images: UInt8[Tensor, "N C H W"]) -> None:
    """Write samples with their seeds and classes as one uncompressed npz file, atomically."""
    _save(path, {
        "seeds": np.array(batch.seeds, dtype=np.int64),
        "class_idx": batch.class_idx.numpy().astype(np.int64),
        "images": images.numpy(),
        "latents": batch.latents.numpy(),
    })  # fmt: skip


def _save(path: Path | str, arrays: Mapping[str, np.ndarray]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_npz(path: Path | str) -> dict[str, np.ndarray]:
    """The arrays of `write_npz`. Raises UserError where the file is missing, damaged or something else."""
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ARRAYS if name in file}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path") from None
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise UserError(
            f"{path} is not a readable npz file of samples ({error}); remove it and make it again with autoguidance generate"
        ) from None
    if not {"seeds", "class_idx", "images"} <= arrays.keys():
        raise UserError(
            f"{path} lacks seeds, class_idx or images; remove it and make it again with autoguidance generate --format npz"
        )
    if len({len(values) if values.ndim else -1 for values in arrays.values()}) > 1:
        raise UserError(f"{path}: its arrays differ in length; remove it and make it again with autoguidance generate")
    return arrays


class SampleFolder:
    """An output folder of samples that can be continued.

    Args:
        folder: created if needed.
        settings: JSON-like description of everything that determines the images (models, weights, solver, classes).
        image_format: "png" | "npz".

    Raises: UserError where the folder holds images of other settings, or cannot be written.
    """

    def __init__(self, folder: Path | str, settings: Mapping[str, Any], image_format: str = "png") -> None:
        if image_format not in FORMATS:
            raise UserError(f"unknown image format {image_format!r}; choose one of {', '.join(FORMATS)}")
        self.folder = make_folder(folder)
        self.format = image_format
        self._parts = self.folder / ".parts"
        self._licence = ", ".join(settings.get("licence", ()))
        # As stored: tuples become lists, so that the comparison is of like with like.
        content = json.loads(json.dumps({**settings, "format": image_format}, allow_nan=False))
        path = self.folder / "generation.json"
        if path.exists():
            before = read_json(path)
            if before != content:
                keys = before.keys() | content.keys() if isinstance(before, dict) else content.keys()
                changed = sorted(
                    key for key in keys if not isinstance(before, dict) or before.get(key) != content.get(key)
                )
                raise UserError(
                    f"{folder} holds samples made with other settings ({', '.join(changed)}); choose another output folder"
                )
        else:
            write_json(path, content)

    @property
    def npz_path(self) -> Path:
        """Where the samples of npz mode end up."""
        return self.folder / "images.npz"

    def _png(self, seed: int) -> Path:
        return self.folder / f"{seed:06d}.png"

    def missing(self, seeds: Sequence[int]) -> list[int]:
        """The seeds whose images are not there yet, in the order given."""
        if self.format == "png":
            return [seed for seed in seeds if not self._png(seed).exists()]
        done: set[int] = set()
        for path in [*self._parts.glob("*.npz"), self.npz_path]:
            if path.exists():
                done.update(read_npz(path)["seeds"].tolist())
        return [seed for seed in seeds if seed not in done]

    def write(self, batch: SampleBatch, images: UInt8[Tensor, "N C H W"]) -> None:
        """Store a finished batch."""
        if self.format == "png":
            for seed, image in zip(batch.seeds, images, strict=True):
                write_png(self._png(seed), image, self._licence)
            return
        name = hashlib.sha256(json.dumps(batch.seeds).encode()).hexdigest()[:16]
        write_npz(self._parts / f"{name}.npz", batch, images)

    def finish(self, seeds: Sequence[int]) -> None:
        """In npz mode join the parts into one file: these seeds in their order, then those of earlier calls by number.

        Called once, when all seeds are there.
        """
        if self.format == "png":
            return
        rows: dict[int, dict[str, np.ndarray]] = {}
        for path in [*sorted(self._parts.glob("*.npz")), self.npz_path]:
            if path.exists():
                arrays = read_npz(path)
                for index, seed in enumerate(arrays["seeds"].tolist()):
                    rows[seed] = {name: values[index] for name, values in arrays.items()}
        order = list(dict.fromkeys([*seeds, *sorted(rows)]))
        arrays = {name: np.stack([rows[seed][name] for seed in order]) for name in ARRAYS}
        if self._licence:
            arrays["licence"] = np.array(self._licence)
        _save(self.npz_path, arrays)
        shutil.rmtree(self._parts, ignore_errors=True)


def write_png(path: Path | str, image: UInt8[Tensor, "C H W"], licence: str = "") -> None:
    """Write one uint8 image, grey or RGB, atomically; a licence goes into its `License` text field."""
    from PIL import Image, PngImagePlugin  # not needed by `import autoguidance`

    texts = PngImagePlugin.PngInfo()
    if licence:
        texts.add_text("License", licence)

    pixels = image.permute(1, 2, 0).numpy()
    with atomic_path(path) as temporary:
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(
            temporary, format="png", pnginfo=texts
        )


def join_batches(batches: Sequence[SampleBatch]) -> SampleBatch:
    """Several batches as one."""
    return SampleBatch(
        [seed for batch in batches for seed in batch.seeds],
        torch.cat([batch.class_idx for batch in batches]),
        torch.cat([batch.latents for batch in batches]),
    )
