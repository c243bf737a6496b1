"""One image file to uint8 pixels, as the person who made the file sees it; or the reason why not.

A file is decoded whole, so that a truncated one shows; its header is compared with a limit first, so that a small
file cannot fill the memory (a decompression bomb). What becomes of the colour modes:

* grey (L, 1 bit, 16 bit, grey with alpha) gives [H, W]; all else gives RGB [H, W, 3], palettes too, even grey ones:
  the file's kind decides, not what it happens to show;
* transparency is laid over white, as web pages and most viewers do; dropping alpha instead would show colours that
  nobody drew;
* 16-bit grey v becomes round(v * 255 / (2^bits - 1)), never clipped; `bits` is that of the whole set (see check.py),
  because a 12-bit scanner's files would be nearly black if divided by 65535;
* CMYK, YCbCr and HSV become RGB; the EXIF orientation is applied; of an animation the first frame counts.
"""

import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import (
    Image,
    ImageOps,
    TiffImagePlugin,  # noqa: F401  these two register themselves when imported: here, not in whichever thread needs them first
    WebPImagePlugin,  # noqa: F401
)

from autoguidance.data.transforms import DEFAULT_TRANSFORM, TRANSFORMS

MAX_PIXELS = 89_478_485  # Pillow's own limit: 256 MiB as RGB; Pillow only warns there, here it is an error
MAX_FILE_BYTES = 1 << 28  # more than the largest allowed image needs even without compression

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
_SIGNATURES = (b"\x89PNG", b"\xff\xd8", b"RIFF", b"BM", b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_FORMAT_NAMES = {"MPO": "JPEG"}  # a JPEG with a second picture, as many phones write it
_ORIENTATION = 0x0112  # EXIF tag
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class BadImageError(Exception):
    """Why one image cannot be used: a few words, without the file's name."""


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """How a whole set is decoded.

    Attributes:
        resolution: make every image square with this many pixels; None leaves the size as it is.
        grey_bits: significant bits of 16-bit grey images, 8 to 16; no value of the set may need more.
        transform: how they become square: a name in `transforms.TRANSFORMS`.
    """

    resolution: int | None = None
    grey_bits: int = 16
    transform: str = DEFAULT_TRANSFORM

    def square(self, pixels: UInt8[np.ndarray, "H W"] | UInt8[np.ndarray, "H W 3"]) -> np.ndarray:
        """The pixels as the options want them."""
        return pixels if self.resolution is None else TRANSFORMS[self.transform](pixels, self.resolution)


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """One image, and what the survey counts.

    Attributes:
        pixels: uint8 [H, W] or [H, W, 3], cropped and resized where that was asked for.
        format: "PNG", "JPEG", ...; "array" for what was not a file.
        mode: Pillow's name of the colour mode.
        num_source_pixels: before cropping and resizing.
        is_animated: whether the file holds more images than this first one.
        largest_value: of a 16-bit grey image, before scaling; None for all others.
    """

    pixels: UInt8[np.ndarray, "H W"] | UInt8[np.ndarray, "H W 3"]
    format: str
    mode: str
    num_source_pixels: int
    is_animated: bool = False
    largest_value: int | None = None


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings about odd metadata; a hundred thousand files would fill the terminal. Not for worker
    threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def decode_image(content: bytes, options: DecodeOptions) -> Decoded:
    """Decode one file's content.

    Args:
        content: the whole file.
        options: size and grey depth.

    Raises:
        BadImageError: empty, not an image, truncated, corrupt, too large, or of a kind whose values have no known
            range.
    """
    if not content:
        raise BadImageError("empty file")
    if content.startswith(_PNG_SIGNATURE):
        _check_png(content)
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        _check_pixels(image.width * image.height, f"{image.width}x{image.height}")
        file_format, mode = _FORMAT_NAMES.get(image.format or "", image.format or "?"), image.mode
        image.load()
        pixels, largest = _pixels(_upright(image), options)
        is_animated = _is_animated(image, file_format)
    except BadImageError:
        raise
    except Image.DecompressionBombError as error:  # raised inside Image.open, before there is an object with a size
        count = re.search(r"\d+", str(error))
        _check_pixels(int(count.group()) if count else MAX_PIXELS + 1, "an image")
        raise BadImageError("decompression bomb") from None
    except (
        Exception
    ) as error:  # a damaged file makes Pillow's decoders raise nearly anything: OSError, SyntaxError, struct.error, ...
        raise BadImageError(_reason(content, error)) from None
    num_source_pixels = pixels.shape[0] * pixels.shape[1]
    return Decoded(
        pixels=options.square(pixels),
        format=file_format,
        mode=mode,
        num_source_pixels=num_source_pixels,
        is_animated=is_animated,
        largest_value=largest,
    )


def _check_pixels(num_pixels: int, what: str) -> None:
    if num_pixels > MAX_PIXELS:
        raise BadImageError(
            f"decompression bomb or huge image: {what} of {num_pixels:,} pixels, the limit is {MAX_PIXELS:,}"
        )


def _reason(content: bytes, error: Exception) -> str:
    text = str(error)
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return "truncated"
    if isinstance(error, Image.UnidentifiedImageError):
        return "truncated or corrupt header" if content.startswith(_SIGNATURES) else "not an image"
    return f"corrupt: {text.splitlines()[0][:80] if text else type(error).__name__}"


def _check_png(content: bytes) -> None:
    """Compare the critical chunks' checksums: Pillow does not check those of the pixel data."""
    position = len(_PNG_SIGNATURE)
    view = memoryview(content)
    while True:
        if position + 12 > len(content):
            raise BadImageError("truncated")
        (length,) = struct.unpack_from(">I", content, position)
        end = position + 12 + length
        if end > len(content):
            raise BadImageError("truncated")
        kind = content[position + 4 : position + 8]
        if (
            kind[:1].isupper()
            and zlib.crc32(view[position + 4 : end - 4]) != struct.unpack_from(">I", content, end - 4)[0]
        ):
            raise BadImageError("corrupt: wrong checksum")
        if kind == b"IEND":
            return
        position = end


def _upright(image: Image.Image) -> Image.Image:
    if image.format in ("JPEG", "MPO") and "exif" not in image.info:
        return image  # most files; looking up the tag would cost as much as decoding a small JPEG
    with suppress(Exception):  # damaged metadata: viewers show the image as it lies
        if image.getexif().get(_ORIENTATION, 1) != 1:
            return ImageOps.exif_transpose(image)
    return image


def _is_animated(image: Image.Image, file_format: str) -> bool:
    if file_format in ("JPEG", "BMP"):
        return False
    with suppress(Exception):  # a damaged second frame does not matter
        return bool(getattr(image, "is_animated", False))
    return False


def _pixels(image: Image.Image, options: DecodeOptions) -> tuple[np.ndarray, int | None]:
    if image.mode == "F":
        raise BadImageError("floating-point pixels, whose range is not known; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bit(np.asarray(image), image.info.get("transparency"), options.grey_bits)
    is_grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    wanted = "L" if is_grey else "RGB"
    return np.array(image if image.mode == wanted else image.convert(wanted)), None


def _from_16_bit(values: np.ndarray, transparent: Any, grey_bits: int) -> tuple[np.ndarray, int]:
    values = values.astype(np.int64)  # some arrive as int32 (Pillow's mode I) or in the other byte order
    smallest, largest = int(values.min()), int(values.max())
    if smallest < 0 or largest > 65535:
        raise BadImageError(
            f"integer pixels {smallest} .. {largest}, whose range is not known; save it with 8 or 16 bits"
        )
    top = (1 << grey_bits) - 1
    scaled = (values * 255 + top // 2) // top
    if isinstance(transparent, int):
        scaled[values == transparent] = 255
    return np.minimum(scaled, 255).astype(np.uint8), largest
