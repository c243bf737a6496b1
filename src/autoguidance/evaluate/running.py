"""Running a large feature network the same way everywhere: any image size, grey or RGB, true float32, little memory.

Float32 is not float32 by itself: on a GPU convolutions default to TF32 (10 bits), a program that sampled before may
have lowered the precision of matrix products, and autocast may be on. Features then move by 1e-3, and two machines
disagree. `true_float32` switches all of that off while the network runs and restores it afterwards.

A network at 299 pixels needs 20 MB of activations per image in its first layers; `in_chunks` runs `CHUNK` images at a
time. `MICRO_BATCH` is a multiple of it, so the kernels see one shape, and features do not depend on the batch size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from autoguidance.errors import UserError

CHUNK = 16


@contextmanager
def true_float32(device: torch.device) -> Iterator[None]:
    """No TF32, bfloat16, autocast, or kernels picked by their speed of the moment, and no gradients."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
            torch.backends.cudnn.flags(
                enabled=torch.backends.cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False
            ),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def rgb_images(images: Tensor, what: str) -> UInt8[Tensor, "N 3 H W"]:
    """Grey images repeated to RGB; any size.

    Raises:
        UserError: not uint8 [N, 1 or 3, H, W].
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise UserError(f"{what} takes uint8 images [N, 1 or 3, H, W], not {images.dtype} {list(images.shape)}")
    return images.expand(-1, 3, -1, -1)


def in_chunks(
    function: Callable[[UInt8[Tensor, "n 3 H W"]], Float[Tensor, "n d"]], images: UInt8[Tensor, "N 3 H W"]
) -> Float[Tensor, "N d"]:
    """The function of `CHUNK` images at a time, joined."""
    return torch.cat([function(part) for part in images.split(CHUNK)])
