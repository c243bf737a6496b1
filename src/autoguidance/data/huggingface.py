"""Images of the `datasets` library: `hf://owner/name` from the hub, a folder written by save_to_disk, or parquet
files.

The image column is read undecoded and goes through the same decoder as any file, so the same limits and conversions
hold. Labels come from the ClassLabel column, or an integer column named as in array files. Code in a data set's
repository is never run.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoguidance.data.arrays import LABEL_KEYS
from autoguidance.data.decode import MAX_FILE_BYTES, BadImageError, Decoded, DecodeOptions, decode_image
from autoguidance.data.folder import read_file
from autoguidance.data.listing import Labels, Listing, check_labels
from autoguidance.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

PREFIX = "hf://"
SAVED_MARKS = ("dataset_info.json", "dataset_dict.json")  # what save_to_disk leaves in a folder
FILE_SUFFIXES = (".parquet", ".arrow")


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder holds a data set of `datasets` rather than image files."""
    return (
        any((path / mark).is_file() for mark in SAVED_MARKS)
        or any(path.glob("*.parquet"))
        or any(path.glob("data/*.parquet"))
    )


def list_huggingface(name: str) -> Listing:
    """The images of a Hugging Face data set.

    Args:
        name: "hf://owner/name", "hf://owner/name/configuration", each with ":split" at the end if wanted; or a local
            folder or .parquet/.arrow file. Without a split, "train" is taken, or the only one.

    Raises:
        UserError: the `datasets` extra is missing, the set cannot be loaded, or it has not one image column.
    """
    table = _load(name)
    images = _image_column(table, name)
    labels = _labels(table, images, name)
    from datasets import Image

    rows = table.select_columns([images]).cast_column(images, Image(decode=False))

    def load(index: int, options: DecodeOptions) -> Decoded:
        return decode_image(_content(rows[index][images]), options)

    return Listing(
        name=name,
        kind="hugging face",
        files=[f"row {index}" for index in range(len(table))],
        load=load,
        class_idx=labels.class_idx,
        class_names=labels.class_names,
        problems=labels.problems,
        notes=[f"image column {images!r}"],
    )


def _load(name: str) -> "Dataset":
    try:
        import datasets
    except ImportError:
        raise UserError(f"{name} needs the `datasets` extra; run: pip install 'autoguidance[datasets]'") from None
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    split = None
    try:
        if name.startswith(PREFIX):
            repository, _, split = name.removeprefix(PREFIX).partition(":")
            parts = repository.split("/", 2)
            with _quiet_hub():
                loaded = datasets.load_dataset("/".join(parts[:2]), parts[2] if len(parts) == 3 else None)
        else:
            loaded = _load_local(Path(name).resolve())
    except (
        Exception
    ) as error:  # the library raises errors of its own, of HTTP clients, of pyarrow and of the file system
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(
            f"cannot load {name}: {reason[:200]}; check the name and the network, or give a local copy"
        ) from None
    if isinstance(loaded, datasets.Dataset):
        return loaded
    splits = [str(key) for key in loaded]
    wanted = split or ("train" if "train" in splits or len(splits) != 1 else splits[0])
    if wanted not in splits:
        raise UserError(f"{name} has no split {wanted!r} but {', '.join(splits)}; name one as {PREFIX}owner/name:split")
    return loaded[wanted]


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Keep the hub's client from printing a line for every attempt; the error at the end says enough."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _load_local(path: Path) -> Any:
    import datasets

    if path.suffix in FILE_SUFFIXES:
        return datasets.load_dataset(path.suffix[1:], data_files=str(path))
    if any((path / mark).is_file() for mark in SAVED_MARKS):
        return datasets.load_from_disk(str(path))
    return datasets.load_dataset(str(path))


def _image_column(table: "Dataset", name: str) -> str:
    from datasets import Image

    columns = [column for column, feature in table.features.items() if isinstance(feature, Image)]
    if len(columns) != 1:
        found = f"{len(columns)} image columns ({', '.join(columns)})" if columns else "no image column"
        raise UserError(
            f"{name} has {found} among {', '.join(table.column_names)}; keep exactly one, cast to datasets.Image()"
        )
    return columns[0]


def _labels(table: "Dataset", images: str, name: str) -> Labels:
    from datasets import ClassLabel

    classes = [column for column, feature in table.features.items() if isinstance(feature, ClassLabel)]
    named = [column for column in ("label", *LABEL_KEYS) if column in table.column_names and column != images]
    if len(classes) > 1 and not set(classes) & set(named):
        raise UserError(f"{name} has several label columns ({', '.join(classes)}); rename the one that counts to label")
    column = (
        next((column for column in named if column in classes), None)
        or next(iter(classes), None)
        or next(iter(named), None)
    )
    if column is None:
        return Labels()
    feature = table.features[column]
    values = table.select_columns([column]).with_format(None)[:][column]
    if all(value in (None, -1) for value in values):  # how the library marks a split without labels
        return Labels()
    rows = [f"row {index}" for index in range(len(values))]
    return check_labels(values, rows, tuple(feature.names) if isinstance(feature, ClassLabel) else None)


def _content(cell: dict[str, Any] | None) -> bytes:
    if cell is None:
        raise BadImageError("no image in this row")
    if cell.get("bytes") is not None:
        if len(cell["bytes"]) > MAX_FILE_BYTES:
            raise BadImageError(f"{len(cell['bytes']):,} bytes, the limit is {MAX_FILE_BYTES:,}")
        return cell["bytes"]
    path = cell.get("path")
    if not path or not os.path.isabs(path):  # noqa: PTH117
        raise BadImageError(f"its bytes are not in the data set: {path}")
    return read_file(Path(path))
