"""What an image is turned into before sets of images are compared, and how to do it the same way every time.

A feature network maps uint8 images [N, C, H, W] to float32 features [N, d]; its `sha256` names it exactly (weights
and preprocessing), because a distance means nothing without it. Kernels for different batch sizes round differently,
by up to 1e-6, so `extract_features` regroups whatever batches come in and always runs the network on `MICRO_BATCH`
images, padding the last: features, and the distances made from them, are bitwise the same for any batch size (on one
kind of machine at a fixed thread count).

`pixels` is the network of last resort: block averages of the image itself, at most 8x8 per channel. It sees
brightness, colour and layout and needs no training and no labels, but it hardly sees sharpness. 8x8 because a
covariance of d features needs far more than d images and costs d^2: 64 (grey) or 192 (RGB) features, where 32x32 RGB
pixels would be 3072.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from autoguidance.data.source import ImageSource
from autoguidance.errors import UserError

MICRO_BATCH = 64
_POOLED_SIZE = 8
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's conversion to "L"


@runtime_checkable
class FeatureNetwork(Protocol):
    """What every feature network offers.

    Attributes:
        name: short name for tables, e.g. "classifier".
        sha256: identifies weights and preprocessing; equal only if the features are.
        num_features: d.
    """

    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def num_features(self) -> int: ...

    def __call__(self, images: UInt8[Tensor, "N C H W"]) -> Float[Tensor, "N d"]:
        """Features of each image, float32. Raises UserError for images of a size that the network does not take."""
        ...


def check_images(images: Tensor, resolution: int, what: str) -> None:
    """Raise UserError unless images are uint8 [N, 1 or 3, resolution, resolution]."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(f"{what} takes uint8 images [N, 1 or 3, H, W], not {images.dtype} {list(images.shape)}")
    if tuple(images.shape[2:]) != (resolution, resolution):
        height, width = images.shape[2:]
        raise UserError(
            f"{what} takes {resolution}x{resolution} images, not {height}x{width}; "
            "resize them or take the network of that size"
        )


def to_channels(images: Float[Tensor, "N c H W"], channels: int) -> Float[Tensor, "N C H W"]:
    """Grey to RGB by repetition, RGB to grey by luma; images that have the right number pass."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    weights = torch.tensor(_LUMA, device=images.device, dtype=images.dtype)
    return (images * weights[:, None, None]).sum(dim=1, keepdim=True)


class PixelFeatures:
    """Block averages of the image in [0, 1], at most 8x8 per channel, flattened.

    Args:
        channels: 1 or 3; images with the other number are converted.
        resolution: H = W of the images.
    """

    name = "pixels"

    def __init__(self, *, channels: int, resolution: int) -> None:
        if channels not in (1, 3) or resolution < 1:
            raise UserError(
                f"pixel features of {channels} channels at {resolution} pixels do not exist; "
                "give 1 or 3 channels and at least 1 pixel"
            )
        self.channels = channels
        self.resolution = resolution
        self.size = min(resolution, _POOLED_SIZE)
        self.num_features = channels * self.size**2
        description = {
            "name": self.name,
            "version": 1,
            "channels": channels,
            "resolution": resolution,
            "size": self.size,
        }
        self.sha256 = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()

    def __call__(self, images: UInt8[Tensor, "N C H W"]) -> Float[Tensor, "N d"]:
        check_images(images, self.resolution, "the feature network 'pixels'")
        values = to_channels(images.float() / 255, self.channels)
        return functional.adaptive_avg_pool2d(values, self.size).flatten(1)


def micro_batches(batches: Iterable[UInt8[Tensor, "n C H W"]]) -> Iterator[tuple[UInt8[Tensor, "64 C H W"], int]]:
    """Regroup batches of any sizes into `MICRO_BATCH` images each, the last padded with black.

    Yields (images, how many of them are real). Raises UserError where the images differ in size.
    """
    waiting: list[Tensor] = []
    count = 0
    for batch in batches:
        if waiting and batch.shape[1:] != waiting[0].shape[1:]:
            raise UserError(
                f"images of {list(batch.shape[1:])} follow images of {list(waiting[0].shape[1:])}; "
                "give images of one size"
            )
        waiting.append(batch)
        count += len(batch)
        if count < MICRO_BATCH:
            continue
        images = torch.cat(waiting)
        whole = count - count % MICRO_BATCH
        for part in images[:whole].split(MICRO_BATCH):
            yield part, MICRO_BATCH
        waiting, count = [images[whole:]], count - whole
    if count:
        images = torch.cat(waiting)
        yield torch.cat([images, images.new_zeros(MICRO_BATCH - count, *images.shape[1:])]), count


def extract_features(
    network: FeatureNetwork, batches: Iterable[UInt8[Tensor, "n C H W"]]
) -> Iterator[Float[Tensor, "m d"]]:
    """Features of a stream of images, in order, in blocks of at most `MICRO_BATCH`; the same for any batch sizes.

    Args:
        network: any feature network.
        batches: uint8 images, in batches of any size.

    Raises:
        UserError: images of different sizes, or of a size that the network does not take.
    """
    for images, count in micro_batches(batches):
        with torch.inference_mode():
            features = network(images)
        yield features[:count]


def image_batches(
    source: ImageSource, indices: Sequence[int] | np.ndarray | None = None, batch_size: int = 4 * MICRO_BATCH
) -> Iterator[UInt8[Tensor, "n C R R"]]:
    """The images of a source with these indices (None: all), in this order, as batches."""
    chosen = np.arange(source.num_images) if indices is None else np.asarray(indices)
    for start in range(0, len(chosen), batch_size):
        yield source.read(chosen[start : start + batch_size])
