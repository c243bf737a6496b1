"""Any picture to a square of R x R pixels: cut out the largest centred square, then resize it.

Reducing averages over all source pixels that fall under a target pixel (Pillow's Lanczos kernel, stretched by the
scale), so that nothing aliases. Not to be confused with center-crop-dhariwal of the EDM2 data sets (box halvings,
then bicubic, crop last).
"""

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def center_crop(
    pixels: UInt8[np.ndarray, "H W"] | UInt8[np.ndarray, "H W 3"], resolution: int
) -> UInt8[np.ndarray, "R R"] | UInt8[np.ndarray, "R R 3"]:
    """Crop the largest centred square and resize it to `resolution`; an image that has this size comes back
    unchanged."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[top : top + side, left : left + side]
    if side == resolution:
        return np.ascontiguousarray(square)
    image = Image.fromarray(np.ascontiguousarray(square))
    return np.array(image.resize((resolution, resolution), Image.Resampling.LANCZOS))
