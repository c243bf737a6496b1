"""Images side by side: strips and grids of uint8 images [N, C, H, W], as PNG bytes, files, or data URIs.

Guided and unguided samples are only worth looking at side by side when they came from equal seeds: the same seed
gives the same noise and the same class, so what differs is the method. `matched` picks such images; `save_comparison`
draws them for a document with one titled column per method and one row per class. Small images are enlarged by whole
factors without smoothing: a reader must see pixels, not an interpolation's idea of them.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image, ImageDraw, ImageFont

from autoguidance.errors import UserError
from autoguidance.report.records import ImageSet
from autoguidance.storage import write_bytes

_MARGIN = 16  # pixels around a comparison
_BACKGROUND = (255, 255, 255, 255)


def _as_rgba(images: np.ndarray) -> UInt8[np.ndarray, "N H W 4"]:
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise UserError(f"images must be uint8 [N, 1 or 3, H, W] with N >= 1, not {images.dtype} {list(images.shape)}")
    colours = np.broadcast_to(images, (len(images), 3, *images.shape[2:]))
    opaque = np.full((len(images), 1, *images.shape[2:]), 255, np.uint8)
    return np.concatenate([colours, opaque], axis=1).transpose(0, 2, 3, 1)


def make_grid(
    images: UInt8[np.ndarray, "N C H W"], *, columns: int, scale: int = 1, gap: int = 1
) -> UInt8[np.ndarray, "rows cols 4"]:
    """Put images into rows of `columns`, enlarged `scale` times, with `gap` transparent pixels between them.

    Args:
        images: uint8, 1 or 3 channels (any array or CPU tensor).
        columns: images per row, at least 1; the last row may stay unfilled (transparent).
        scale: whole factor, at least 1; pixels are repeated, never smoothed.
        gap: pixels (of the result) between neighbours; there is none at the border.

    Returns:
        RGBA, of height rows * scale * H + (rows - 1) * gap and width likewise.

    Raises:
        UserError: not images, or columns or scale below 1.
    """
    if columns < 1 or scale < 1 or gap < 0:
        raise UserError(f"columns ({columns}) and scale ({scale}) must be at least 1 and gap ({gap}) at least 0")
    cells = _as_rgba(images).repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = cells.shape[1:3]
    columns = min(columns, len(cells))
    rows = math.ceil(len(cells) / columns)
    canvas = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 4), np.uint8)
    for index, cell in enumerate(cells):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        canvas[top : top + height, left : left + width] = cell
    return canvas


def png_bytes(canvas: UInt8[np.ndarray, "H W 4"]) -> bytes:
    """An RGBA canvas as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def png_data_uri(canvas: UInt8[np.ndarray, "H W 4"]) -> str:
    """An RGBA canvas as a `data:` address, which a page shows without a request."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(canvas)).decode("ascii")


def shrink(images: UInt8[np.ndarray, "N C H W"], limit: int) -> UInt8[np.ndarray, "N C h w"]:
    """Reduce images whose longer side exceeds `limit` pixels (antialiased): a page of many stays small to send."""
    longest = max(images.shape[2:])
    if longest <= limit:
        return images
    height, width = (max(1, round(side * limit / longest)) for side in images.shape[2:])
    reduced = [
        np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize((width, height), Image.Resampling.LANCZOS))
        for plane in images.reshape(-1, *images.shape[2:])
    ]
    return np.stack(reduced).reshape(*images.shape[:2], height, width)


def save_grid(
    images: UInt8[np.ndarray, "N C H W"], path: Path | str, columns: int = 8, *, scale: int = 1, gap: int = 1
) -> Path:
    """Write a grid of images (`make_grid`) as a PNG file, atomically.

    Raises:
        UserError: not images, a value out of range, or a path that cannot be written.
    """
    write_bytes(path, png_bytes(make_grid(images, columns=columns, scale=scale, gap=gap)))
    return Path(path)


def matched(
    sets: Mapping[str, ImageSet], *, per_row: int, max_rows: int
) -> list[tuple[int | None, dict[str, Int64[np.ndarray, "n"]]]]:
    """Rows of images to look at side by side.

    The methods' images of a row have the same seeds in the same order, and their class is the row's. Real images (the
    set "real") have no seed in common with generated ones; they are picked by class alone.

    Args:
        sets: method -> images; those of "real" are optional.
        per_row: images per method and row.
        max_rows: rows at most. More classes than that are thinned evenly.

    Returns:
        [(class or None, {method: indices into its images})]; without classes the rows run through the common seeds. []
        where the generated sets have no seed in common.
    """
    generated = {name: images for name, images in sets.items() if name != "real"}
    if not generated:
        return []
    first = next(iter(generated.values()))
    where = {name: {int(seed): index for index, seed in enumerate(images.seeds)} for name, images in generated.items()}
    common = [int(seed) for seed in first.seeds if all(int(seed) in places for places in where.values())]
    labels = {name: images.class_idx for name, images in generated.items() if images.class_idx is not None}
    if len(labels) == len(generated):
        classes = {seed: {int(idx[where[name][seed]]) for name, idx in labels.items()} for seed in common}
        seeds_of: dict[int, list[int]] = {}
        for seed in common:
            if len(classes[seed]) == 1:  # a seed whose class differs between methods does not compare
                seeds_of.setdefault(classes[seed].pop(), []).append(seed)
        present = sorted(seeds_of)
        if len(present) > max_rows:
            present = [present[round(i)] for i in np.linspace(0, len(present) - 1, max_rows)]
        rows = [(idx, seeds_of[idx][:per_row]) for idx in present]
    else:
        chunks = [common[start : start + per_row] for start in range(0, len(common), per_row)]
        rows = [(None, chunk) for chunk in chunks[:max_rows]]
    real = sets.get("real")
    result = []
    for number, (idx, seeds) in enumerate(rows):
        indices = {name: np.array([where[name][seed] for seed in seeds], np.int64) for name in generated}
        if real is not None:
            if idx is not None and real.class_idx is not None:
                indices["real"] = np.flatnonzero(real.class_idx == idx)[:per_row].astype(np.int64)
            else:
                indices["real"] = np.arange(len(real.seeds))[number * per_row : (number + 1) * per_row]
        result.append((idx, indices))
    return result


def save_comparison(
    columns: Mapping[str, UInt8[np.ndarray, "N C H W"]],
    path: Path | str,
    *,
    per_row: int = 4,
    scale: int | None = None,
    row_titles: Sequence[str] = (),
    subtitles: Mapping[str, str] | None = None,
) -> Path:
    """Write one PNG with a titled grid per method, side by side, row k of each showing the same seeds.

    Args:
        columns: title -> images; all of one number and size, in the same order of seeds (see `matched`).
        path: the PNG file, written atomically.
        per_row: images per row of each grid.
        scale: whole factor of enlargement; None makes an image at least 40 pixels wide.
        row_titles: one text per row, drawn at the left (class names); () draws none.
        subtitles: title -> a second, smaller line (a distance, a weight).

    Returns:
        `path`.

    Raises:
        UserError: no columns, sets of different length or size, or a path that cannot be written.
    """
    if not columns:
        raise UserError("a comparison needs at least one column of images")
    sizes = {title: np.asarray(images).shape for title, images in columns.items()}
    if len({(size[0], *size[2:]) for size in sizes.values()}) != 1:
        raise UserError(f"the columns of a comparison differ in number or size of images: {sizes}; give equal sets")
    count, _, _, resolution = next(iter(sizes.values()))
    factor = scale if scale is not None else max(1, math.ceil(40 / resolution))
    rows = math.ceil(count / per_row)
    if row_titles and len(row_titles) != rows:
        raise UserError(f"a comparison of {rows} rows needs {rows} row titles, not {len(row_titles)}")
    gap = 4
    grids = {title: make_grid(images, columns=per_row, scale=factor, gap=gap) for title, images in columns.items()}

    # matplotlib brings a font with a wide range of characters; Pillow's own has Latin only.
    fonts = Path(matplotlib.get_data_path()) / "fonts/ttf"
    bold = ImageFont.truetype(fonts / "DejaVuSans-Bold.ttf", 17)
    plain = ImageFont.truetype(fonts / "DejaVuSans.ttf", 14)
    subtitles = subtitles or {}
    widths = {
        title: math.ceil(max(grid.shape[1], bold.getlength(title), plain.getlength(subtitles.get(title, ""))))
        for title, grid in grids.items()
    }
    left = _MARGIN + (math.ceil(max(plain.getlength(title) for title in row_titles)) + 12 if row_titles else 0)
    top = _MARGIN + 28 + (22 if subtitles else 0)
    between = 28
    height = top + next(iter(grids.values())).shape[0] + _MARGIN
    width = left + sum(widths.values()) + between * (len(grids) - 1) + _MARGIN
    page = Image.new("RGBA", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(page)
    cell = round((height - top - _MARGIN + gap) / rows)
    for number, title in enumerate(row_titles):
        draw.text((left - 12, top + number * cell + (cell - gap) // 2), title, font=plain, fill="#444", anchor="rm")
    for title, grid in grids.items():
        draw.text((left, _MARGIN), title, font=bold, fill="#111")
        if title in subtitles:
            draw.text((left, _MARGIN + 25), subtitles[title], font=plain, fill="#555")
        page.alpha_composite(Image.fromarray(grid), (left, top))
        left += widths[title] + between
    write_bytes(path, png_bytes(np.asarray(page)))
    return Path(path)
