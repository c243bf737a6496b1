"""Every colour mode becomes what its maker sees; every damaged file says why it cannot."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from autoguidance.data.crop import center_crop
from autoguidance.data.decode import MAX_PIXELS, BadImageError, DecodeOptions, decode_image, quiet_pillow

OPTIONS = DecodeOptions()
GRADIENT = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOUR = np.stack([GRADIENT, GRADIENT.T, 255 - GRADIENT], axis=2)


def encoded(image: Image.Image | np.ndarray, file_format: str = "PNG", **settings: object) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, file_format, **settings)
    return stream.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize(
    "file_format, settings",
    [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("TIFF", {"compression": "tiff_lzw"})],
)
def test_lossless_formats_give_the_pixels_back(file_format: str, settings: dict[str, object]) -> None:
    decoded = decode_image(encoded(COLOUR, file_format, **settings), OPTIONS)
    np.testing.assert_array_equal(decoded.pixels, COLOUR)
    assert (decoded.format, decoded.mode) == (file_format, "RGB")


def test_jpeg_is_close_and_grey_stays_one_plane() -> None:
    decoded = decode_image(encoded(GRADIENT, "JPEG", quality=100), OPTIONS)
    assert decoded.pixels.shape == (8, 8)
    assert np.abs(decoded.pixels.astype(int) - GRADIENT).max() <= 2


def test_one_bit_becomes_black_and_white() -> None:
    decoded = decode_image(encoded(Image.fromarray(GRADIENT > 100)), OPTIONS)
    np.testing.assert_array_equal(decoded.pixels, np.where(GRADIENT > 100, 255, 0))


@pytest.mark.parametrize("bits", [16, 12])
def test_16_bit_grey_is_scaled_not_clipped(bits: int) -> None:
    values = np.linspace(0, 2**bits - 1, 64).round().astype(np.uint16).reshape(8, 8)
    expected = np.rint(values * (255 / (2**bits - 1)))
    for content in (encoded(values), encoded(values, "TIFF")):
        decoded = decode_image(content, DecodeOptions(grey_bits=bits))
        assert decoded.pixels.dtype == np.uint8
        assert decoded.largest_value == 2**bits - 1
        np.testing.assert_array_equal(decoded.pixels, expected)
        assert len(np.unique(decoded.pixels)) == 64


def test_palette_becomes_rgb_even_when_it_shows_greys() -> None:
    palette = Image.fromarray(GRADIENT // 4).convert("L")
    image = Image.new("P", (8, 8))
    image.putdata(list(palette.tobytes()))
    image.putpalette([channel for index in range(64) for channel in (index, index, index)])
    np.testing.assert_array_equal(
        decode_image(encoded(image), OPTIONS).pixels, np.repeat((GRADIENT // 4)[..., None], 3, axis=2)
    )


def test_transparency_lies_over_white() -> None:
    opacity = np.zeros((8, 8), dtype=np.uint8)
    opacity[:, 4:], opacity[0, 0] = 255, 102
    expected = np.where(opacity[..., None] == 255, COLOUR, 255)
    expected[0, 0] = np.rint(COLOUR[0, 0] * 0.4 + 255 * 0.6)
    pixels = decode_image(encoded(np.dstack([COLOUR, opacity])), OPTIONS).pixels
    assert np.abs(pixels.astype(int) - expected).max() <= 1  # rounding of Pillow's blend
    grey = decode_image(encoded(np.dstack([GRADIENT, opacity])), OPTIONS).pixels
    assert grey.shape == (8, 8)
    np.testing.assert_array_equal(grey[:, 4:], GRADIENT[:, 4:])
    assert (grey[1:, :4] == 255).all()


def test_a_transparent_colour_of_palette_rgb_and_16_bit_files_lies_over_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 100, 0])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(
        decode_image(encoded(image, transparency=0), OPTIONS).pixels, [[[255] * 3, [0, 100, 0]]]
    )
    np.testing.assert_array_equal(
        decode_image(encoded(image, "GIF", transparency=1), OPTIONS).pixels, [[[200, 0, 0], [255] * 3]]
    )
    plain = np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8)
    np.testing.assert_array_equal(
        decode_image(encoded(plain, transparency=(1, 2, 3)), OPTIONS).pixels, [[[255] * 3, [4, 5, 6]]]
    )
    deep = np.array([[0, 65535 // 3]], dtype=np.uint16)
    content = encoded(deep)
    end_of_header = 8 + 25
    content = content[:end_of_header] + png_chunk(b"tRNS", b"\0\0") + content[end_of_header:]
    np.testing.assert_array_equal(decode_image(content, OPTIONS).pixels, [[255, 85]])


def test_cmyk_becomes_rgb() -> None:
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))  # full cyan
    pixels = decode_image(encoded(image, "TIFF"), OPTIONS).pixels
    np.testing.assert_array_equal(pixels, np.broadcast_to(np.uint8([0, 255, 255]), (8, 8, 3)))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_exif_orientation_is_applied(file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    settings = {"lossless": True} if file_format == "WEBP" else {"quality": 100} if file_format == "JPEG" else {}
    pixels = decode_image(encoded(GRADIENT[:4], file_format, exif=exif, **settings), OPTIONS).pixels
    expected = np.rot90(GRADIENT[:4], -1)
    assert pixels.shape[:2] == (8, 4)
    grey = pixels if pixels.ndim == 2 else pixels[..., 0]
    assert np.abs(grey.astype(int) - expected).max() <= 3


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for file_format, settings in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        decoded = decode_image(
            encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **settings), OPTIONS
        )
        assert decoded.is_animated
        np.testing.assert_array_equal(decoded.pixels[0, 0], [255, 0, 0])
    assert not decode_image(encoded(frames[0], "GIF"), OPTIONS).is_animated


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_file_cut_off_anywhere_is_refused(file_format: str) -> None:
    content = encoded(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8), file_format)
    for length in np.linspace(1, len(content) * 0.9, 25).astype(int):
        with quiet_pillow(), pytest.raises(BadImageError, match=r"truncated|corrupt|not an image"):
            decode_image(content[:length], OPTIONS)


def test_any_flipped_bit_of_png_pixels_is_refused() -> None:
    content = encoded(COLOUR)
    start = content.index(b"IDAT") + 4
    for position in range(start, content.index(b"IEND") - 8):
        damaged = bytearray(content)
        damaged[position] ^= 1
        with pytest.raises(BadImageError, match="corrupt"):
            decode_image(bytes(damaged), OPTIONS)


def test_reasons_are_named() -> None:
    content = encoded(COLOUR)
    for bad, reason in (
        (b"", "empty file"),
        (b"just some text, renamed", "not an image"),
        (content[:-30], "truncated"),
        (encoded(COLOUR, "JPEG")[:-100], "truncated"),
        (b"\x89PNG", "truncated or corrupt header"),
        (encoded(Image.fromarray(GRADIENT.astype(np.float32)), "TIFF"), "floating-point pixels"),
        (encoded(Image.fromarray(GRADIENT.astype(np.int32) - 5), "TIFF"), "range is not known"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "not an image"),  # Pillow would start Ghostscript
    ):
        with pytest.raises(BadImageError, match=reason):
            decode_image(bad, OPTIONS)


@pytest.mark.parametrize("side", [60_000, 10_000])
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + png_chunk(b"IEND", b"")
    assert side**2 > MAX_PIXELS
    with (
        pytest.warns(Image.DecompressionBombWarning) if side == 10_000 else _nothing(),
        pytest.raises(BadImageError, match="bomb"),
    ):
        decode_image(content, OPTIONS)


def _nothing() -> io.BytesIO:
    return io.BytesIO()  # a context manager without effect


def test_center_crop_takes_the_middle_and_averages() -> None:
    wide = np.zeros((4, 10), dtype=np.uint8)
    wide[:, 3:7] = 200
    np.testing.assert_array_equal(center_crop(wide, 4), np.full((4, 4), 200))
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    small = center_crop(np.stack([checks] * 3, axis=2).astype(np.uint8), 8)
    assert small.shape == (8, 8, 3)
    assert np.abs(small[2:-2, 2:-2].astype(int) - 127).max() <= 2  # aliasing would give 0 or 255
    np.testing.assert_array_equal(center_crop(COLOUR, 8), COLOUR)
