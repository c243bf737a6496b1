"""A set of latents in place of images: the moments of an autoencoder's posterior, and how they become training data.

Per image m [2 C, h, h], float32: C channels of means, then C of standard deviations (C = 4 for Stable Diffusion's VAE).
Training draws mean + std * noise at each look (vae.py), so that a set encoded once shows what encoding at each look
would. How such sets lie on the disk, and how they are checked: latent_files.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from autoguidance.data.source import ImageSource, Survey, checked_indices, checksum, printable
from autoguidance.errors import UserError


@dataclass(frozen=True, kw_only=True)
class LatentSource:
    """A checked set of latents.

    Attributes:
        name: short name for tables and messages.
        num_images: N.
        latent_channels: C of the latents, not of the images.
        latent_resolution: h.
        encoder: complete configuration of the VAE encoder (`encoders.make_encoder`).
        class_idx: int64 [N]; None for an unlabelled set.
        class_names: one per class; () for an unlabelled set.
        fingerprint: SHA-256 in hexadecimal over moments, labels and class names (latent_files.py).
        survey: what was found.
        load: index -> float32 [2 C, h, h], read anew; raises UserError where that is no longer possible.
        checksums: uint32 [N], CRC-32 of what `load` gave when the set was checked.
        moments: all of them, float32 [N, 2 C, h, h], where they fit into memory.
    """

    name: str
    num_images: int
    latent_channels: int
    latent_resolution: int
    encoder: Mapping[str, Any]
    class_idx: Int64[np.ndarray, "N"] | None
    class_names: tuple[str, ...]
    fingerprint: str
    survey: Survey
    load: Callable[[int], np.ndarray]
    checksums: np.ndarray
    moments: Float32[np.ndarray, "N 2C h h"] | None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def resolution(self) -> int:
        """R of the images that the latents stand for."""
        return int(self.encoder["resolution"])

    @property
    def channels(self) -> int:
        """Channels of the images that the latents stand for."""
        return int(self.encoder["channels"])

    def read(self, indices: Sequence[int] | np.ndarray | Tensor) -> Float[Tensor, "n 2C h h"]:
        """The moments with these indices, copied.

        Raises UserError where an index is out of range or a file changed after the check.
        """
        chosen = checked_indices(indices, self.num_images)
        if self.moments is not None:
            return torch.from_numpy(self.moments[chosen])
        width = self.latent_resolution
        result = np.empty((len(chosen), 2 * self.latent_channels, width, width), dtype=np.float32)
        for row, index in enumerate(chosen.tolist()):
            result[row] = self._read_one(index)
        return torch.from_numpy(result)

    def _read_one(self, index: int) -> np.ndarray:
        moments = self.load(index)
        if checksum(moments) != self.checksums[index]:
            raise UserError(
                f"{printable(self.survey.name)}: latent {index} changed after it was checked; restore it or start again"
            )
        return moments


TrainingSource = ImageSource | LatentSource
