"""The three ways to make a picture of any shape square, R x R pixels, by the names that the EDM2 data sets use.

    center-crop           cut out the largest centred square, resize it                    (crop.py; Lanczos)
    center-crop-wide      keep the whole width: resize to R x round(R H / W), centre it between black bars; of a picture
                          that is higher than wide, the centred square first               (Lanczos)
    center-crop-dhariwal  halve with a box filter while the short side is at least 2 R, resize the short side to R with
                          a bicubic kernel, cut out the centred square last

The three give different pixels, so figures against a published reference need the transform that the reference was
made with: the EDM2 references of ImageNet use center-crop-dhariwal.

Reference: Dhariwal & Nichol 2021, arXiv 2105.05233 (the third, as made known by their data loader); Karras et al. 2024,
arXiv 2312.02696 (the names).
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from autoguidance.data.crop import center_crop

Pixels = UInt8[np.ndarray, "H W"] | UInt8[np.ndarray, "H W 3"]


def center_crop_wide(pixels: Pixels, resolution: int) -> np.ndarray:
    """The picture's whole width on a black square of `resolution` pixels; nothing at the sides is lost.

    Args:
        pixels: uint8 [H, W] or [H, W, 3].
        resolution: R, at least 1.

    Returns: uint8 [R, R] or [R, R, 3].
    """
    height, width = pixels.shape[:2]
    side = min(height, width)
    top = (height - side) // 2
    picture = Image.fromarray(np.ascontiguousarray(pixels[top : top + side]))
    rows = max(1, round(resolution * side / width))
    square = np.zeros((resolution, resolution, *pixels.shape[2:]), dtype=np.uint8)
    start = (resolution - rows) // 2
    square[start : start + rows] = np.asarray(picture.resize((resolution, rows), Image.Resampling.LANCZOS))
    return square


def center_crop_dhariwal(pixels: Pixels, resolution: int) -> np.ndarray:
    """Box halvings, then bicubic, crop last.

    Args:
        pixels: uint8 [H, W] or [H, W, 3].
        resolution: R, at least 1.

    Returns: uint8 [R, R] or [R, R, 3].
    """
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    while min(picture.size) >= 2 * resolution:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = resolution / min(picture.size)
    size = (max(resolution, round(picture.width * scale)), max(resolution, round(picture.height * scale)))
    resized = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
    top, left = (size[1] - resolution) // 2, (size[0] - resolution) // 2
    return resized[top : top + resolution, left : left + resolution].copy()


DEFAULT_TRANSFORM = "center-crop"
TRANSFORMS: dict[str, Callable[[Pixels, int], np.ndarray]] = {
    DEFAULT_TRANSFORM: center_crop,
    "center-crop-wide": center_crop_wide,
    "center-crop-dhariwal": center_crop_dhariwal,
}
